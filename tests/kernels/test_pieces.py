"""Patches read by whole vectors: which are, what is read, and that the rest is not counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sbnbench.bench import set_up
from sbnbench.model import Workload
from sbnbench.registry import build, parse_contender
from sbnbench.verify import check
from sbnbench_kernels.contract import State
from sbnbench_kernels.inductor.pieces import pieces_of
from sbnbench_kernels.inductor.sums import moments, sums
from sbnbench_kernels.sampling import draw_patches


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def maps(*spatial: int, dtype: torch.dtype = torch.bfloat16, rows: int = 3) -> Tensor:
    return torch.randn(rows, 2, *spatial).to(dtype)


@pytest.mark.parametrize(
    ("spatial", "patch", "shape"),
    [
        ((28, 28), (7, 7), (1, 192)),
        ((8, 8, 8), (3, 3, 4), (3, 32)),
        ((16, 16, 16), (6, 6, 7), (18, 32)),  # two rows each, as six in 96 cost the same
        ((112, 112), (28, 28), (28, 32)),  # rows that nearly fill a vector
        ((10, 64), (6, 7), (6, 32)),  # short rows far apart
        ((7, 7), (6, 6), (2, 32)),  # six rows would need 64 of the 49 values
    ],
)
def test_pieces_hold_as_many_rows_as_cost_least(
    spatial: tuple[int, ...], patch: tuple[int, ...], shape: tuple[int, int]
) -> None:
    x = maps(*spatial)
    pieces = pieces_of(patch, x)
    assert pieces is not None
    corners = torch.zeros(3, len(spatial), dtype=torch.int64)
    assert pieces.take(x, torch.arange(3), corners).shape == (3, 2, *shape)


def test_a_vector_of_float32_holds_half_as_many() -> None:
    pieces = pieces_of((3, 3, 4), maps(8, 8, 8, dtype=torch.float32))
    assert pieces is not None
    assert (pieces.rows, pieces.length) == (3, 32)  # row by row it would be 16 each, 48 for three


def test_other_patches_are_read_row_by_row() -> None:
    assert pieces_of((14, 14), maps(56, 56)) is None  # rows of nearly half a vector
    assert pieces_of((7, 7), maps(28, 28, dtype=torch.float32)) is None
    assert pieces_of((3, 4), maps(14, 14)) is None  # few values
    assert pieces_of((40,), maps(640)) is None
    assert pieces_of((5, 7), maps(5, 5 * 7)[..., :7]) is None  # maps with gaps
    assert pieces_of((5, 6), maps(5, 6)) is None  # 30 values do not fill a vector
    last = maps(28, 28).contiguous(memory_format=torch.channels_last)
    assert pieces_of((7, 7), last) is None


@pytest.mark.parametrize("spatial", [(28, 28), (8, 8, 8), (7, 9, 11), (40, 16), (112, 112)])
@pytest.mark.parametrize("at", ["first", "last", "drawn"])
def test_only_the_patch_counts_wherever_it_lies(spatial: tuple[int, ...], at: str) -> None:
    """Everything outside the patches is NaN."""
    x, dy = maps(*spatial), maps(*spatial)
    box = draw_patches(3, spatial, 1 / 16, "per-sample", 0, 0, x.device)
    assert box.corners is not None
    room = torch.tensor(spatial) - torch.tensor(box.patch)
    corners = {"first": 0 * box.corners, "last": room.expand(3, -1), "drawn": box.corners}[at]
    pieces = pieces_of(box.patch, x)
    assert pieces is not None
    wanted = []
    for t in (x, dy):
        outside = torch.full_like(t, torch.nan)
        for n, corner in enumerate(corners.tolist()):
            sides = zip(corner, box.patch, strict=True)
            inside = tuple(slice(c, c + size) for c, size in sides)
            outside[n, :][:, *inside] = t[n, :][:, *inside]
        t.copy_(outside)
        wanted.append(outside[~outside.isnan()].double().view(3, 2, -1))
    samples, chosen = torch.arange(3), pieces.chosen(corners)
    part, part_dy = (pieces.take(t, samples, corners) for t in (x, dy))
    mean, var = moments(part, True, chosen)
    values, gradients = wanted
    centre = values.mean((0, 2))
    torch.testing.assert_close(mean.double(), centre)
    torch.testing.assert_close(var.double(), values.var((0, 2), correction=0))
    found = sums(part_dy, part, mean, True, chosen)
    torch.testing.assert_close(found[0].double(), gradients.sum((0, 2)), rtol=1e-5, atol=1e-4)
    weighted = (gradients * (values - centre.view(2, 1))).sum((0, 2))
    torch.testing.assert_close(found[1].double(), weighted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("contender", "shape"),
    [
        ("fs[backward=sampled]", (3, 5, 28, 28)),
        pytest.param("fs", (3, 5, 112, 112), marks=pytest.mark.slow),
        pytest.param("fs+vdn[backward=sampled]", (4, 5, 8, 8, 8), marks=pytest.mark.slow),
        pytest.param(
            "fs[backward=detached,position=fixed]", (2, 3, 40, 16), marks=pytest.mark.slow
        ),
    ],
)
def test_agrees_with_float64(contender: str, shape: tuple[int, ...]) -> None:
    workload = Workload("synthetic", shape[0], shape[1], shape[2:], dtype="bfloat16")
    bench = set_up(parse_contender(f"{contender}@inductor"), workload, 0)
    check(bench, bench.inputs, 0)
    check(bench, bench.inputs.fresh(1), 1)


def test_dy_in_another_memory_format() -> None:
    x, dy, ones = maps(28, 28), maps(28, 28), torch.ones(2)
    op: Any = build(parse_contender("fs[backward=sampled]@inductor"))
    _, saved = op.forward(x, ones, ones, State(seed=1))
    assert saved.copied[0].shape == (3, 2, 1, 192)
    alike = op.backward(dy, saved)
    other = op.backward(dy.contiguous(memory_format=torch.channels_last), saved)
    torch.testing.assert_close(alike, other)
