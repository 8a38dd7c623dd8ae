"""The peers on Triton against their references in float64, which are tested against formulas."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import pytest
import torch

import sbnbench_kernels.triton as backend
from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager import (
    bcn,
    ebn,
    evonorm,
    frn,
    ghost,
    grouped,
    l1bn,
    rbn,
    renorm,
    switchable,
)  # fmt: skip

OPS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gn": (grouped.GroupNorm, {"eps": 1e-5, "groups": 3}),
    "ln": (grouped.LayerNorm, {"eps": 1e-5}),
    "in": (grouped.InstanceNorm, {"eps": 1e-5}),
    "ghost": (ghost.GhostBatchNorm, {"size": 2}),
    "brn": (renorm.BatchRenorm, {"steps": 0, "rmax": 1.5, "dmax": 0.5}),
    "ebn": (ebn.ExtendedBatchNorm, {}),
    "l1bn": (l1bn.L1BatchNorm, {}),
    "rbn": (rbn.RangeBatchNorm, {}),
    "sn": (switchable.SwitchableNorm, {}),
    "bcn": (bcn.BatchChannelNorm, {"groups": 3}),
    "bcn-estimate": (bcn.BatchChannelNorm, {"groups": 3, "estimate": True}),
    "frn": (frn.FilterResponseNorm, {}),
    "frn-learned": (frn.FilterResponseNorm, {"learned_eps": True}),
    "evonorm-s0": (evonorm.EvoNormS0, {"groups": 3}),
    "evonorm-b0": (evonorm.EvoNormB0, {}),
}
CHOICES = ["usual", "split", "looped"]
FORMATS = ["contiguous", "channels_last", "sliced"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SETTINGS = cycle(product(FORMATS, DTYPES, CHOICES))
FULL = [
    (9, 33), (4, 48), (3, 3, 8), (5, 6, 16), (2, 6, 7, 7), (1, 9, 14, 14), (4, 3, 5, 33),
    (3, 24, 2, 2), (2, 3, 3, 4, 5), (17, 3, 4, 4), (4, 48, 6, 6), (1, 3, 1, 96),
]  # fmt: skip


def state_of(channels: int, dtype: torch.dtype, training: bool) -> State:
    g = torch.Generator().manual_seed(5)
    mean = torch.randn(channels, generator=g, dtype=torch.float64)
    var = torch.rand(channels, generator=g, dtype=torch.float64) + 0.5
    return State(mean.to(dtype), var.to(dtype), momentum=0.3, training=training, seed=1, step=4)


def extras(op: Any, channels: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(6)
    known = op.parameters(channels) if hasattr(op, "parameters") else {}
    return {k: torch.randn(v.shape, generator=g) * 0.5 for k, v in known.items()}


def run(op: Any, inputs: Any, state: State) -> tuple[Any, ...]:
    y, saved = op.forward(inputs.x, inputs.weight, inputs.bias, state)
    dx, dweight, dbias, *own = op.backward(inputs.dy, saved)
    again = op.backward(inputs.dy, saved)
    assert torch.equal(again[0], dx)
    return y, dx, dweight, dbias, own[0] if own else {}


def near(actual, expected, tolerance: float, floor: float, what: str) -> None:
    assert actual.shape == expected.shape
    a, e = actual.double(), expected.double()
    scale = e.square().mean().sqrt().clamp_min(floor)
    error = ((a - e).abs() / (scale + e.abs())).max().item()
    assert error <= tolerance, f"{what} is off by {error:.2e} of its scale"


def check(kit, name, shape, dtype, format, training):  # noqa: A002
    eager, params = OPS[name]
    ours, theirs = getattr(backend, eager.__name__)(**params), eager(**params)
    inputs = kit.make_inputs(shape, dtype, format)
    wide = type(inputs)(*(t.double() for t in inputs))
    states = [state_of(shape[1], d, training) for d in (torch.float32, torch.float64)]
    own = extras(theirs, shape[1])
    states[0].extra.update({k: v.clone() for k, v in own.items()})
    states[1].extra.update({k: v.double() for k, v in own.items()})
    try:
        expected = run(theirs, wide, states[1])
    except NotApplicable as error:
        with pytest.raises(NotApplicable, match=str(error)[:12]):
            run(ours, inputs, states[0])
        return
    result = run(ours, inputs, states[0])
    # dx is what cancellation leaves of dy; two values a segment divide by nearly √ε.
    few = 10 if shape[0] * shape[1] * 9 > inputs.x.numel() else 1
    tolerance = kit.tolerance[dtype] * few
    floor = 1e-3 * wide.dy.square().mean().sqrt().item()
    for what, a, e in zip(("y", "dx", "dweight", "dbias"), result, expected, strict=False):
        # A sum over a channel may cancel altogether, as dγ does in bcn with a group a channel.
        many = inputs.x.numel() / shape[1] if what in ("dweight", "dbias") else 1
        near(a, e, tolerance * (1 if many == 1 else 4), floor * many**0.5, what)
    assert result[0].dtype == result[1].dtype == dtype
    assert result[4].keys() == expected[4].keys()
    for key, wanted in expected[4].items():
        total = wide.dy.abs().sum().item() / shape[1] / 10
        near(result[4][key], wanted, tolerance * 4, 1e-2 * total, key)
    for what in ("running_mean", "running_var"):
        near(getattr(states[0], what), getattr(states[1], what), 5e-5, 1e-6, what)
    assert states[0].step == states[1].step


@pytest.mark.parametrize(
    ("name", "shape", "format", "dtype", "choice"),
    [(n, s, *next(SETTINGS)) for n, s in product(OPS, [(3, 6, 7, 5)])],
    indirect=["choice"],
)
def test_training(kit, choice, name, shape, format, dtype):  # noqa: A002
    check(kit, name, shape, dtype, format, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "format", "dtype", "choice", "training"),
    [
        (n, s, *next(SETTINGS), training)
        for training, shapes in ((True, FULL), (False, FULL[2:5]))
        for n, s in product(OPS, shapes)
    ],
    indirect=["choice"],
)
def test_full_grid(kit, choice, name, shape, format, dtype, training):  # noqa: A002
    check(kit, name, shape, dtype, format, training)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPS)
def test_without_affine_parameters(kit, choice, name):
    eager, params = OPS[name]
    ours, theirs = getattr(backend, eager.__name__)(**params), eager(**params)
    inputs = kit.make_inputs((4, 6, 7, 5), torch.float32)
    bare = inputs._replace(weight=None, bias=None)
    wide = bare._replace(x=inputs.x.double(), dy=inputs.dy.double())
    states = [state_of(6, d, True) for d in (torch.float32, torch.float64)]
    result, expected = run(ours, bare, states[0]), run(theirs, wide, states[1])
    kit.assert_near(result[:2], expected[:2], 5e-5)
    assert result[2] is None
    assert result[3] is None


def test_uneven_sub_batches(kit):
    for format, shape in product(FORMATS[:2], [(7, 4, 3, 5), (5, 3, 8)]):  # noqa: A001
        check(kit, "ghost", shape, torch.float32, format, True)


def test_equal_extremes_take_the_first(kit):
    """In bfloat16 many values are equal; the gradient of the range goes to one of them."""
    x = torch.tensor([1.0, 3, 3, 1, 2, 3, 1, 2]).view(2, 1, 2, 2).to(torch.bfloat16)
    inputs = kit.make_inputs((2, 1, 2, 2), torch.bfloat16)._replace(x=x)
    wide = type(inputs)(*(t.double() for t in inputs))
    ours, theirs = backend.RangeBatchNorm(chunks=1), rbn.RangeBatchNorm(chunks=1)
    result, expected = run(ours, inputs, State()), run(theirs, wide, State())
    kit.assert_near(result[:4], expected[:4], 1e-2)
