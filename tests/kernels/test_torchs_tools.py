"""Layers under torch.export, autocast and torch.func, held against nn.BatchNorm2d's behaviour."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vjp, vmap

from sbnbench.errors import NotApplicable
from sbnbench.registry import normalizers
from sbnbench_kernels.convert import convert
from sbnbench_kernels.module import Norm

BUILT_IN = [n for n in normalizers().values() if n.provider == "sbnbench"]
DROP_INS = [n.name for n in BUILT_IN if n.kind == "A"]
LAYERS = [n.name for n in BUILT_IN if n.kind in "AB"]
FUNCTIONAL = ["bn", "fs", "bs", "gn", "sn", "l1bn"]


def moments(name: str) -> dict[str, object]:
    return {"mean": [0.0] * 3, "std": [1.0] * 3} if "vdn" in name else {}


@pytest.mark.parametrize("name", DROP_INS)
@pytest.mark.parametrize("any_batch", [False, True])
def test_export_in_eval(name, any_batch):
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
    model = convert(model, name, backend="eager", **moments(name))
    x = torch.randn(4, 3, 9, 9)
    model(x)
    model.eval()
    shapes = ({0: torch.export.Dim("rows", min=2, max=64)},) if any_batch else None
    program = torch.export.export(model, (x,), dynamic_shapes=shapes)
    operators = {str(node.target) for node in program.graph.nodes}
    assert not any("sbnbench" in operator for operator in operators)
    x = torch.randn(7 if any_batch else 4, 3, 9, 9)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", ["half", "single"])
@pytest.mark.parametrize("training", [True, False])
def test_autocast_gives_the_dtypes_of_batch_norm(name, half, given, training):
    seen = []
    for layer in (nn.BatchNorm2d(32), Norm(name, 32)):
        layer.train(training)
        x = torch.randn(4, 32, 6, 6, dtype=half if given == "half" else torch.float32)
        x.requires_grad_()
        with torch.autocast("cpu", half):
            y = layer(x)
        y.float().square().sum().backward()
        kept = {layer.weight.dtype, layer.weight.grad.dtype, layer.bias.grad.dtype}
        kept |= {b.dtype for b in layer.buffers() if b.is_floating_point()}
        seen.append((y.dtype, x.grad.dtype, kept))
        assert y.isfinite().all()
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", LAYERS)
def test_copies_and_pickles_go_on_alike(name):
    layer = Norm(name, 32, seed=3, ranks="same")
    x = torch.randn(8, 32, 6, 6)
    layer(x)
    others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    for _ in range(2):
        y = layer(x)
        assert all(torch.equal(other(x), y) for other in others)
    assert all((other.step, other.seed, other.ranks) == (3, 3, "same") for other in others)


def make(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    groups = {"groups": 2} if name == "gn" else {}
    layer = nn.BatchNorm2d(4, **options) if name == "nn" else Norm(name, 4, **groups, **options)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    return layer.double()


X = torch.randn(6, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
DY = torch.randn(6, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def state_of(layer: nn.Module) -> tuple[dict, dict]:
    return dict(layer.named_parameters()), dict(layer.named_buffers())


def gradient(layer):
    parameters, buffers = state_of(layer)

    def loss(p, x):
        return (functional_call(layer, (p, buffers), (x,)) * DY).sum()

    return grad(loss, argnums=(0, 1))(parameters, X)


def gradient_of_each_sample(layer):
    parameters, buffers = state_of(layer)

    def loss(p, x, dy):
        return (functional_call(layer, (p, buffers), (x[None],)) * dy[None]).sum()

    return vmap(grad(loss), in_dims=(None, 0, 0))(parameters, X, DY)


def product(layer):
    y, pull = vjp(layer, X)
    return y, pull(DY)


def forward_mode(layer):
    return jvp(layer, (X,), (DY,))


def second_order(layer):
    return hessian(lambda x: (layer(x) ** 3).sum())(X[:2, :, :2, :2])


def batched(layer):
    return vmap(layer)(torch.stack([X, 2 * X + 1]))


def ensemble(layer):
    layers = [copy.deepcopy(layer) for _ in range(3)]
    for k, other in enumerate(layers):
        other.weight.data *= k + 1
    parameters, buffers = stack_module_state(layers)
    skeleton = copy.deepcopy(layer).to("meta")
    y = vmap(lambda p, b: functional_call(skeleton, (p, b), (X,)))(parameters, buffers)
    return y, buffers


USES = [
    gradient, gradient_of_each_sample, product, forward_mode, second_order, batched, ensemble,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("use", USES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("track", [True, False], ids=["tracking", "not"])
@pytest.mark.parametrize("name", FUNCTIONAL)
def test_transforms_work_where_batch_norms_do(name, use, training, track):
    def run(name):
        return use(make(name, track_running_stats=track).train(training))

    try:
        expected = run("nn")
    except RuntimeError:  # BatchNorm writes to its averages, which the transform forbids
        if normalizers()[name].running:
            with pytest.raises(RuntimeError):
                run(name)
        return
    found = run(name)
    if name == "bn":
        torch.testing.assert_close(found, expected)
    assert all(t.isfinite().all() for t in torch.utils._pytree.tree_leaves(found))


@pytest.mark.parametrize("name", ["fs", "bs", "gn", "sn"])
def test_a_transforms_gradient_is_autograds(name):
    first, second = (make(name, track_running_stats=False) for _ in range(2))
    of_parameters, of_x = gradient(first)
    x = X.clone().requires_grad_()
    (second(x) * DY).sum().backward()
    torch.testing.assert_close(of_x, x.grad)
    for key, parameter in second.named_parameters():
        torch.testing.assert_close(of_parameters[key], parameter.grad)
    # and nothing that was made within the transform stays behind
    assert torch.equal(first(X), second(X))
    assert first.step == second.step == 2


def test_a_gradient_that_no_transform_can_take_is_refused():
    layer = Norm("fs", 4, backward="sampled", track_running_stats=False)
    with pytest.raises(NotApplicable, match="set backward=exact"):
        grad(lambda x: layer(x).sum())(X.float())
