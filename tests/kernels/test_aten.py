"""PyTorch's fused operators against the reference, and that they are what its modules run."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sbnbench.errors import NotApplicable
from sbnbench.registry import build, parse_contender
from sbnbench_kernels.contract import State

LAYERS = {
    "bn": nn.BatchNorm2d(6),
    "gn[groups=3]": nn.GroupNorm(3, 6),
    "ln": nn.GroupNorm(1, 6),
    "in": nn.InstanceNorm2d(6, affine=True),
}
SHAPES = [(5, 6), (5, 6, 9), (5, 6, 9, 8), (3, 6, 4, 5, 6), (1, 6, 9, 8)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", list(LAYERS))
def test_agrees_with_eager(kit, name, dtype, layout):
    for shape in SHAPES[name == "in" :]:
        inputs = kit.make_inputs(shape, dtype, layout)
        result = kit.run(f"{name}@aten", inputs, State())
        expected = kit.run(name, inputs, State())
        # Groups of two values: dx is a difference of nearly equal sums.
        keep = slice(0, 1) if shape == (5, 6) else slice(None)
        kit.assert_near(result[keep], expected[keep], 2 * kit.tolerance[dtype])


class Operators(TorchDispatchMode):
    """Names the normalization operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "norm" in func.name():
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", list(LAYERS))
def test_runs_the_operators_of_the_module(kit, name, training, layout):
    inputs = kit.make_inputs((5, 6, 9, 8), torch.float32, layout)
    layer = LAYERS[name].train(training)
    with Operators() as of_module:
        y = layer(inputs.x.clone().requires_grad_())
        y.backward(inputs.dy)
    op = build(parse_contender(f"{name}@aten"))
    state = State(torch.zeros(6), torch.ones(6), training=training)
    with Operators() as of_op:
        _, saved = op.forward(*inputs[:3], state)
        op.backward(inputs.dy, saved)
    assert of_op.names == of_module.names
    assert len(of_op.names) == 2


def test_native_leaves_cudnn_out_and_is_for_gpus(kit, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = kit.make_inputs((5, 6, 9, 8), torch.float32)
    with pytest.raises(NotApplicable, match="on a CPU `aten` is PyTorch's own"):
        kit.run("bn@native", inputs, State())
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    asked = []
    original = torch._batch_norm_impl_index
    monkeypatch.setattr(
        torch, "_batch_norm_impl_index", lambda *args: [asked.append(args[-1]), original(*args)][1]
    )
    kit.assert_near(kit.run("bn@native", inputs, State()), kit.run("bn", inputs, State()), 1e-4)
    kit.run("bn@aten", inputs, State())
    assert asked == [False, True]
