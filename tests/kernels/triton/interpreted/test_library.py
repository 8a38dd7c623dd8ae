"""The operators under autograd and torch.compile."""

from __future__ import annotations

import pytest
import torch

import sbnbench_kernels.triton as backend
from sbnbench_kernels.contract import State
from sbnbench_kernels.samplers import bessel

SAMPLED = {"eps": 1e-5, "ratio": 1 / 4, "redraw": 1}
MIXED = {**SAMPLED, "position": "per-sample", "beta": 0.3, "num_virtual": 1}


def parts(kit, name, mode):
    inputs = kit.make_inputs((4, 6, 5, 8), torch.float32, "channels_last")
    params = {"bs": SAMPLED, "ns": SAMPLED, "fs+vdn": MIXED}[name]
    classes = {
        "bs": "BatchSampling", "ns": "NaiveSampling", "fs+vdn": "FeatureSamplingVirtual",
    }  # fmt: skip
    op = getattr(backend, classes[name])(**params, backward=mode)
    return inputs, op, op.sampler.draw(inputs.x.shape, 0, 0, inputs.x.device)


@pytest.mark.parametrize("mode", ["exact", "sampled", "detached"])
@pytest.mark.parametrize("name", ["bs", "ns", "fs+vdn"])
def test_operators_agree_with_the_op(kit, name, mode):
    from sbnbench_kernels.triton import library

    inputs, op, sample = parts(kit, name, mode)
    leaves = [t.clone().requires_grad_() for t in inputs[:3]]
    running = torch.zeros(6), torch.ones(6)
    y = library.normalize(
        *leaves, sample, eps=1e-5, mode=mode, running=running, factor=0.1,
        correction=bessel(sample),
    )  # fmt: skip
    y.backward(inputs.dy)
    state = State(torch.zeros(6), torch.ones(6))
    expected, saved = op.forward(inputs.x, inputs.weight, inputs.bias, state)
    assert torch.equal(y, expected)
    torch.testing.assert_close(running[0], state.running_mean)
    torch.testing.assert_close(running[1], state.running_var)
    for leaf, gradient in zip(leaves, op.backward(inputs.dy, saved), strict=True):
        assert torch.equal(leaf.grad, gradient)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bs", "fs+vdn"])
def test_opcheck(kit, name):
    from sbnbench_kernels.triton import library

    inputs, _, sample = parts(kit, name, "sampled")
    arguments = (
        inputs.x.requires_grad_(), inputs.weight, None, *library.pack(sample), 1e-5,
        "sampled",
    )  # fmt: skip
    torch.library.opcheck(
        torch.ops.sbnbench.box_forward.default,
        arguments,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_compiled_in_one_graph(kit):
    from sbnbench_kernels.triton import library

    inputs, _, sample = parts(kit, "fs+vdn", "sampled")
    packed = library.pack(sample)

    def block(x, weight, bias, tensors):
        y, _ = torch.ops.sbnbench.box_forward(
            x, weight, bias, tensors, packed[1], packed[2], 1e-5, "sampled"
        )
        return (y * 2).relu()

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    results = []
    for run in (block, compiled):
        leaves = [t.clone().requires_grad_() for t in inputs[:3]]
        y = run(*leaves, packed[0])
        y.backward(inputs.dy)
        results.append((y, *[t.grad for t in leaves]))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
