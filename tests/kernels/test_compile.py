"""torch.compile: one graph for all steps, with the draws and numbers of eager execution."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._library.custom_ops import CustomOpDef
from torch.utils.checkpoint import checkpoint

from sbnbench.registry import normalizers
from sbnbench_kernels import draws
from sbnbench_kernels.convert import convert
from sbnbench_kernels.module import Norm

LAYERS = [n.name for n in normalizers().values() if n.kind in "AB" and n.provider == "sbnbench"]
DRAWN = ["ns", "bs", "fs", "bs+vdn", "fs+vdn"]
MOMENTS = {"mean": [0.0] * 3, "std": [1.0] * 3}


@pytest.fixture(autouse=True)
def _one_compilation():
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


several = torch._dynamo.config.patch(error_on_recompile=False)


def batch(step: int, rows: int = 8, channels: int = 32) -> torch.Tensor:
    g = torch.Generator().manual_seed(step)
    return 3 * torch.randn(rows, channels, 6, 7, generator=g) + 1


def train(model: nn.Module, f, steps, **shape) -> list[torch.Tensor]:
    """Outputs and gradients of training steps."""
    seen = []
    for step in steps:
        x = batch(step, **shape).requires_grad_()
        model.zero_grad()
        y = f(x)
        (y * y.detach().cos()).sum().backward()
        seen += [y.detach(), x.grad, *(p.grad.clone() for p in model.parameters())]
    return seen


def assert_alike(plain: nn.Module, compiled: nn.Module, steps=range(12), backend="aot_eager"):
    f = torch.compile(compiled, backend=backend, fullgraph=True)
    shape = {"channels": 3} if isinstance(plain, nn.Sequential) else {}
    torch.testing.assert_close(
        train(compiled, f, steps, **shape),
        train(plain, plain, steps, **shape),
        rtol=1e-3,
        atol=1e-3,
    )
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-4)
    return f


def modes(name: str) -> list[dict[str, object]]:
    choices = normalizers()[name].param("backward")
    return [{"backward": mode} for mode in choices.choices] if choices else [{}]


QUICK = [("bn", {}), ("gn", {}), ("fs", {"backward": "exact"}), ("bs", {"backward": "sampled"})]


@pytest.mark.parametrize(
    ("name", "params"),
    [
        pytest.param(name, params, marks=() if (name, params) in QUICK else pytest.mark.slow)
        for name in LAYERS
        for params in modes(name)
    ],
)
def test_steps_compile_once_and_are_those_of_eager(name, params):
    plain = Norm(name, 32, seed=5, **params)
    compiled = copy.deepcopy(plain)
    assert_alike(plain, compiled, range(12 if name in DRAWN else 3))
    assert counters["stats"]["unique_graphs"] == 1
    assert compiled.step == plain.step


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bn", "gn", "ln", "in"])
def test_operators_of_pytorch_compile_too(name):
    plain = Norm(name, 32, backend="aten")
    assert_alike(plain, copy.deepcopy(plain), range(3))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fs", "bs", "bn", "brn"])
def test_the_cumulative_average_compiles(name):
    plain = Norm(name, 32, momentum=None)
    assert_alike(plain, copy.deepcopy(plain), range(4))


@pytest.mark.parametrize("name", DRAWN)
def test_draws_advance(name):
    layer = Norm(name, 4, seed=1)
    f = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = batch(0, 16, 4)
    with torch.no_grad():
        outputs = [f(x) for _ in range(12)]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(outputs))


@several
def test_only_a_change_of_mode_compiles_again():
    plain = Norm("fs", 32)
    compiled = copy.deepcopy(plain)
    f = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for mode in (True, False) * 3:
        plain.train(mode)
        compiled.train(mode)
        with torch.no_grad():
            for step in range(3):
                torch.testing.assert_close(f(batch(step)), plain(batch(step)))
    assert counters["stats"]["unique_graphs"] == 2
    assert compiled.step == plain.step == 9


def test_layers_of_other_seeds_share_a_graph():
    """As where the blocks of a model are compiled one by one."""
    f = torch.compile(nn.Module.__call__, backend="aot_eager", fullgraph=True)
    x = batch(0)
    outputs = [f(Norm("fs", 32, seed=seed), x) for seed in range(12)]
    expected = [Norm("fs", 32, seed=seed)(x) for seed in range(12)]
    torch.testing.assert_close(outputs, expected)
    assert counters["stats"]["unique_graphs"] == 1


def test_without_fullgraph_it_compiles_once_too():
    plain = Norm("bs", 32)
    compiled = copy.deepcopy(plain)
    f = torch.compile(compiled, backend="aot_eager")
    torch.testing.assert_close(
        [f(batch(i)) for i in range(12)], [plain(batch(i)) for i in range(12)]
    )
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_resumed_training_draws_on():
    first, second = Norm("fs", 32, seed=2), Norm("fs", 32, seed=2)
    f = torch.compile(first, backend="aot_eager")
    f(batch(0))
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(
        torch.compile(second, backend="aot_eager")(batch(1)), first(batch(1))
    )


@pytest.mark.parametrize("name", ["bs", "fs"])
@pytest.mark.slow
@several
def test_batches_of_another_size(name):
    plain = Norm(name, 32, ratio=1 / 4)
    compiled = copy.deepcopy(plain)
    f = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for rows in (16, 16, 7, 16, 12, 7):
        torch.testing.assert_close(
            train(compiled, f, [rows], rows=rows),
            train(plain, plain, [rows], rows=rows),
            rtol=1e-3,
            atol=1e-3,
        )


def net() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Conv2d(c, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for c in (3, 8)
    ]
    return nn.Sequential(*blocks)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bs", "fs", "vdn", "fs+vdn"])
def test_a_converted_model(name):
    moments = MOMENTS if "vdn" in name else {}
    plain, compiled = (convert(net(), name, seed=4, **moments) for _ in range(2))
    assert_alike(plain, compiled)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True)
def test_activation_checkpointing_within_a_graph_recomputes_the_same_draw():
    class Checked(nn.Sequential):
        def forward(self, x):
            for block in self:
                x = checkpoint(block, x, use_reentrant=False)
            return x

    plain = convert(net(), "fs", seed=4)
    checked = convert(Checked(*net()), "fs", seed=4)
    assert_alike(plain, checked, range(3))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bs", "fs", "ns", "brn", "gn", "fs+vdn"])
def test_inductor(name):
    plain = Norm(name, 32, seed=3, momentum=None)
    assert_alike(plain, copy.deepcopy(plain), range(4), "inductor")


CALLS = [
    (torch.ops.sbnbench.now, (draws.make_clock(3, 7), False)),
    (torch.ops.sbnbench.tick, (draws.make_clock(3, 7),)),
    (torch.ops.sbnbench.start, (torch.empty(0), 3, 7, 5)),
    (torch.ops.sbnbench.corners, (3, 7, 4, [5, 6], torch.device("cpu"), False)),
    (torch.ops.sbnbench.corners, (3, 7, 4, [5], torch.device("cpu"), True)),
    (torch.ops.sbnbench.elements, (3, 7, 40, 9, torch.device("cpu"))),
    (torch.ops.sbnbench.noise, (3, 7, [2, 3], torch.device("cpu"))),
]


@pytest.mark.parametrize(("operator", "arguments"), CALLS, ids=lambda v: getattr(v, "__name__", ""))
def test_operators_keep_torchs_rules(operator, arguments):
    torch.library.opcheck(operator, arguments)


def test_every_operator_is_checked():
    defined = [v for v in vars(draws).values() if isinstance(v, CustomOpDef)]
    assert {op._qualname for op in defined} == {str(op).replace(".", "::") for op, _ in CALLS}


def test_a_compiled_backends_layer_is_traced_by_its_eager_op():
    plain = Norm("fs", 32, seed=5)
    assert_alike(plain, Norm("fs", 32, seed=5, backend="inductor"), range(2))
