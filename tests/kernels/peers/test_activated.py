"""frn and the EvoNorms against their formulas."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.evonorm import EvoNormB0, EvoNormS0
from sbnbench_kernels.eager.frn import FilterResponseNorm

EPS = 1e-5


def spread(t, x):
    return t.view(1, -1, *[1] * (x.dim() - 2))


def affine(y, w, b):
    y = y if w is None else y * spread(w, y)
    return y if b is None else y + spread(b, y)


def frn(x, w, b, rm, rv, momentum, tau, eps=None):
    flat = x.reshape(*x.shape[:2], -1)
    constant = 1e-6 if eps is None else 1e-6 + eps.abs()
    xhat = (flat / (flat.square().mean(2, keepdim=True) + constant).sqrt()).reshape(x.shape)
    return torch.maximum(affine(xhat, w, b), spread(tau, x)), rm, rv


def s0(x, w, b, rm, rv, momentum, v, groups=3):
    var = x.reshape(x.shape[0], groups, -1).var(2, correction=0)
    std = (var + EPS).sqrt().repeat_interleave(x.shape[1] // groups, 1)
    std = std.view(*std.shape, *[1] * (x.dim() - 2))
    return affine(x * torch.sigmoid(spread(v, x) * x) / std, w, b), rm, rv


def b0(x, w, b, rm, rv, momentum, v, training=True):
    var = x.transpose(0, 1).flatten(1).var(1, correction=0)
    n = x.numel() // x.shape[1]
    if training:
        rv = (1 - momentum) * rv + momentum * var.detach() * n / (n - 1)
    else:
        var = rv
    own = (x.flatten(2).var(2, correction=0) + EPS).sqrt()
    own = own.view(*own.shape, *[1] * (x.dim() - 2))
    left = (spread(var, x) + EPS).sqrt().expand_as(x)
    return affine(x / torch.maximum(left, spread(v, x) * x + own), w, b), rm, rv


V = torch.tensor([1.0, -0.5, 0.3, 2.0, 0.7, -1.1]).double()
TAU = torch.tensor([0.0, -0.5, 0.6, 0.2, -2.0, 0.1]).double()
CASES = {
    "frn": (FilterResponseNorm, frn, {"tau": TAU}),
    "frn-eps": (
        partial(FilterResponseNorm, learned_eps=True),
        frn,
        {"tau": TAU, "eps": torch.tensor(-0.03).double()},
    ),
    "evonorm-s0": (partial(EvoNormS0, groups=3), s0, {"v": V}),
    "evonorm-b0": (EvoNormB0, b0, {"v": V}),
}
each = pytest.mark.parametrize("name", CASES)


@each
@pytest.mark.parametrize("kind", ["ncl", "nchw", "ncdhw"])
@pytest.mark.parametrize("affined", [True, False])
def test_formula(check, name, kind, affined):
    make, formula, extra = CASES[name]
    check(make(), formula, check.SHAPES[kind], affine=affined, **extra)


@pytest.mark.parametrize("name", ["frn-eps", "evonorm-s0"])
def test_formula_without_maps(check, name):
    make, formula, extra = CASES[name]
    check(make(), formula, check.SHAPES["nc"], **extra)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_dtypes_and_formats(check, name, dtype, memory):
    make, formula, extra = CASES[name]
    own = {k: t.float() for k, t in extra.items()}
    check(make(), formula, (8, 6, 5, 4), dtype, check.FORMATS[memory], **own)


@each
@given(
    rows=st.integers(1, 7),
    spatial=st.lists(st.integers(1, 4), min_size=0, max_size=2),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_any_shape(check, name, rows, spatial, seed):
    make, formula, extra = CASES[name]
    shape = (rows, 6, *spatial, 3)
    check(make(), formula, shape, x=check.draw(shape, seed), **extra)


@each
def test_eval(check, name):
    make, formula, extra = CASES[name]
    if name == "evonorm-b0":
        formula = partial(formula, training=False)
    for shape in ((4, 6, 3, 3), (1, 6, 3, 3)):
        check(make(), formula, shape, state=check.state(6, training=False), **extra)


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.1, 100.0, -100.0])
def test_constant_input_stays_finite(check, name, dtype, value):
    make, _, _ = CASES[name]
    op, x = make(), torch.full((8, 6, 3, 3), value, dtype=dtype)
    y, saved = op.forward(x, torch.ones(6), torch.zeros(6), State(torch.zeros(6), torch.ones(6)))
    dy = check.draw(tuple(x.shape), dtype=dtype)
    dx, dweight, dbias, own = op.backward(dy, saved)
    assert all(t.isfinite().all() for t in (y, dx, dweight, dbias, *own.values()))


@each
def test_large_float16_values_do_not_overflow(check, name):
    make, formula, extra = CASES[name]
    x = check.draw((8, 6, 5, 4))
    x = (x / x.abs().max() * 6e4).half()
    check(
        make(),
        formula,
        tuple(x.shape),
        torch.float16,
        x=x,
        **{k: t.float() for k, t in extra.items()},
    )


def test_starting_values(check):
    x, state = check.draw((2, 6, 4, 4)), State()
    FilterResponseNorm(learned_eps=True).forward(x, None, None, state)
    assert state.extra["tau"].tolist() == [0] * 6
    assert state.extra["eps"].item() == pytest.approx(1e-4)
    state = State()
    EvoNormS0(groups=2).forward(x, None, None, state)
    assert state.extra["v"].tolist() == [1] * 6


def test_evonorm_b0_leaves_the_running_mean_alone(check):
    state = check.state(6)
    before = state.running_mean.clone()
    EvoNormB0().forward(check.draw((4, 6, 3, 3)), None, None, state)
    assert torch.equal(state.running_mean, before)


def test_not_applicable():
    one = torch.randn(4, 6, 1, 1)
    with pytest.raises(NotApplicable, match="learned_eps"):
        FilterResponseNorm().forward(one, None, None, State())
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        EvoNormB0().forward(one, None, None, State())
    with pytest.raises(NotApplicable, match="groups=6"):
        EvoNormS0(groups=6).forward(one, None, None, State())
    with pytest.raises(NotApplicable, match="groups=4 does not divide the 6 channels"):
        EvoNormS0(groups=4).forward(one, None, None, State())
