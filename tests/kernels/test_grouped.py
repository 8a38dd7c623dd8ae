"""gn, ln and in: the reference against float64 autograd of torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sbnbench.errors import NotApplicable
from sbnbench.registry import build, parse_contender
from sbnbench_kernels.contract import State

FORMATS = ["contiguous", "channels_last", "sliced", "transposed"]
SHAPES = st.one_of(
    st.tuples(st.integers(1, 5), st.integers(1, 6)),
    st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 9)),
    st.tuples(*(st.integers(1, k) for k in (4, 6, 7, 8))),
    st.tuples(*(st.integers(1, k) for k in (3, 4, 4, 5, 4))),
)


def dense(inputs, groups: int):
    """y, dx, dγ, db by autograd through the formula in float64."""
    x, weight, bias, dy = (t.double() for t in inputs)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    x, weight, bias = leaves
    rows = x.reshape(x.shape[0] * groups, -1)
    mean = rows.mean(1, keepdim=True)
    var = (rows - mean).square().mean(1, keepdim=True)
    xhat = ((rows - mean) / (var + 1e-5).sqrt()).reshape(x.shape)
    column = (1, -1, *(1,) * (x.dim() - 2))
    y = xhat * weight.view(column) + bias.view(column)
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


def contender_and_groups(name: str, channels: int, groups: int = 1) -> tuple[str, int]:
    if name == "gn":
        return f"gn[groups={groups}]", groups
    return name, {"ln": 1, "in": channels}[name]


@pytest.mark.parametrize("name", ["gn", "ln", "in"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_forward_and_backward_agree_with_float64(kit, name, data):
    shape = data.draw(SHAPES)
    divisors = [g for g in range(1, shape[1] + 1) if shape[1] % g == 0]
    text, groups = contender_and_groups(name, shape[1], data.draw(st.sampled_from(divisors)))
    inputs = kit.make_inputs(shape, layout=data.draw(st.sampled_from(FORMATS)), seed=shape[0])
    if name == "in" and torch.Size(shape[2:]).numel() < 2:
        with pytest.raises(NotApplicable, match="Expected more than 1 spatial element"):
            kit.run(text, inputs, State())
        return
    values = torch.Size(shape[1:]).numel() // groups
    # Two values normalize to ±1 whatever they are: dx is then nearly zero, a difference of sums.
    result, expected = kit.run(text, inputs, State()), dense(inputs, groups)
    if values > 2:
        kit.assert_near(result, expected, 1e-7)
    else:
        torch.testing.assert_close(tuple(result), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["gn", "ln", "in"])
def test_every_dtype_and_memory_format(kit, name, dtype, layout):
    inputs = kit.make_inputs((4, 6, 12, 10), dtype, layout)
    text, groups = contender_and_groups(name, 6, 3)
    result = kit.run(text, inputs, State())
    kit.assert_near(result, dense(inputs, groups), kit.tolerance[dtype])
    assert result.y.dtype == result.dx.dtype == dtype
    assert result.dweight.dtype == result.dbias.dtype == inputs.weight.dtype
    assert result.y.stride() == result.dx.stride() == torch.empty_like(inputs.x).stride()


def test_as_many_groups_as_channels_is_instance_norm(kit):
    inputs = kit.make_inputs((4, 6, 8, 7))
    kit.assert_near(kit.run("gn[groups=6]", inputs, State()), kit.run("in", inputs, State()), 1e-12)


@pytest.mark.parametrize("backend", ["eager", "aten"])
def test_groups_must_divide_the_channels(kit, backend):
    with pytest.raises(NotApplicable, match="groups=4 does not divide the 6 channels"):
        kit.run(f"gn[groups=4]@{backend}", kit.make_inputs((4, 6, 8, 7)), State())


@pytest.mark.parametrize("name", ["gn", "ln", "in"])
def test_eval_is_training(kit, name):
    inputs = kit.make_inputs((4, 32, 8, 7))
    train = kit.run(name, inputs, State())
    evaluated = kit.run(name, inputs, State(training=False))
    assert all(torch.equal(a, b) for a, b in zip(train, evaluated, strict=True))


@pytest.mark.parametrize("name", ["gn[groups=3]", "ln", "in"])
def test_weight_and_bias_may_be_missing(kit, name):
    inputs = kit.make_inputs((4, 6, 8, 7))
    op = build(parse_contender(name))
    y, saved = op.forward(inputs.x, None, None, State())
    dx, dweight, dbias = op.backward(inputs.dy, saved)
    assert dweight is None
    assert dbias is None
    plain = inputs._replace(
        weight=torch.ones_like(inputs.weight), bias=torch.zeros_like(inputs.bias)
    )
    kit.assert_near((y, dx), kit.run(name, plain, State())[:2], 1e-12)


@pytest.mark.parametrize("name", ["gn[groups=3]", "ln", "in"])
def test_float16_near_its_maximum_does_not_overflow(kit, name):
    inputs = kit.make_inputs((4, 6, 8, 7), torch.float32)
    x = (inputs.x / inputs.x.abs().amax() * 6e4).half()
    inputs = inputs._replace(x=x, dy=inputs.dy.half())
    groups = {"gn[groups=3]": 3, "ln": 1, "in": 6}[name]
    kit.assert_near(kit.run(name, inputs, State()), dense(inputs, groups), 2e-3)


def test_dense_is_torchs_group_norm(kit):
    inputs = kit.make_inputs((4, 6, 8, 7))
    torch.testing.assert_close(dense(inputs, 3)[0], F.group_norm(inputs.x, 3, *inputs[1:3]))
