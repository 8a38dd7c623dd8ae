"""cbn, kn and vbn: statistics that come from elsewhere than the batch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.cbn import CrossIterationBatchNorm, observe
from sbnbench_kernels.eager.kalman import KalmanNorm, predict
from sbnbench_kernels.eager.virtual_batch import VirtualBatchNorm

EPS = 1e-5


def spread(t, x):
    return t.view(*(t.shape if t.dim() == 2 else (1, -1)), *[1] * (x.dim() - 2))


def affine(y, w, b):
    y = y if w is None else y * spread(w, y)
    return y if b is None else y + spread(b, y)


def moments(x):
    r = x.transpose(0, 1).flatten(1)
    return r.mean(1), r.var(1, correction=0)


def normalize(x, mean, var, w, b):
    return affine((x - spread(mean, x)) / (spread(var, x) + EPS).sqrt(), w, b)


def blend(old, new, momentum, x=None):
    n = 0 if x is None else x.numel() / x.shape[1]
    return (1 - momentum) * old + momentum * new.detach() * (1 if x is None else n / (n - 1))


# --- cbn


def cross(x, w, b, rm, rv, momentum, past):
    """past: (μ, ν) of earlier iterations, corrected; the formulas of the paper as printed."""
    mean, var = moments(x)
    means = torch.stack([mean, *(m for m, _ in past)])
    squares = torch.stack([var + mean**2, *(s for _, s in past)])
    united = means.mean(0)
    spread_ = torch.maximum(squares, means**2).mean(0) - united**2
    y = normalize(x, united, spread_, w, b)
    return y, blend(rm, mean, momentum), blend(rv, var, momentum, x)


@pytest.mark.parametrize("kind", ["nc", "ncl", "nchw", "ncdhw"])
def test_cbn_without_observed_weights(check, kind):
    state, op, past = check.state(6), CrossIterationBatchNorm(window=3), []
    for step in range(5):
        x = check.draw(check.SHAPES[kind], seed=step)
        check(op, partial(cross, past=past[-2:]), x.shape, state=state, x=x)
        mean, var = moments(x)
        past.append((mean, var + mean**2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_cbn_dtypes_and_formats(check, dtype, memory):
    state, op, past = check.state(6), CrossIterationBatchNorm(window=2), []
    for step in range(2):
        x = check.draw((8, 6, 5, 4), seed=step, dtype=dtype)
        formula = partial(cross, past=past)
        check(op, formula, x.shape, dtype, check.FORMATS[memory], state=state, x=x)
        mean, var = moments(x.double())
        past = [(mean, var + mean**2)]


LAYERS = {
    "linear": (lambda: nn.Linear(5, 4, bias=False), (7, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 4, 3, groups=2, bias=False), (4, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), (4, 3, 7, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2, dilation=2, bias=False), (3, 2, 4, 4, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_observed_slopes_are_what_autograd_gives(check, name):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, given, state = make().double(), check.draw(shape), State()
    x = layer(given)
    observe(layer, given, x.detach(), state)
    for key, k in (("mean_slope", 0), ("var_slope", 1)):
        (slope,) = torch.autograd.grad(moments(layer(given))[k].sum(), layer.weight)
        torch.testing.assert_close(state.extra[key], slope.flatten(1))
    assert torch.equal(state.extra["theta"], layer.weight.detach().flatten(1))


@pytest.mark.parametrize("name", LAYERS)
def test_cbn_with_moving_weights(check, name):
    """The paper's expansion of μ and ν, by autograd, over iterations in which θ moves."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, state = make().double(), check.state(4)
    op, past = CrossIterationBatchNorm(window=3), []
    for step in range(5):
        given = check.draw(shape, seed=step)
        x, theta = layer(given), layer.weight.detach().clone()
        observe(layer, given, x.detach(), state)
        moved = [
            tuple(v + (s * (theta - old)).flatten(1).sum(1) for v, s in zip(vs, ss, strict=True))
            for vs, ss, old in past[-2:]
        ]
        check(op, partial(cross, past=moved), x.shape, state=state, x=x.detach())
        mean, var = moments(x)
        square = var + mean**2
        slopes = [
            torch.autograd.grad(t.sum(), layer.weight, retain_graph=True)[0] for t in (mean, square)
        ]
        past.append(((mean.detach(), square.detach()), slopes, theta))
        with torch.no_grad():
            layer.weight += 0.1 * torch.randn_like(layer.weight)


def test_cbn_correction_follows_the_weights(check):
    """Where one batch passes twice and θ moved a little, the corrected old statistics are the new
    ones to first order; uncorrected they are not."""
    torch.manual_seed(0)
    layer, given = nn.Conv2d(3, 4, 3, bias=False).double(), check.draw((4, 3, 6, 6))
    op, states = CrossIterationBatchNorm(window=2), (State(), State())
    for step in range(2):
        x = layer(given).detach()
        observe(layer, given, x, states[0])
        outputs = [op.forward(x, None, None, state)[0] for state in states]
        if step == 0:
            with torch.no_grad():
                layer.weight += 1e-4 * torch.randn_like(layer.weight)
    exact = F.batch_norm(x, None, None, training=True, eps=EPS)
    errors = [(y - exact).abs().max().item() for y in outputs]
    assert errors[0] < 0.02 * errors[1]


def test_cbn_burnin_and_window_of_one_are_batch_norm(check):
    for op in (CrossIterationBatchNorm(burnin=5), CrossIterationBatchNorm(window=1)):
        state = check.state(6)
        for step in range(4):
            x = check.draw((5, 6, 3, 3), seed=step)
            check(op, partial(cross, past=[]), x.shape, state=state, x=x)


def test_cbn_refuses_other_layers(check):
    layer = nn.Conv2d(3, 4, 3, padding="same", bias=False)
    x = torch.randn(2, 3, 5, 5)
    with pytest.raises(NotApplicable, match="no derivative"):
        observe(layer, x, layer(x).detach(), State())


# --- kn


def kalman(x, w, b, rm, rv, momentum, before=None, p=0.3):
    mean, var = moments(x)
    if before is not None:
        gap = mean - before[0]
        var = p * before[1] + (1 - p) * var + p * (1 - p) * gap**2
        mean = p * before[0] + (1 - p) * mean
    return normalize(x, mean, var, w, b), blend(rm, mean, momentum), blend(rv, var, momentum)


@pytest.mark.parametrize("kind", ["nc", "ncl", "nchw", "ncdhw"])
@pytest.mark.parametrize("chained", [True, False])
def test_kn(check, kind, chained):
    state = check.state(6)
    before = (torch.linspace(-2, 2, 6).double(), torch.linspace(0.1, 3, 6).double())
    if chained:
        state.extra.update(before_mean=before[0], before_var=before[1])
    formula = partial(kalman, before=before if chained else None)
    check(KalmanNorm(p=0.3), formula, check.SHAPES[kind], state=state)
    x = check.draw(check.SHAPES[kind])
    mean, var = moments(x)
    if chained:
        mean, var, _ = predict(mean, var, *before, 0.3)
    torch.testing.assert_close(state.extra["mean"], mean)
    torch.testing.assert_close(state.extra["var"], var)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_kn_dtypes_and_formats(check, dtype, memory):
    state = check.state(6)
    before = (torch.linspace(-2, 2, 6).double(), torch.linspace(0.1, 3, 6).double())
    state.extra.update(before_mean=before[0], before_var=before[1])
    formula = partial(kalman, before=before)
    check(KalmanNorm(p=0.3), formula, (8, 6, 5, 4), dtype, check.FORMATS[memory], state=state)


def test_kn_keeps_its_own_statistics_where_layers_are_unlike(check):
    state = check.state(6)
    state.extra.update(before_mean=torch.zeros(6), before_var=torch.full((6,), 1e9))
    check(KalmanNorm(p=0.3), kalman, (4, 6, 3, 3), state=state)


# --- vbn


def virtual_batch(x, w, b, rm, rv, momentum, count=3):
    reference = x[-count:].transpose(0, 1).flatten(1)
    ref_mean, ref_square = reference.mean(1), reference.square().mean(1)
    rows = []
    for k, sample in enumerate(x):
        flat = sample.reshape(len(sample), -1)
        c = 0 if k >= len(x) - count else 1 / (count + 1)
        mean = c * flat.mean(1) + (1 - c) * ref_mean
        square = c * flat.square().mean(1) + (1 - c) * ref_square
        std = (square - mean**2 + EPS).sqrt()
        rows.append(((flat - mean[:, None]) / std[:, None]).reshape(sample.shape))
    new_var = (ref_square - ref_mean**2).detach()
    return affine(torch.stack(rows), w, b), ref_mean.detach(), new_var


@pytest.mark.parametrize("kind", ["nc", "ncl", "nchw", "ncdhw"])
@pytest.mark.parametrize("affined", [True, False])
def test_vbn(check, kind, affined):
    check(VirtualBatchNorm(num_virtual=3), virtual_batch, check.SHAPES[kind], affine=affined)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_vbn_dtypes_and_formats(check, dtype, memory):
    op = VirtualBatchNorm(num_virtual=3)
    check(op, virtual_batch, (8, 6, 5, 4), dtype, check.FORMATS[memory])


def test_vbn_sample_does_not_see_the_others(check):
    op, x = VirtualBatchNorm(num_virtual=3), check.draw((8, 6, 4, 4))
    y, _ = op.forward(x, None, None, State())
    other = x.clone()
    other[1:5] = check.draw((4, 6, 4, 4), seed=7)
    again, _ = op.forward(other, None, None, State())
    assert torch.equal(y[0], again[0])
    assert torch.equal(y[5:], again[5:])


def test_vbn_eval_remembers_the_reference(check):
    """Each sample comes out of eval() as it came out of the last training batch."""
    op, state, x = VirtualBatchNorm(num_virtual=3), check.state(6), check.draw((8, 6, 4, 4))
    y, _ = op.forward(x, None, None, state)
    state.training = False
    for row in range(5):
        alone, _ = op.forward(x[row : row + 1], None, None, state)
        torch.testing.assert_close(alone[0], y[row])

    def formula(x, w, b, rm, rv, _):
        flat = x.flatten(2)
        own, var = flat.mean(2), flat.var(2, correction=0)
        mean = own / 4 + rm * 3 / 4
        var = var / 4 + rv * 3 / 4 + 3 / 16 * (own - rm) ** 2
        return normalize(x, mean, var, w, b), rm, rv

    check(op, formula, (5, 6, 4, 4), state=state)


def test_vbn_needs_a_reference():
    with pytest.raises(NotApplicable, match="num_virtual=4"):
        VirtualBatchNorm(num_virtual=4).forward(torch.randn(4, 3), None, None, State())
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        VirtualBatchNorm(num_virtual=1).forward(torch.randn(4, 3), None, None, State())


# --- all


OPS = {
    "cbn": CrossIterationBatchNorm,
    "kn": KalmanNorm,
    "vbn": partial(VirtualBatchNorm, num_virtual=3),
}


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.1, 6e4, -6e4])
def test_constant_input_stays_finite(check, name, dtype, value):
    op, x = OPS[name](), torch.full((8, 4, 3, 3), value, dtype=dtype)
    state = State(torch.zeros(4), torch.ones(4))
    for _ in range(3):
        y, saved = op.forward(x, torch.ones(4), torch.zeros(4), state)
        gradients = op.backward(check.draw(tuple(x.shape), dtype=dtype), saved)
        assert all(t.isfinite().all() for t in (y, *gradients))


@pytest.mark.parametrize("name", ["cbn", "kn"])
def test_eval_is_batch_norm_eval(check, name):
    def formula(x, w, b, rm, rv, _):
        return F.batch_norm(x, rm, rv, w, b, False, 0, EPS), rm, rv

    state = check.state(6, training=False)
    check(OPS[name](), formula, (4, 6, 3, 3), state=state)
    check(OPS[name](), formula, (1, 6), state=state)


@pytest.mark.parametrize("name", ["cbn", "kn"])
def test_one_value_a_channel(name):
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        OPS[name]().forward(torch.ones(1, 3), None, None, State())
