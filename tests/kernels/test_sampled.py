"""The sampled family's reference against float64 formulas and autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sbnbench.errors import NotApplicable
from sbnbench.registry import build, parse_contender
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.parts import put, take

FAMILY = ["bn", "ns", "bs", "fs", "vdn", "bs+vdn", "fs+vdn"]
MODES = ["exact", "sampled", "detached"]
FORMATS = ["contiguous", "channels_last", "sliced", "transposed"]
SHAPES = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 5)),
    st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 9)),
    st.tuples(*(st.integers(1, k) for k in (6, 5, 9, 8))),
    st.tuples(*(st.integers(1, k) for k in (4, 3, 4, 5, 4))),
)


def contender(name: str, **params: object) -> str:
    if name == "bn":
        params.pop("backward", None)
    inner = ",".join(f"{k}={v}" for k, v in params.items())
    return f"{name}[{inner}]" if inner else name


def check(kit, text: str, mode: str, inputs, state: State, tolerance: float) -> None:
    """Compares with the reference, or checks that both find the input not applicable."""
    op = build(parse_contender(text))
    try:
        sample = op.sampler.draw(inputs.x.shape, state.seed, state.step, inputs.x.device)
    except NotApplicable:
        with pytest.raises(NotApplicable):
            kit.run(text, inputs, state)
        return
    if sum(s.size for s in sample) < 2:
        with pytest.raises(NotApplicable, match="Expected more than 1 value per channel when tra"):
            kit.run(text, inputs, state)
        return
    result = kit.run(text, inputs, state)
    kit.assert_near(result, kit.reference(sample, mode, inputs), tolerance)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FAMILY)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_forward_and_backward_agree_with_float64(kit, name, mode, data):
    shape = data.draw(SHAPES)
    params: dict[str, object] = {"backward": mode}
    if name != "bn" and name != "vdn":
        params["ratio"] = data.draw(st.sampled_from(["1/16", "1/4", "0.7", "1"]))
    if name.startswith("fs"):
        params["position"] = data.draw(st.sampled_from(["per-sample", "shared", "fixed"]))
    if "vdn" in name:
        params["num_virtual"] = data.draw(st.integers(1, 3))
    if "+" in name:
        params["beta"] = data.draw(st.sampled_from([0, 0.25, 0.5, 1]))
    inputs = kit.make_inputs(shape, layout=data.draw(st.sampled_from(FORMATS)), seed=shape[0])
    state = State(seed=data.draw(st.integers(0, 2**70)), step=data.draw(st.integers(0, 600)))
    mode = "exact" if name == "bn" else mode
    # A sample of nearly equal values divides by nearly √ε: its conditioning is in the tolerance.
    check(kit, contender(name, **params), mode, inputs, state, 1e-7)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FAMILY)
def test_every_dtype_and_memory_format(kit, name, mode, dtype, layout):
    inputs = kit.make_inputs((8, 6, 12, 10), dtype, layout)
    ratio = {} if name in ("bn", "vdn") else {"ratio": "1/4"}
    text = contender(name, backward=mode, **ratio)
    state = State(seed=3, step=5)
    mode = "exact" if name == "bn" else mode
    check(kit, text, mode, inputs, state, kit.tolerance[dtype])
    y, dx, dweight, dbias = kit.run(text, inputs, state)
    assert y.dtype == dx.dtype == dtype
    assert dweight.dtype == dbias.dtype == inputs.weight.dtype
    assert y.stride() == dx.stride() == torch.empty_like(inputs.x).stride()


@pytest.mark.parametrize("name", ["bn", "bs", "fs", "ns"])
def test_dy_may_have_another_format_than_x(kit, name):
    inputs = kit.make_inputs((8, 6, 12, 10))
    mixed = inputs._replace(dy=kit.lay_out(inputs.dy, "channels_last"))
    expected = kit.run(name, inputs, State())
    kit.assert_near(kit.run(name, mixed, State()), expected, 1e-12)
    ones = inputs._replace(dy=torch.ones((), dtype=torch.float64).expand(inputs.x.shape))
    result, expected = (
        kit.run(name, i, State()) for i in (ones, ones._replace(dy=ones.dy.clone()))
    )
    assert torch.equal(result.dx, expected.dx)


def test_statistics_of_a_mixture_are_the_moments_of_the_mixture(kit):
    x = kit.make_inputs((9, 4, 6, 5)).x
    beta, virtual = 0.3, x[-2:].transpose(0, 1).flatten(1)
    op = build(parse_contender("bs+vdn[ratio=1/7,beta=0.3,num_virtual=2]"))
    real_op = build(parse_contender("bs[ratio=1/7]"))
    mean_s, var_s = real_op.statistics(x[:-2], State(seed=5, step=4))
    mean_v, var_v = virtual.mean(1), virtual.var(1, correction=0)
    mean, var = op.statistics(x, State(seed=5, step=4))
    torch.testing.assert_close(mean, beta * mean_v + (1 - beta) * mean_s)
    spread = beta * (1 - beta) * (mean_v - mean_s) ** 2
    torch.testing.assert_close(var, beta * var_v + (1 - beta) * var_s + spread)


@pytest.mark.parametrize("name", FAMILY)
def test_statistics_are_those_of_the_next_forward_and_change_only_the_step(kit, name):
    x = kit.make_inputs((8, 6, 12, 10)).x
    op = build(parse_contender(name))
    state = State(torch.zeros(6).double(), torch.ones(6).double(), momentum=1.0, seed=1, step=7)
    mean, _ = op.statistics(x, state)
    assert state.step == 8
    assert not state.running_mean.any()
    state.step = 7
    op.forward(x, None, None, state)
    assert state.step == 8
    torch.testing.assert_close(state.running_mean, mean)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("text", ["bs[ratio=1{}]", "fs[ratio=1{}]", "ns[ratio=1{}]"])
def test_ratio_one_is_batch_norm(kit, text, mode):
    inputs = kit.make_inputs((5, 4, 7, 6))
    result = kit.run(text.format(f",backward={mode}"), inputs, State(step=3))
    expected = kit.run("bn", inputs, State())
    if mode == "detached":
        result, expected = result._replace(dx=result.y), expected._replace(dx=expected.y)
    kit.assert_near(result, expected, 1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["bs", "fs"])
def test_a_mixture_without_weight_on_virtual_rows_is_the_sampled_one(kit, name, mode):
    inputs = kit.make_inputs((9, 4, 8, 6))
    inputs.dy[-2:] = 0
    real = inputs._replace(x=inputs.x[:-2], dy=inputs.dy[:-2])
    states = [State(torch.zeros(4).double(), torch.ones(4).double(), step=3) for _ in range(2)]
    mixed = kit.run(f"{name}+vdn[beta=0,num_virtual=2,backward={mode}]", inputs, states[0])
    expected = kit.run(f"{name}[backward={mode}]", real, states[1])
    mixed = mixed._replace(y=mixed.y[:-2], dx=mixed.dx[:-2])
    kit.assert_near(mixed, expected, 1e-12)
    torch.testing.assert_close(states[0].running_var, states[1].running_var)
    torch.testing.assert_close(states[0].running_mean, states[1].running_mean)


def test_a_mixture_with_all_weight_on_virtual_rows_is_vdn(kit):
    inputs = kit.make_inputs((9, 4, 8, 6))
    for mode in MODES:
        mixed = kit.run(f"fs+vdn[beta=1,num_virtual=2,backward={mode}]", inputs, State())
        vdn = kit.run(f"vdn[num_virtual=2,backward={mode}]", inputs, State())
        kit.assert_near(mixed, vdn, 1e-12)


@pytest.mark.parametrize("affine", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("mode", MODES)
def test_weight_and_bias_may_be_missing(kit, mode, affine):
    inputs = kit.make_inputs((6, 4, 8, 6))
    weight = inputs.weight if affine[0] else None
    bias = inputs.bias if affine[1] else None
    op = build(parse_contender(f"fs[backward={mode}]"))
    y, saved = op.forward(inputs.x, weight, bias, State())
    dx, dweight, dbias = op.backward(inputs.dy, saved)
    assert (dweight is not None, dbias is not None) == affine
    full = inputs._replace(
        weight=inputs.weight if affine[0] else torch.ones_like(inputs.weight),
        bias=inputs.bias if affine[1] else torch.zeros_like(inputs.bias),
    )
    expected = kit.run(f"fs[backward={mode}]", full, State())
    kit.assert_near((y, dx), expected[:2], 1e-12)


def test_backward_leaves_saved_as_it_was(kit):
    inputs = kit.make_inputs((6, 4, 8, 6))
    for text in ("bn", "bs", "fs[backward=exact]", "bs+vdn[backward=exact]"):
        op = build(parse_contender(text))
        _, saved = op.forward(*inputs[:3], State())
        first, second = op.backward(inputs.dy, saved), op.backward(inputs.dy, saved)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("backend", ["eager", "aten"])
def test_running_statistics_and_eval_are_those_of_nn_batch_norm(kit, backend, momentum):
    layer = nn.BatchNorm2d(4, momentum=momentum).double()
    state = State(torch.zeros(4).double(), torch.ones(4).double(), momentum)
    op = build(parse_contender(f"bn@{backend}"))
    for step in range(4):
        inputs = kit.make_inputs((5, 4, 6, 7), seed=step)
        y, _ = op.forward(inputs.x, None, None, state)
        torch.testing.assert_close(y, layer(inputs.x))
        assert state.step == step + 1
    torch.testing.assert_close(state.running_mean, layer.running_mean)
    torch.testing.assert_close(state.running_var, layer.running_var)

    state.training = False
    layer.eval()
    with torch.no_grad():
        layer.weight.copy_(inputs.weight)
        layer.bias.copy_(inputs.bias)
    x = inputs.x.clone().requires_grad_()
    y = layer(x)
    gradients = torch.autograd.grad(y, (x, layer.weight, layer.bias), inputs.dy)
    result = kit.run(f"bn@{backend}", inputs, state)
    kit.assert_near(result, (y, *gradients), 1e-12)
    assert state.step == 4


@pytest.mark.parametrize("name", FAMILY)
def test_running_variance_takes_bessels_correction_for_the_sample(kit, name):
    x = kit.make_inputs((6, 4, 8, 6)).x
    op = build(parse_contender(name))
    state = State(torch.zeros(4).double(), torch.ones(4).double(), momentum=1.0, step=2)
    (*shares,) = op.sampler.draw(x.shape, 0, 2, x.device)
    _, var = op.statistics(x, State(step=2))
    op.forward(x, None, None, state)
    if len(shares) == 1:
        s = shares[0].size
        torch.testing.assert_close(state.running_var, var * s / (s - 1))
    else:
        square = sum(share.weight**2 / share.size for share in shares)
        torch.testing.assert_close(state.running_var, var / (1 - square))


@pytest.mark.parametrize("name", FAMILY)
def test_eval_without_running_statistics_uses_the_batch(kit, name):
    x = kit.make_inputs((6, 4, 8, 6)).x
    op = build(parse_contender(name))
    state = State(training=False, step=2)
    y, _ = op.forward(x, None, None, state)
    expected, _ = op.forward(x, None, None, State(step=2))
    assert torch.equal(y, expected)
    assert state.step == 2


def test_a_training_call_between_an_eval_forward_and_its_backward_changes_nothing(kit):
    inputs = kit.make_inputs((6, 4, 8, 6))
    op = build(parse_contender("fs"))
    state = State(torch.zeros(4).double(), torch.ones(4).double(), training=False)
    _, saved = op.forward(*inputs[:3], state)
    expected = op.backward(inputs.dy, saved)
    state.training = True
    op.forward(*inputs[:3], state)
    for a, b in zip(op.backward(inputs.dy, saved), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", FAMILY)
def test_large_offsets_keep_their_precision(kit, name):
    inputs = kit.make_inputs((8, 6, 12, 10), offset=0.0)
    deviation = inputs.x.std((0, 2, 3), keepdim=True)
    shifted = (inputs.x / deviation + 1000).float()
    ratio = {} if name in ("bn", "vdn") else {"ratio": "1/4"}
    inputs = inputs._replace(
        x=shifted, dy=inputs.dy.float(), weight=inputs.weight.float(), bias=inputs.bias.float()
    )
    mode = "exact" if name == "bn" else "sampled"
    # The input itself resolves 6e-5 of a deviation.
    check(kit, contender(name, backward=mode, **ratio), mode, inputs, State(), 1e-3)


@pytest.mark.parametrize("name", FAMILY)
def test_float16_near_its_maximum_does_not_overflow(kit, name):
    inputs = kit.make_inputs((8, 6, 12, 10), torch.float32)
    x = (inputs.x / inputs.x.abs().amax() * 6e4).half()
    inputs = inputs._replace(x=x, dy=inputs.dy.half())
    mode = "exact" if name == "bn" else "sampled"
    ratio = {} if name in ("bn", "vdn") else {"ratio": "1/4"}
    state = State(torch.zeros(6), torch.ones(6))
    text = contender(name, backward=mode, **ratio)
    check(kit, text, mode, inputs, state, kit.tolerance[torch.float16])
    assert state.running_var.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FAMILY)
def test_a_collapsed_sample_stays_finite(kit, name, mode, dtype):
    inputs = kit.make_inputs((8, 6, 12, 10), dtype)
    x = inputs.x.clone()
    text = contender(name, backward=mode)
    for share in build(parse_contender(text)).sampler.draw(x.shape, 0, 0, x.device):
        put(share.part, x, torch.full_like(take(share.part, x), 2.0))
    state = State(torch.zeros(6), torch.ones(6))
    result = kit.run(text, inputs._replace(x=x), state)
    assert all(t.isfinite().all() for t in result)
    assert state.running_var.isfinite().all()


@pytest.mark.parametrize("text", ["bn", "bn@aten", "bs", "ns"])
def test_one_value_a_channel_is_refused_as_torch_does(kit, text):
    inputs = kit.make_inputs((1, 3, 1, 1))
    with pytest.raises(ValueError, match="Expected more than 1 value") as torchs:
        nn.functional.batch_norm(inputs.x, None, None, training=True)
    with pytest.raises(NotApplicable) as ours:
        kit.run(text, inputs, State())
    assert str(ours.value) == str(torchs.value)
    running = torch.zeros(3).double(), torch.ones(3).double()
    kit.run(text, inputs, State(*running, training=False))


def test_inputs_of_the_wrong_kind_are_refused():
    op = build(parse_contender("bn"))
    for x in (torch.zeros(3), torch.zeros(2, 3, 1, 1, 1, 1), torch.zeros(2, 3, dtype=torch.int64)):
        with pytest.raises(NotApplicable):
            op.forward(x, None, None, State())
