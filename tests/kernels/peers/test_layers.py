"""The peers as layers, and as entries of the catalog."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sbnbench.errors import InvalidParameter, NotApplicable, UsageError
from sbnbench.registry import build, make_contender, normalizers, parse_contender
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.cbn import CrossIterationBatchNorm, watch
from sbnbench_kernels.eager.kalman import chain, predict
from sbnbench_kernels.module import Norm

SMALL = {
    "bcn": {"groups": 3},
    "evonorm-s0": {"groups": 3},
    "frn": {"learned_eps": True},
    "vbn": {"num_virtual": 2},
    "ghost": {"size": 2},
    "brn": {"steps": 0},
    "mabn": {"buffer": 2, "warmup": 1, "renorm_after": 2},
    "online": {"forward_decay": 0.9, "backward_decay": 0.9},
}
NAMES = [
    "brn",
    "ghost",
    "l1bn",
    "rbn",
    "ebn",
    "sn",
    "bcn",
    "syncbn",
    "frn",
    "evonorm-s0",
    "evonorm-b0",
    "mabn",
    "online",
    "cbn",
    "kn",
    "vbn",
]
each = pytest.mark.parametrize("name", NAMES)


def make(name, **options):
    return Norm(name, 6, **SMALL.get(name, {}), **options)


def scramble(layer):
    with torch.no_grad():
        for k, parameter in enumerate(layer.parameters()):
            parameter += 0.1 * (k + 1) * torch.linspace(-1, 2, parameter.numel()).view_as(parameter)


@each
def test_layer_computes_what_its_op_does(check, name):
    """Three steps of training: outputs, gradients of every parameter, and what is kept."""
    layer = make(name).double()
    scramble(layer)
    op = build(layer.contender)
    state = State(torch.zeros(6).double(), torch.ones(6).double())
    own = {
        key.removeprefix("extra_"): value.detach().clone()
        for key, value in layer.state_dict().items()
        if key.startswith("extra_")
    }
    state.extra.update(own)
    for step in range(3):
        x, dy = check.draw((6, 6, 4, 3), seed=step), check.draw((6, 6, 4, 3), seed=9 + step)
        leaf = x.clone().requires_grad_()
        layer.zero_grad()
        y = layer(leaf)
        y.backward(dy)
        wanted, saved = op.forward(x, layer.weight.detach(), layer.bias.detach(), state)
        dx, dweight, dbias, *more = op.backward(dy, saved)
        assert torch.equal(y, wanted)
        assert torch.equal(leaf.grad, dx)
        gradients = {"weight": dweight, "bias": dbias}
        gradients |= {f"extra_{key}": value for key, value in (more[0] if more else {}).items()}
        assert gradients.keys() == dict(layer.named_parameters()).keys()
        for key, parameter in layer.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[key], msg=key)
    if layer.running_mean is not None:
        torch.testing.assert_close(layer.running_mean, state.running_mean)
        torch.testing.assert_close(layer.running_var, state.running_var)
    for key, value in state.extra.items():
        torch.testing.assert_close(layer.state_dict()[f"extra_{key}"], value, equal_nan=True)


@each
def test_state_dict_resumes(check, name):
    """A layer that is saved and loaded goes on as the first one does, in training and in eval()."""
    first = make(name).double()
    scramble(first)
    batches = [check.draw((6, 6, 4, 3), seed=step) for step in range(5)]
    for x in batches[:3]:
        first(x.requires_grad_()).square().sum().backward()
    second = make(name).double()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for x in batches[3:]:
        outputs = [layer(x) for layer in (first, second)]
        assert torch.equal(*outputs)
        for y in outputs:
            y.square().sum().backward()
    assert torch.equal(first.eval()(batches[0]), second.eval()(batches[0]))


@each
def test_two_forwards_before_two_backwards(check, name):
    layer = make(name).double()
    one, two = (layer(check.draw((6, 6, 4, 3), seed=k).requires_grad_()) for k in (0, 1))
    two.sum().backward()
    one.sum().backward()


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_layer(check, name, dtype):
    layer = make(name).to(dtype)
    x = check.draw((6, 6, 4, 3), dtype=dtype).requires_grad_()
    y = layer(x)
    y.float().square().sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.dtype == dtype for p in layer.parameters())


@each
def test_catalog_entry(name):
    entry = normalizers()[name]
    assert entry.formula
    assert "arXiv" in entry.source
    op = build(make_contender(name, "eager", {}))
    assert op.eps == entry.param("eps").default
    for param in entry.params:
        if param.low is not None:
            with pytest.raises(InvalidParameter, match=param.name):
                make_contender(name, "eager", {param.name: param.low - 1})


def test_kinds():
    kinds = {name: normalizers()[name].kind for name in (*NAMES, "ws")}
    assert {name for name, kind in kinds.items() if kind == "B"} == {
        "frn",
        "evonorm-s0",
        "evonorm-b0",
    }
    assert {name for name, kind in kinds.items() if kind == "C"} == {
        *("mabn", "online", "cbn", "kn", "vbn", "ws"),
    }


def test_ws_says_where_it_belongs():
    with pytest.raises(UsageError, match="WSConv2d with gn or bcn"):
        parse_contender("ws")


def test_kalman_chain(check):
    """Each layer is predicted by the one before it, whose estimate of this very step it gets."""
    layers = [Norm("kn", 6, p=0.3).double() for _ in range(3)]
    handles = chain(layers)
    x = check.draw((4, 6, 3, 3))
    before = None
    for layer in layers:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        if before is not None:
            mean, var, _ = predict(mean, var, *before, 0.3)
        column = (1, 6, 1, 1)
        wanted = (x - mean.view(column)) / (var.view(column) + 1e-5).sqrt()
        x = layer(x).detach()
        torch.testing.assert_close(x, wanted)
        before, x = (mean, var), 2 * x + 1
    for handle in handles:
        handle.remove()
    with pytest.raises(NotApplicable, match="6, 8"):
        chain([*layers, Norm("kn", 8)])


def test_cbn_watches_its_convolution(check):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 6, 3, bias=False).double(), Norm("cbn", 6, window=2).double()
    handle = watch(conv, norm)
    uncorrected, state = CrossIterationBatchNorm(window=2), State()
    model, x = nn.Sequential(conv, norm), check.draw((4, 3, 6, 6))
    for _ in range(2):
        y, h = model(x), conv(x).detach()
        plain, _ = uncorrected.forward(h, None, None, state)
        with torch.no_grad():
            conv.weight += 1e-4 * torch.randn_like(conv.weight)
    exact = nn.functional.batch_norm(h, None, None, training=True)
    assert (y - exact).abs().max() < 0.02 * (plain - exact).abs().max()
    handle.remove()
