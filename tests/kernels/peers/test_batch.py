"""brn, ghost, l1bn, rbn, ebn against their formulas, written out in float64."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.ebn import ExtendedBatchNorm
from sbnbench_kernels.eager.ghost import GhostBatchNorm
from sbnbench_kernels.eager.l1bn import L1BatchNorm
from sbnbench_kernels.eager.rbn import RangeBatchNorm
from sbnbench_kernels.eager.renorm import BatchRenorm, limits

EPS = 1e-5


def rows(x):
    """(C, n)."""
    return x.transpose(0, 1).flatten(1)


def unrows(r, x):
    return r.reshape(x.transpose(0, 1).shape).transpose(0, 1)


def affine(xhat, w, b):
    columns = (1, -1, *[1] * (xhat.dim() - 2))
    y = xhat if w is None else xhat * w.view(columns)
    return y if b is None else y + b.view(columns)


def blend(old, new, momentum):
    return None if old is None else (1 - momentum) * old + momentum * new.detach()


def batch_norm(x, w, b, rm, rv, momentum):
    r = rows(x)
    mean, var = r.mean(1), r.var(1, correction=0)
    xhat = (r - mean[:, None]) / (var[:, None] + EPS).sqrt()
    n = r.shape[1]
    return (
        affine(unrows(xhat, x), w, b),
        blend(rm, mean, momentum),
        blend(rv, var * n / (n - 1), momentum),
    )


def renorm(x, w, b, rm, rv, momentum, rmax=3.0, dmax=5.0):
    r = rows(x)
    mean = r.mean(1)
    std = (EPS + (r - mean[:, None]).square().mean(1)).sqrt()
    old = (rv + EPS).sqrt()
    gain = (std / old).clamp(1 / rmax, rmax).detach()
    shift = ((mean - rm) / old).clamp(-dmax, dmax).detach()
    xhat = (r - mean[:, None]) / std[:, None] * gain[:, None] + shift[:, None]
    new_std = old + momentum * (std.detach() - old)
    return (
        affine(unrows(xhat, x), w, b),
        rm + momentum * (mean.detach() - rm),
        new_std.square() - EPS,
    )


def ghost(x, w, b, rm, rv, momentum, size):
    parts = x.tensor_split(max(1, x.shape[0] // size))
    runs = [batch_norm(p, w, b, 0 * rm, 0 * rv, 1.0) for p in parts]
    mean, var = (torch.stack([run[k] for run in runs]).mean(0) for k in (1, 2))
    y = torch.cat([run[0] for run in runs])
    return y, blend(rm, mean, momentum), blend(rv, var, momentum)


def l1(x, w, b, rm, rv, momentum):
    r = rows(x)
    mean = r.mean(1, keepdim=True)
    sigma = math.sqrt(math.pi / 2) * (r - mean).abs().mean(1, keepdim=True)
    xhat = (r - mean) / (sigma.square() + EPS).sqrt()
    n = r.shape[1]
    return (
        affine(unrows(xhat, x), w, b),
        blend(rm, mean[:, 0], momentum),
        blend(rv, sigma[:, 0].square() * n / (n - 1), momentum),
    )


def ranged(x, w, b, rm, rv, momentum, chunks):
    r = rows(x)
    n = r.shape[1]
    chunks = max(k for k in range(1, chunks + 1) if n % k == 0 and (k == 1 or n // k > 1))
    mean = r.mean(1, keepdim=True)
    each = torch.stack([p.max(1).values - p.min(1).values for p in r.chunk(chunks, 1)])
    sigma = each.mean(0)[:, None] / math.sqrt(2 * math.log(n / chunks))
    xhat = (r - mean) / (sigma.square() + EPS).sqrt()
    return (
        affine(unrows(xhat, x), w, b),
        blend(rm, mean[:, 0], momentum),
        blend(rv, sigma[:, 0].square() * n / (n - 1), momentum),
    )


def extended(x, w, b, rm, rv, momentum):
    r = rows(x)
    mean = r.mean(1, keepdim=True)
    var = (r - mean).square().mean()
    n = r.shape[1]
    return (
        affine(unrows((r - mean) / (var + EPS).sqrt(), x), w, b),
        blend(rm, mean[:, 0], momentum),
        blend(rv, var * n / (n - 1), momentum),
    )


CASES = {
    "brn": (partial(BatchRenorm, steps=0), renorm),
    "brn-tight": (
        partial(BatchRenorm, steps=0, rmax=1.1, dmax=0.3),
        partial(renorm, rmax=1.1, dmax=0.3),
    ),
    "ghost": (partial(GhostBatchNorm, size=2), partial(ghost, size=2)),
    "ghost-uneven": (partial(GhostBatchNorm, size=4), partial(ghost, size=4)),
    "l1bn": (L1BatchNorm, l1),
    "rbn": (partial(RangeBatchNorm, chunks=3), partial(ranged, chunks=3)),
    "rbn-one": (partial(RangeBatchNorm, chunks=1), partial(ranged, chunks=1)),
    "ebn": (ExtendedBatchNorm, extended),
}
each = pytest.mark.parametrize("name", CASES)


@each
@pytest.mark.parametrize("kind", ["nc", "ncl", "nchw", "ncdhw"])
@pytest.mark.parametrize("affined", [True, False])
def test_formula(check, name, kind, affined):
    make, formula = CASES[name]
    check(make(), formula, check.SHAPES[kind], affine=affined)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_dtypes_and_formats(check, name, dtype, memory):
    make, formula = CASES[name]
    check(make(), formula, (8, 6, 5, 4), dtype, check.FORMATS[memory])


@each
@given(
    rows=st.integers(2, 9),
    channels=st.integers(1, 5),
    spatial=st.lists(st.integers(1, 4), max_size=3),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_any_shape(check, name, rows, channels, spatial, seed):
    make, formula = CASES[name]
    shape = (rows, channels, *spatial)
    check(make(), formula, shape, x=check.draw(shape, seed))


@each
def test_gradcheck(check, name):
    if name.startswith("brn"):
        pytest.skip("r and d are constants to the gradient; the formula above says so")
    make, _ = CASES[name]

    class Apply(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w, b):
            ctx.op = make()
            y, ctx.kept = ctx.op.forward(x, w, b, check.state(3))
            return y

        @staticmethod
        def backward(ctx, dy):
            return ctx.op.backward(dy, ctx.kept)

    x, w, b = check.draw((6, 3, 2, 2)), check.draw((1, 3), 2)[0], check.draw((1, 3), 3)[0]
    assert torch.autograd.gradcheck(Apply.apply, [t.requires_grad_() for t in (x, w, b)])


@each
def test_eval_is_batch_norm_eval(check, name):
    make, _ = CASES[name]
    state = check.state(6, training=False)

    def formula(x, w, b, rm, rv, _):
        return torch.nn.functional.batch_norm(x, rm, rv, w, b, False, 0, EPS), rm, rv

    check(make(), formula, (4, 6, 3, 3), state=state)
    check(make(), formula, (1, 6), state=state)


@each
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("value", [0.0, 0.1, 6e4, -6e4])
def test_constant_input_stays_finite(check, name, dtype, value):
    make, _ = CASES[name]
    op, x = make(), torch.full((8, 4, 3, 3), value, dtype=dtype)
    y, saved = op.forward(x, torch.ones(4), torch.zeros(4), State(torch.zeros(4), torch.ones(4)))
    gradients = op.backward(check.draw(tuple(x.shape), dtype=dtype), saved)
    assert all(t.isfinite().all() for t in (y, *gradients))


@each
def test_large_float16_values_do_not_overflow(check, name):
    make, formula = CASES[name]
    x = check.draw((8, 6, 5, 4))
    x = (x / x.abs().max() * 6e4).half()
    state = State(torch.zeros(6, dtype=torch.float64), torch.full((6,), 1e8, dtype=torch.float64))
    check(make(), formula, tuple(x.shape), torch.float16, state=state, x=x)


@each
def test_variance_of_a_mean_a_thousand_deviations_away(check, name):
    """Relative error of the averaged variance at most 1e-3 in float32 and of float16 input."""
    make, formula = CASES[name]
    for dtype, far in ((torch.float32, 1e3), (torch.float16, 1e3)):
        x = (torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)) + far).to(dtype)
        state = State(torch.full((3,), far), torch.ones(3), momentum=1.0)
        make().forward(x, None, None, state)
        exact = [torch.full((3,), far).double(), torch.ones(3).double()]
        _, mean, var = formula(x.double(), None, None, *exact, 1.0)
        torch.testing.assert_close(state.running_var.double(), var, rtol=1e-3, atol=0)
        torch.testing.assert_close(state.running_mean.double(), mean, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "op",
    [
        GhostBatchNorm(size=64),
        GhostBatchNorm(size=8),
        BatchRenorm(rmax=1.0, dmax=0.0, steps=0),
        BatchRenorm(),
    ],
    ids=["ghost-one", "ghost-whole", "brn-closed", "brn-at-step-0"],
)
def test_is_batch_norm(check, op):
    def output(x, w, b, rm, rv, momentum):
        y, *running = batch_norm(x, w, b, rm, rv, momentum)
        return (y, *running) if isinstance(op, GhostBatchNorm) else (y, None, None)

    check(op, output, (8, 6, 5, 4))


@each
def test_one_value_a_channel(name):
    make, _ = CASES[name]
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        make().forward(torch.ones(1, 3), None, None, State(torch.zeros(3), torch.ones(3)))


def test_ghosts_of_one_value():
    with pytest.raises(NotApplicable, match="size=1"):
        GhostBatchNorm(size=1).forward(torch.ones(4, 3), None, None, State())


def test_brn_needs_running_statistics():
    with pytest.raises(NotApplicable, match="track_running_stats"):
        BatchRenorm().forward(torch.randn(4, 3), None, None, State())


@each
def test_without_running_statistics(check, name):
    make, formula = CASES[name]
    if name.startswith("brn"):
        pytest.skip("needs them")
    for training in (True, False):

        def output(x, w, b, *_):
            blank = torch.zeros(6, dtype=torch.float64)
            return formula(x, w, b, blank, blank, 0.0)[0], None, None

        check(make(), output, (8, 6, 3, 3), state=State(training=training))


@each
def test_cumulative_average(check, name):
    make, formula = CASES[name]
    op = make()
    state = check.state(4, momentum=None)
    mean, var = state.running_mean.clone(), state.running_var.clone()
    for step in range(3):
        x = check.draw((8, 4, 3, 3), seed=step)
        _, mean, var = formula(x, None, None, mean, var, 1 / (step + 1))
        op.forward(x, None, None, state)
    torch.testing.assert_close(state.running_mean, mean)
    torch.testing.assert_close(state.running_var, var)


def test_published_schedule():
    assert limits(0, 40_000) == limits(5_000, 40_000) == (1, 0)
    assert limits(25_000, 40_000) == (pytest.approx(1 + 2 * 20 / 35), 5)
    assert limits(15_000, 40_000)[1] == pytest.approx(2.5)
    assert limits(40_000, 40_000) == limits(10**9, 40_000) == (3, 5)
    assert limits(400, 400) == (3, 5)
    assert limits(50, 400) == (1, 0)
    assert limits(0, 0) == (3, 5)


def test_l1_and_range_estimate_a_gaussian():
    """√(π/2)·mean|x−μ| is σ; C(n)·range lies between 0.325σ and 2σ."""
    x = torch.randn(64, 2, 32, 32, generator=torch.Generator().manual_seed(0)) * 3 + 1
    mean, var = L1BatchNorm().statistics(x, State())
    torch.testing.assert_close(mean, torch.full((2,), 1.0), atol=0.05, rtol=0)
    torch.testing.assert_close(var, torch.full((2,), 9.0), atol=0, rtol=0.02)
    for chunks in (1, 16):
        state = State(torch.zeros(2), torch.zeros(2), momentum=1.0)
        RangeBatchNorm(chunks=chunks).forward(x, None, None, state)
        ratio = state.running_var.sqrt() / 3
        assert ((ratio > 0.325) & (ratio < 2)).all()
