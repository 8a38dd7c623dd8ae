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
        tile=64, narrow=32, scattered=16, programs=24, shortest_tiles=1, row_bytes=16, resident=0,
        fused=0, vectors=8, finish_tile=16,
    ),
    # One launch that passes twice over its channels.
    "looped": heuristics.Heuristics(
        tile=64, narrow=32, scattered=16, resident=0, fused=10**9, sector=16, vectors=8
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
    """Each set of launch choices in turn."""
    monkeypatch.setattr(heuristics, "DEFAULT", CHOICES[request.param])
    return request.param
