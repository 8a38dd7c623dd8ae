"""Inputs are reproducible, awkward in the ways they claim, and rounded only once."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from sbnbench import inputs
from sbnbench.errors import NotApplicable, UnknownName, UsageError
from sbnbench.inputs import make, population
from sbnbench.layers import LAYERS, layer_shape
from sbnbench.model import Workload
from sbnbench.population import ROWS, VIRTUAL
from sbnbench.synthetic import Channels

SHAPES = [(), (9,), (6, 5), (4, 5, 3), (1, 1)]
MAPS = Workload("synthetic", 8, 16, (12, 10))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SBNBENCH_CACHE", str(tmp_path / "cache"))


def tensors(made: inputs.Inputs) -> tuple[Tensor, ...]:
    return made.x, made.dy, made.weight, made.bias


@pytest.mark.parametrize("spatial", SHAPES)
def test_the_same_workload_gives_the_same_bits(spatial):
    workload = Workload("synthetic", 5, 7, spatial)
    for a, b in zip(tensors(make(workload, 1)), tensors(make(workload, 1)), strict=True):
        assert torch.equal(a, b)


def test_bits_do_not_depend_on_the_number_of_threads():
    workload = Workload("synthetic", 4, 32, (40, 40))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = make(workload, 1)
        torch.set_num_threads(4)
        four = make(workload, 1)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(four), strict=True))


def test_a_fresh_draw_and_another_seed_change_every_tensor():
    first = make(MAPS, 1)
    other_seed = make(Workload("synthetic", 8, 16, (12, 10), seed=1), 1)
    for other in (first.fresh(1), first.fresh(2), other_seed):
        for a, b in zip(tensors(first), tensors(other), strict=True):
            assert a.shape == b.shape
            assert not torch.isclose(a, b).any(dim=0).all()
    assert torch.equal(first.fresh(0).x, first.x)


def test_a_fresh_gradient_has_noise_of_its_own():
    first = make(Workload("synthetic", 16, 8, (20, 20)))
    a, b = (d.dy.transpose(0, 1).flatten(1) for d in (first, first.fresh(1)))
    alike = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(a, b, strict=True)]
    assert max(abs(float(r)) for r in alike) < 0.3


def test_fresh_draws_come_from_the_same_channels():
    first, fresh = make(MAPS), make(MAPS).fresh(1)
    a, b = (t.x.mean((0, 2, 3)) for t in (first, fresh))
    assert torch.corrcoef(torch.stack((a, b)))[0, 1] > 0.9


@pytest.mark.parametrize("spatial", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_shape_and_dtype(spatial, dtype):
    made = make(Workload("synthetic", 3, 7, spatial, dtype=dtype), 2)
    assert made.x.shape == made.dy.shape == (5, 7, *spatial)
    assert made.weight.shape == made.bias.shape == (7,)
    assert made.x.dtype == made.dy.dtype == getattr(torch, dtype)
    wide = torch.float64 if dtype == "float64" else torch.float32
    assert made.weight.dtype == made.bias.dtype == wide
    assert all(t.isfinite().all() for t in tensors(made))
    assert made.x.is_contiguous()
    assert made.dy.is_contiguous()


@pytest.mark.parametrize("spatial", [(6, 5), (4, 5, 3)])
def test_channels_last(spatial):
    workload = Workload("synthetic", 3, 7, spatial, format="channels_last")
    made = make(workload, 1)
    last = torch.channels_last if len(spatial) == 2 else torch.channels_last_3d
    assert made.x.is_contiguous(memory_format=last)
    assert made.dy.is_contiguous(memory_format=last)
    plain = make(Workload("synthetic", 3, 7, spatial), 1)
    assert torch.equal(made.x, plain.x)
    assert all(t.is_contiguous() for t in made.double())


@pytest.mark.parametrize("spatial", [(), (9,)])
def test_channels_last_needs_a_map(spatial):
    with pytest.raises(NotApplicable, match="two or three spatial sizes"):
        make(Workload("synthetic", 3, 7, spatial, format="channels_last"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_double_gives_the_rounded_values(dtype):
    full = make(MAPS)
    rounded = make(Workload("synthetic", 8, 16, (12, 10), dtype=dtype))
    for exact, seen, double in zip(tensors(full), tensors(rounded), rounded.double(), strict=True):
        assert double.dtype == torch.float64
        assert torch.equal(double, exact.to(seen.dtype).double())
        assert torch.equal(double.to(seen.dtype), seen)
    assert not torch.equal(rounded.double()[0], full.x.double())


@pytest.mark.parametrize("spatial", SHAPES)
def test_virtual_rows_follow_the_real_ones_and_leave_them_alone(spatial):
    workload = Workload("synthetic", 3, 7, spatial)
    none, one, two = make(workload, 0), make(workload, 1), make(workload, 2)
    for name in ("x", "dy"):
        assert torch.equal(getattr(one, name)[:3], getattr(none, name))
        assert torch.equal(getattr(two, name)[:4], getattr(one, name))
    assert torch.equal(two.weight, none.weight)
    assert not torch.equal(two.x[3], two.x[4])


def test_virtual_rows_have_the_channels_moments_and_no_heavy_tails():
    channels = Channels(24, (32, 32), 0)
    virtual = channels.virtual(16, "test").double().transpose(0, 1).flatten(1)
    var, mean = torch.var_mean(virtual, 1, correction=0)
    assert torch.allclose(mean, channels.mean.double(), atol=0.05 * float(channels.scale.max()))
    assert torch.allclose(var.sqrt() / channels.deviation, torch.ones(24).double(), atol=0.03)
    assert kurtosis(virtual).sub(3).abs().max() < 0.3


# What sets these inputs apart from randn, as measurements. Each is tried on randn as well, so
# that a measurement which cannot tell the two apart fails.


def kurtosis(values: Tensor) -> Tensor:
    z = (values - values.mean(1, keepdim=True)) / values.std(1, keepdim=True)
    return (z**4).mean(1)


def neighbour_correlation(x: Tensor) -> Tensor:
    a, b = x[..., :-1].transpose(0, 1).flatten(1), x[..., 1:].transpose(0, 1).flatten(1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()


def intraclass_correlation(x: Tensor) -> Tensor:
    """(MSB − MSW) / (MSB + (m−1)·MSW), rows being the classes."""
    values = x.flatten(2)
    m = values.shape[2]
    between = m * values.mean(2).var(0)
    within = values.var(2).mean(0)
    return (between - within) / (between + (m - 1) * within)


@pytest.fixture(scope="module")
def many() -> Tensor:
    return make(Workload("synthetic", 96, 64, (24, 24))).x.double()


@pytest.fixture(scope="module")
def plain() -> Tensor:
    return torch.randn(96, 64, 24, 24, generator=torch.Generator().manual_seed(0)).double()


def test_channels_have_offsets_and_scales(many, plain):
    def spread(x: Tensor) -> tuple[Tensor, Tensor]:
        var, mean = torch.var_mean(x, (0, 2, 3))
        return mean / var.sqrt(), var.sqrt()

    offsets, scales = spread(many)
    assert offsets.abs().max() > 3
    assert (offsets.abs() > 1).float().mean() > 0.3
    assert scales.max() / scales.min() > 10
    offsets, scales = spread(plain)
    assert offsets.abs().max() < 0.1
    assert scales.max() / scales.min() < 1.1


def test_values_have_heavy_tails(many, plain):
    assert kurtosis(many.transpose(0, 1).flatten(1)).median() > 4.5
    assert kurtosis(plain.transpose(0, 1).flatten(1)).median() < 3.1


def test_positions_are_correlated(many, plain):
    found = neighbour_correlation(many)
    assert found.median() > 0.5
    assert found.max() - found.min() > 0.3, "each channel has a correlation length of its own"
    assert neighbour_correlation(plain).median() < 0.05


def test_rows_differ_from_each_other(many, plain):
    found = intraclass_correlation(many)
    assert 0.1 < found.median() < 0.35
    assert found.min() > 0.01
    assert intraclass_correlation(plain).median() < 0.01


def test_some_channels_are_nearly_dead_and_none_is_constant(many):
    channels = Channels(64, (24, 24), 0)
    dead = channels.nearly_dead
    assert int(dead.sum()) == 8
    centred = (many - many.transpose(0, 1).flatten(1).median(1).values[:, None, None]).abs()
    still = (centred < 0.05 * channels.scale[:, None, None]).double().mean((0, 2, 3))
    assert (still[dead] > 0.85).all()
    assert (still[~dead] < 0.2).all()
    small = make(Workload("synthetic", 2, 64, (3, 3))).x.double()
    assert (small.var((0, 2, 3)) > 0).all()


@pytest.mark.parametrize("spatial", [(), (33,), (17, 20), (7, 9, 8)])
def test_stated_moments_hold_at_every_position(spatial):
    channels = Channels(12, spatial, 3)
    x = channels.rows(3000, "test").double()
    var, mean = torch.var_mean(x, 0)
    wide = (-1, *(1,) * len(spatial))
    z = (mean - channels.mean.reshape(wide)) / channels.deviation.reshape(wide) * 3000**0.5
    assert z.abs().max() < 6
    assert 0.8 < z.square().mean().sqrt() < 1.2
    ratio = var / channels.deviation.reshape(wide).square()
    per_channel = ratio.reshape(12, -1).mean(1)
    assert (per_channel - 1).abs().max() < 0.15
    heavy = ~channels.nearly_dead
    # sd of s²/σ² at kurtosis 6.6 is √(5.6/3000) = 0.043.
    assert (ratio[heavy] - 1).abs().max() < 0.35


def test_gradients_and_affine_parameters_are_not_trivial():
    made = make(Workload("synthetic", 16, 64, (14, 14)))
    x, dy, weight, bias = made.double()
    var, mean = torch.var_mean(x, (0, 2, 3), keepdim=True)
    scaled = dy / dy.std((0, 2, 3), keepdim=True)
    share = ((x - mean) / var.sqrt() * scaled).mean((0, 2, 3))
    assert share.min() > 0.05
    assert 0.15 < share.median() < 0.45
    assert scaled.mean((0, 2, 3)).abs().max() > 0.2
    assert (weight - 1).abs().max() > 0.2
    assert 0 < (weight < 0).double().mean() < 0.4
    assert weight.abs().min() >= 0.5
    assert bias.std() > 0.3


def test_population_of_a_synthetic_workload_is_made_once_and_kept(monkeypatch):
    workload = Workload("synthetic", 8, 6, (5, 4))
    made = population(workload)
    assert made.shape == (ROWS, 6, 5, 4)
    monkeypatch.setattr(Channels, "rows", None)
    again = population(workload)
    assert torch.equal(made.rows(range(ROWS)), again.rows(range(ROWS)))
    monkeypatch.undo()


def test_population_moments_are_those_of_its_rows():
    found = population(Workload("synthetic", 8, 6, (5, 4)))
    rows = found.rows(range(ROWS)).double()
    var, mean = torch.var_mean(rows, (0, 2, 3), correction=0)
    torch.testing.assert_close(found.mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.var, var, rtol=1e-10, atol=0)
    chosen = [3, 3, 200, 17]
    var, mean = torch.var_mean(rows[chosen], (0, 2, 3), correction=0)
    found_mean, found_var = found.statistics(chosen)
    torch.testing.assert_close(found_mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found_var, var, rtol=1e-10, atol=0)
    assert torch.equal(found.rows(chosen).double(), rows[chosen])


def test_population_rows_are_checked():
    found = population(Workload("synthetic", 8, 6, (5, 4)))
    assert found.virtual(range(VIRTUAL)).shape == (VIRTUAL, 6, 5, 4)
    assert not torch.equal(found.virtual([0]), found.rows([0]))
    for take, beyond in ((found.rows, ROWS), (found.virtual, VIRTUAL), (found.rows, -1)):
        with pytest.raises(IndexError):
            take([beyond])


def test_layer_shape_needs_no_torch():
    code = (
        "import sys; from sbnbench.layers import layer_shape;"
        "print(layer_shape('real:_blocks.3._bn1'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(144, (28, 28)) False"


def test_sources_that_do_not_exist_are_named_with_suggestions():
    with pytest.raises(UnknownName, match=r"did you mean .*_blocks\.3\._bn1"):
        layer_shape("real:blocks.3.bn1")
    with pytest.raises(UsageError, match="synthetic or real:LAYER"):
        layer_shape("photographs")
    with pytest.raises(UsageError, match="no shape of its own"):
        layer_shape("synthetic")


def test_a_layer_has_one_shape():
    with pytest.raises(UsageError, match="_bn0 has"):
        make(Workload("real:_bn0", 4, 32, (56, 56)))
    with pytest.raises(NotApplicable, match="real inputs have 16"):
        make(Workload("real:_bn0", 4, *LAYERS["_bn0"]), num_virtual=VIRTUAL + 1)
