"""sn and bcn against their formulas, and as what they are at the ends of their ranges."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.bcn import BatchChannelNorm
from sbnbench_kernels.eager.switchable import SwitchableNorm

EPS = 1e-5


def blend(old, new, momentum):
    return (1 - momentum) * old + momentum * new.detach()


def spread(t, x):
    return t.view(1, -1, *[1] * (x.dim() - 2))


def switchable(x, w, b, rm, rv, momentum, mean_logits, var_logits, training=True):
    flat = x.flatten(2)
    sets = {"in": (2,), "ln": (1, 2), "bn": (0, 2)}
    means = [flat.mean(d, keepdim=True) for d in sets.values()]
    variances = [flat.var(d, correction=0, keepdim=True) for d in sets.values()]
    n = flat.shape[0] * flat.shape[2]
    new = (
        blend(rm, means[2].flatten(), momentum),
        blend(rv, variances[2].flatten() * n / (n - 1), momentum),
    )
    if not training:
        means[2], variances[2], new = rm.view(1, -1, 1), rv.view(1, -1, 1), (rm, rv)
    mean = sum(p * m for p, m in zip(mean_logits.softmax(0), means, strict=True))
    var = sum(p * v for p, v in zip(var_logits.softmax(0), variances, strict=True))
    y = ((flat - mean) / (var + EPS).sqrt()).reshape(x.shape)
    y = y if w is None else y * spread(w, x)
    return (y if b is None else y + spread(b, x)), *new


def batch_channel(
    x, w, b, rm, rv, momentum, group_weight, group_bias, groups=3, estimate=False, training=True
):
    r = x.transpose(0, 1).flatten(1)
    mean, var, n = r.mean(1), r.var(1, correction=0), r.shape[1]
    if estimate and training:
        old = rm
        rm = blend(rm, mean, momentum)
        rv = blend(rv, (r - old[:, None]).square().mean(1), momentum)
        mean, var = rm, rv
    elif training:
        rm, rv = blend(rm, mean, momentum), blend(rv, var * n / (n - 1), momentum)
    else:
        mean, var = rm, rv
    h = (x - spread(mean, x)) / (spread(var, x) + EPS).sqrt()
    h = h if w is None else h * spread(w, x)
    h = h if b is None else h + spread(b, x)
    y = F.group_norm(h, groups, eps=EPS)
    each = x.shape[1] // groups
    gain, offset = (t.repeat_interleave(each) for t in (group_weight, group_bias))
    return y * spread(gain, x) + spread(offset, x), rm, rv


def own(name):
    if name == "sn":
        return {
            "mean_logits": torch.tensor([0.3, -0.5, 1.1]).double(),
            "var_logits": torch.tensor([-0.2, 0.7, 0.4]).double(),
        }
    return {
        "group_weight": torch.tensor([0.7, -1.2, 1.6]).double(),
        "group_bias": torch.tensor([0.5, 0.1, -2.0]).double(),
    }


CASES = {
    "sn": (SwitchableNorm, switchable),
    "bcn": (partial(BatchChannelNorm, groups=3), batch_channel),
    "bcn-estimate": (
        partial(BatchChannelNorm, groups=3, estimate=True),
        partial(batch_channel, estimate=True),
    ),
}
each = pytest.mark.parametrize("name", CASES)


@each
@pytest.mark.parametrize("kind", ["nc", "ncl", "nchw", "ncdhw"])
@pytest.mark.parametrize("affined", [True, False])
def test_formula(check, name, kind, affined):
    make, formula = CASES[name]
    if name == "sn" and kind == "nc":
        pytest.skip("no maps, no instance statistics")
    check(make(), formula, check.SHAPES[kind], affine=affined, **own(name))


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_dtypes_and_formats(check, name, dtype, memory):
    make, formula = CASES[name]
    shape, extra = (8, 6, 5, 4), {k: v.float() for k, v in own(name).items()}
    check(make(), formula, shape, dtype, check.FORMATS[memory], **extra)


@each
@given(
    rows=st.integers(1, 7),
    per_group=st.integers(1, 3),
    spatial=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_any_shape(check, name, rows, per_group, spatial, seed):
    make, formula = CASES[name]
    shape = (rows, 3 * per_group, *spatial, 2)[:5]
    if torch.Size(shape[2:]).numel() < 2:
        shape = (*shape[:-1], 2)
    check(make(), formula, shape, x=check.draw(shape, seed), **own(name))


@each
def test_eval(check, name):
    make, formula = CASES[name]
    state = check.state(6, training=False)
    check(make(), partial(formula, training=False), (4, 6, 3, 3), state=state, **own(name))
    check(make(), partial(formula, training=False), (1, 6, 3, 3), state=state, **own(name))


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.1, 6e4, -6e4])
def test_constant_input_stays_finite(check, name, dtype, value):
    make, _ = CASES[name]
    op, x = make(), torch.full((8, 6, 3, 3), value, dtype=dtype)
    y, saved = op.forward(x, torch.ones(6), torch.zeros(6), State(torch.zeros(6), torch.ones(6)))
    # Two divisions by √ε: a gradient of 1e-2 is what float16 can hold of their product.
    dy = check.draw(tuple(x.shape), dtype=dtype) * 1e-2
    dx, dweight, dbias, extra = op.backward(dy, saved)
    assert all(t.isfinite().all() for t in (y, dx, dweight, dbias, *extra.values()))


@pytest.mark.parametrize("hot", [0, 1, 2])
def test_sn_with_one_hot_weights(check, hot):
    """in, ln or bn: what the control parameters choose."""
    logits = torch.full((3,), -60.0).double()
    logits[hot] = 60.0
    known = (
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b, eps=EPS),
        lambda x, w, b: F.group_norm(x, 1, w, b, EPS),
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True, 0.1, EPS),
    )[hot]
    check(
        SwitchableNorm(),
        lambda x, w, b, *_, mean_logits, var_logits: (
            known(x, w, b) + 0 * (mean_logits.sum() + var_logits.sum()),
            None,
            None,
        ),
        (5, 6, 4, 3),
        mean_logits=logits.clone(),
        var_logits=logits.clone(),
    )


def test_bcn_starts_as_group_norm_of_batch_norm(check):
    op, state, x = BatchChannelNorm(groups=2), check.state(6), check.draw((5, 6, 4, 3))
    y, _ = op.forward(x, None, None, state)
    h = F.batch_norm(x, None, None, training=True, eps=EPS)
    torch.testing.assert_close(y, F.group_norm(h, 2, eps=EPS))
    assert state.extra["group_weight"].tolist() == [1, 1]
    assert state.extra["group_bias"].tolist() == [0, 0]


def test_groups_that_do_not_divide():
    with pytest.raises(NotApplicable, match="groups=4 does not divide the 6 channels"):
        BatchChannelNorm(groups=4).forward(torch.randn(2, 6, 3, 3), None, None, State())


def test_sn_needs_maps():
    for shape in ((4, 6), (4, 6, 1, 1)):
        with pytest.raises(ValueError, match="more than 1 spatial element"):
            SwitchableNorm().forward(torch.randn(shape), None, None, State())


def test_bcn_one_value():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        BatchChannelNorm(groups=3).forward(torch.randn(1, 6), None, None, State())
    with pytest.raises(ValueError, match="groups=6"):
        BatchChannelNorm(groups=6).forward(torch.randn(4, 6), None, None, State())


def test_bcn_estimate_trains_on_one_sample(check):
    make, formula = CASES["bcn-estimate"]
    check(make(), formula, (1, 6, 4, 4), **own("bcn"))
    with pytest.raises(NotApplicable, match="track_running_stats"):
        make().forward(torch.randn(1, 6, 4, 4), None, None, State())
