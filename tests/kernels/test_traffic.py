"""Traffic against passes counted by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sbnbench.errors import NotApplicable, UnknownName
from sbnbench.registry import normalizers
from sbnbench_kernels.traffic import FULL, SAMPLED, passes, sampled_share, traffic

SHAPE = (32, 64, 56, 56)
SIZE = 32 * 64 * 56 * 56
PATCH = {"ratio": 1 / 16, "position": "per-sample", "redraw": 1}


def test_batchnorm_in_bytes():
    forward = traffic("bn", {}, SHAPE, "float32", "fwd")
    assert forward.read == 2 * SIZE * 4
    assert forward.written == SIZE * 4
    assert traffic("bn", {}, SHAPE, "bfloat16", "bwd").moved == 5 * SIZE * 2
    assert traffic("bn", {}, SHAPE, "bfloat16", "fwd_bwd").moved == 8 * SIZE * 2


def test_feature_sampling_saves_what_theory_says():
    """8/5.19 = 1.54 at 1/16, the patch 14×14 of 56×56 being exactly that."""
    params = {**PATCH, "backward": "sampled"}
    full = passes("bn", {}, SHAPE, "fwd_bwd").total
    sampled = passes("fs", params, SHAPE, "fwd_bwd").total
    assert full / sampled == pytest.approx(8 / (5 + 3 / 16))
    assert full / sampled == pytest.approx(1.54, abs=0.005)


def test_scattered_samples_move_whole_lines():
    """Where channels lie side by side the theory holds; in contiguous maps a patch of 14 float16
    in rows of 56 touches 0.199 of the lines, and elements most of them."""
    params = {**PATCH, "backward": "sampled"}
    together = traffic("fs", params, SHAPE, "float16", "fwd_bwd", form="channels_last")
    assert together.moved == pytest.approx((5 + 3 / 16) * SIZE * 2)
    apart = traffic("fs", params, SHAPE, "float16", "fwd_bwd")
    assert apart.moved / SIZE / 2 == pytest.approx(5 + 2 * 0.199 + 1 / 16, abs=0.001)
    assert apart.flops == together.flops
    single = traffic("ns", {**params, "ratio": 1 / 16}, SHAPE, "float32", "fwd").read
    assert single / SIZE / 4 == pytest.approx(1 + 1 - (15 / 16) ** 16)
    sectors = traffic("fs", params, SHAPE, "float16", "fwd", device="cuda").read
    assert sectors < traffic("fs", params, SHAPE, "float16", "fwd").read
    rows = traffic("bs", {"ratio": 1 / 16, "backward": "sampled"}, SHAPE, "float16", "fwd_bwd")
    assert rows.moved == pytest.approx((5 + 3 / 16) * SIZE * 2)


@pytest.mark.parametrize(
    ("mode", "backward"), [("exact", 5), ("sampled", 3 + 2 / 8), ("detached", 3)]
)
def test_backward_modes(mode, backward):
    params = {"ratio": 1 / 8, "redraw": 1, "backward": mode}
    assert passes("bs", params, SHAPE, "fwd").total == 2 + 1 / 8
    assert passes("bs", params, SHAPE, "bwd").total == backward


@pytest.mark.parametrize(
    ("name", "params", "shape", "share"),
    [
        ("bs", {"ratio": 1 / 16}, (8, 3, 5, 5), 1 / 8),  # one row at least
        ("bs", {"ratio": 0.3}, (10, 3), 3 / 10),
        ("ns", {"ratio": 0.1}, (2, 3, 7), 1 / 14),  # round(1.4)
        ("fs", {"ratio": 1 / 16}, (4, 3, 7, 7), 4 / 49),  # 2×2 is nearest to 3.06 in log
        ("fs", {"ratio": 1 / 4}, (4, 3, 8), 2 / 8),
        ("vdn", {"num_virtual": 2}, (10, 3, 4), 2 / 10),
        ("bs+vdn", {"ratio": 0.25, "num_virtual": 2, "beta": 0.5}, (10, 3, 4), (2 + 2) / 10),
        ("bs+vdn", {"ratio": 0.25, "num_virtual": 2, "beta": 0}, (10, 3, 4), 2 / 10),
        ("fs+vdn", {"ratio": 0.25, "num_virtual": 2, "beta": 1}, (10, 3, 4), 2 / 10),
        ("fs+vdn", {"ratio": 0.25, "num_virtual": 2, "beta": 0.5}, (10, 3, 4), (8 / 4 + 2) / 10),
    ],
)
def test_shares_as_the_draws_round(name, params, shape, share):
    assert sampled_share(name, params, shape) == pytest.approx(share)


def test_shares_are_those_of_the_samplers():
    from sbnbench.registry import build, parse_contender

    shapes = [(5, 3, 9, 7), (32, 4, 14, 14), (9, 2, 5), (3, 2, 3, 4, 5)]
    for name in SAMPLED:
        params = normalizers()[name].resolve({})
        for shape in shapes:
            share, _ = build(parse_contender(name)).describe(shape)
            assert sampled_share(name, params, shape) == pytest.approx(share), (name, shape)


def test_l1bn_reads_once_more_and_residents_read_once():
    assert passes("l1bn", {}, SHAPE, "fwd").total == 4
    for name in FULL:
        assert passes(name, {}, SHAPE, "fwd", resident=True).total == 2
        assert passes(name, {}, SHAPE, "bwd", resident=True).total == 3
        assert passes(name, {}, SHAPE, "bwd").total == 5


def test_everything_sampled_is_batchnorm():
    params = {"ratio": 1.0, "backward": "sampled"}
    for direction in ("fwd", "bwd"):
        assert passes("bs", params, SHAPE, direction) == passes("bn", {}, SHAPE, direction)


def test_operations_stay_far_under_a_roofline_ridge():
    for name in FULL:
        assert 0.2 < traffic(name, {}, SHAPE, "bfloat16", "fwd_bwd").intensity < 5


def test_what_has_no_answer():
    with pytest.raises(UnknownName, match="did you mean bn"):
        passes("bnn", {}, SHAPE, "fwd")
    with pytest.raises(NotApplicable):
        passes("vdn", {"num_virtual": 4, "backward": "exact"}, (4, 3), "fwd")
    with pytest.raises(NotApplicable):
        passes("fs", {**PATCH, "backward": "exact"}, (4, 3), "fwd")


def test_no_torch_is_imported():
    code = "import sys, sbnbench_kernels.traffic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
