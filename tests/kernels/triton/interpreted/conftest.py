"""Memory that nobody wrote is NaN, and launch choices that a small input exercises."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sbnbench_kernels.triton import heuristics

CHOICES = {
    "usual": heuristics.Heuristics(),
    # Several launches, several parts a segment, several tiles a part, tails everywhere.
    "split": heuristics.Heuristics(
        tile=256, narrow=128, scattered=64, programs=12, shortest_tiles=1, row_bytes=16,
        resident=0, fused=0, vectors=64, finish_tile=16,
    ),
    # One launch that passes twice over its channels.
    "looped": heuristics.Heuristics(
        tile=256, narrow=128, scattered=64, resident=0, fused=10**9, sector=16
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=CHOICES)
def choice(request, monkeypatch) -> str:
    """Each set of launch choices in turn, or the one that a test names."""
    monkeypatch.setattr(heuristics, "DEFAULT", CHOICES[request.param])
    return request.param
