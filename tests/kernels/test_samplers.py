"""What is drawn: reproducible, within bounds, uniform; and what is said of a degenerate setting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sbnbench.errors import NotApplicable
from sbnbench.registry import build, parse_contender
from sbnbench_kernels.draws import BLOCK
from sbnbench_kernels.samplers import Elements, bessel
from sbnbench_kernels.sampling import Box, draw_elements, draw_patches, draw_rows

CPU = torch.device("cpu")
SAMPLED = ["ns", "bs", "fs", "fs[position=shared]", "bs+vdn", "fs+vdn"]
UNLIKELY = 1e-6


def draw(text: str, shape: tuple[int, ...], seed: int, step: int):
    return build(parse_contender(text)).sampler.draw(shape, seed, step, CPU)


def values(sample) -> list[object]:
    """The draw as comparable numbers."""
    found: list[object] = []
    for share in sample:
        if isinstance(share.part, Elements):
            found.append(share.part.positions.tolist())
        else:
            start, count, corners, patch = share.part
            found.append((start, count, None if corners is None else corners.tolist(), patch))
    return found


@pytest.mark.parametrize("text", SAMPLED)
def test_seed_and_step_alone_select_the_draw(text):
    shape = (32, 3, 16, 16)
    first = [values(draw(text, shape, 7, step)) for step in range(20)]
    assert first == [values(draw(text, shape, 7, step)) for step in range(20)]
    assert first != [values(draw(text, shape, 8, step)) for step in range(20)]
    assert any(first[0] != other for other in first[1:])
    for step in (0, BLOCK - 1, BLOCK, 10**6):
        assert values(draw(text, shape, 2**64 - 1, step)) == values(
            draw(text, shape, 2**64 - 1, step)
        )


@pytest.mark.parametrize("name", ["ns", "bs", "fs"])
def test_redraw(name):
    shape = (32, 3, 16, 16)
    never = [values(draw(f"{name}[redraw=0]", shape, 1, step)) for step in range(600)]
    assert all(v == never[0] for v in never)
    fourth = [values(draw(f"{name}[redraw=4]", shape, 1, step)) for step in range(40)]
    assert all(fourth[i] == fourth[i // 4 * 4] for i in range(40))
    assert len({str(v) for v in fourth}) > 5


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["ns", "bs", "fs", "bs+vdn", "fs+vdn", "vdn"]),
    shape=st.tuples(*(st.integers(2, k) for k in (12, 3, 12, 12))),
    ratio=st.floats(0.01, 1),
    step=st.integers(0, 1000),
)
def test_samples_stay_within_their_bounds(name, shape, ratio, step):
    text = name if name == "vdn" else f"{name}[ratio={ratio}]"
    sample = draw(text, shape, 3, step)
    assert sum(share.weight for share in sample) == pytest.approx(1)
    real = shape[0] - ("vdn" in name)
    for share in sample:
        if isinstance(share.part, Elements):
            positions = share.part.positions
            assert positions.unique().numel() == positions.numel() == share.size
            assert 0 <= positions.min() <= positions.max() < shape[0] * shape[2] * shape[3]
            continue
        start, count, corners, patch = share.part
        assert count >= 1
        assert start >= 0
        assert (start, start + count) == (real, shape[0]) or start + count <= real
        if corners is not None:
            assert corners.shape == (count, 2)
            assert (corners >= 0).all()
            assert (corners + torch.tensor(patch) <= torch.tensor(shape[2:])).all()
    if name in ("ns", "bs", "fs") and sample[0].size > 1:
        assert bessel(sample) == pytest.approx(sample[0].size / (sample[0].size - 1))


def test_elements_are_uniform_in_margin():
    hits = torch.zeros(200)
    for step in range(40 * BLOCK):
        hits[draw_elements(200, 1 / 20, 3, step, CPU)] += 1
    # The shifts of one block share a set; between steps draws are nearly independent.
    assert stats.chisquare(hits.numpy()).pvalue > UNLIKELY
    assert hits.sum() == 40 * BLOCK * 10


def test_rows_are_uniform_over_their_starts():
    starts = np.bincount([draw_rows(32, 1 / 8, 5, step).start for step in range(8000)])
    assert len(starts) == 29
    assert stats.chisquare(starts).pvalue > UNLIKELY


@pytest.mark.parametrize("position", ["per-sample", "shared"])
def test_corners_are_uniform_and_independent_between_rows(position):
    def corners(step: int) -> torch.Tensor:
        box = draw_patches(8, (7, 9), 1 / 16, position, 5, step, CPU)
        assert box.corners is not None
        return box.corners

    drawn = torch.stack([corners(step) for step in range(3000)])  # (steps, rows, 2)
    box = draw_patches(8, (7, 9), 1 / 16, position, 5, 0, CPU)
    room = [7 - box.patch[0] + 1, 9 - box.patch[1] + 1]
    rows = 8 if position == "per-sample" else 1
    places = drawn[:, :rows, 0] * room[1] + drawn[:, :rows, 1]
    counts = torch.bincount(places.flatten(), minlength=room[0] * room[1])
    assert stats.chisquare(counts.numpy()).pvalue > UNLIKELY
    same = (drawn[:, 0] == drawn[:, 1]).all(1).float().mean()
    assert same == (1 if position == "shared" else pytest.approx(1 / (room[0] * room[1]), abs=0.02))


def test_fixed_is_the_centre():
    box = draw_patches(4, (9, 9), 1 / 9, "fixed", 0, 17, CPU)
    assert box.corners is not None
    assert box.patch == (3, 3)
    assert box.corners.tolist() == [[3, 3]] * 4


@pytest.mark.parametrize(
    ("text", "shape", "share", "notes"),
    [
        ("bn", (8, 3, 4, 4), 1, ()),
        ("bs", (32, 3, 4, 4), 1 / 16, ()),
        ("bs", (1, 3, 8, 8), 1, ("ratio 1/16 of batch 1 takes the whole batch: no sampling",)),
        ("bs", (4, 3, 8, 8), 1 / 4, ("ratio 1/16 of batch 4 becomes 0.25: 1 of 4",)),
        ("bs[ratio=1]", (4, 3, 8, 8), 1, ()),
        ("fs", (1, 3, 8, 8), 1 / 16, ()),
        ("fs", (8, 3, 1, 1), 1, ("ratio 1/16 of a 1×1 map takes the whole map: no sampling",)),
        ("fs", (8, 3, 3, 3), 1 / 9, ("ratio 1/16 of a 3×3 map becomes 0.111: 1 of 9",)),
        ("ns", (2, 3, 2, 1), 1 / 4, ("ratio 1/16 of 4 values becomes 0.25: 1 of 4",)),
        ("vdn", (33, 3, 4, 4), 1 / 33, ()),
        ("bs+vdn", (33, 3, 4, 4), 3 / 33, ()),
        (
            "bs+vdn[num_virtual=2]",
            (3, 3, 4, 4),
            1,
            ("ratio 1/16 of batch 1 takes the whole batch: no sampling",),
        ),
    ],
)
def test_describe(text, shape, share, notes):
    described = build(parse_contender(text)).describe(shape)
    assert described == (pytest.approx(share), notes)


@pytest.mark.parametrize("text", ["vdn[num_virtual=4]", "bs+vdn[num_virtual=4]"])
def test_a_real_row_is_needed(text):
    with pytest.raises(NotApplicable, match="num_virtual=4 leaves no real row of the 4 rows given"):
        build(parse_contender(text)).describe((4, 3, 8, 8))
    with pytest.raises(NotApplicable, match="leaves no real row"):
        draw(text, (4, 3, 8, 8), 0, 0)


def test_fs_needs_a_map():
    with pytest.raises(NotApplicable, match="needs a feature map"):
        draw("fs", (4, 3), 0, 0)


def test_whole_maps_are_views():
    for text in ("fs[ratio=1]", "ns[ratio=1]", "bs[ratio=1]", "bn"):
        (share,) = draw(text, (4, 3, 5, 5), 0, 0)
        assert isinstance(share.part, Box)
        assert share.part.corners is None
