"""Inputs that flatter nobody, and the comparison of an op with a formula under autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sbnbench_kernels.contract import State

SHAPES = {
    "nc": (12, 6),
    "ncl": (6, 6, 9),
    "nchw": (6, 6, 5, 4),
    "ncdhw": (4, 6, 2, 3, 4),
}
TOLERANCE = {
    torch.float64: 1e-8,
    torch.float32: 2e-5,
    torch.float16: 3e-3,
    torch.bfloat16: 2.5e-2,
}
FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}


def draw(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Channels of different offset and scale, correlated along the map, with heavy tails."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    x = normal(*shape)
    for dim in range(2, len(shape)):
        x = x + 0.7 * x.roll(1, dim)
    tails = 1 + 4 * (torch.rand(shape, generator=generator, dtype=torch.float64) < 0.05)
    columns = (1, shape[1], *[1] * (len(shape) - 2))
    scale, offset = normal(*columns).exp(), 3 * normal(*columns)
    return ((x * tails + 0.5 * normal(shape[0], *columns[1:])) * scale + offset).to(dtype)


def near(got: Tensor, wanted: Tensor, tolerance: float, what: str, floor: float = 1e-6) -> None:
    """Agreement within `tolerance` of the RMS of what is wanted, or of `floor` if that is more."""
    assert got is not None, f"{what} is missing"
    assert got.shape == wanted.shape, f"{what} has shape {got.shape}"
    wanted, got = wanted.double(), got.double()
    assert got.isfinite().all(), f"{what} is not finite"
    rms = wanted.square().mean().sqrt().clamp_min(floor)
    error = ((got - wanted).abs() / (wanted.abs() + rms)).max()
    assert error <= tolerance, f"{what} is off by {error:.2e} of its scale"


class Checker:
    """Runs an op and a formula on the same input and compares all that comes out."""

    SHAPES, FORMATS, TOLERANCE = SHAPES, FORMATS, TOLERANCE
    draw, near = staticmethod(draw), staticmethod(near)

    @staticmethod
    def state(channels: int, seed: int = 5, **given: Any) -> State:
        """Running statistics that are neither zero nor one."""
        generator = torch.Generator().manual_seed(seed)
        mean = torch.randn(channels, generator=generator, dtype=torch.float64)
        var = torch.rand(channels, generator=generator, dtype=torch.float64) * 3 + 0.5
        return State(mean, var, **{"momentum": 0.3, **given})

    def __call__(
        self,
        op: Any,
        formula: Callable[..., tuple[Tensor, Tensor | None, Tensor | None]],
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float64,
        memory: torch.memory_format = torch.contiguous_format,
        state: State | None = None,
        affine: bool = True,
        x: Tensor | None = None,
        **known: Tensor,
    ) -> State:
        """formula(x, γ, b, μ, σ², α, **extra) gives y and the new μ, σ², all in float64.

        Gradients are compared for x, γ, b and each tensor of `known`, which are the extra
        parameters of the op.
        """
        channels = shape[1]
        state = state or self.state(channels)
        x = draw(shape, dtype=dtype) if x is None else x.to(dtype)
        x = x.contiguous(memory_format=memory)
        dy = draw(shape, seed=9, dtype=dtype)
        weight = bias = None
        if affine:
            weight = draw((1, channels), seed=2).flatten().to(torch.float32)
            bias = draw((1, channels), seed=3).flatten().to(torch.float32)
            if dtype == torch.float64:
                weight, bias = weight.double(), bias.double()

        leaves = {"dx": x, "dweight": weight, "dbias": bias, **known}
        exact = {
            name: None if leaf is None else leaf.detach().double().requires_grad_()
            for name, leaf in leaves.items()
        }
        before = [
            None if t is None else t.clone().double()
            for t in (state.running_mean, state.running_var)
        ]
        extra = {name: exact[name] for name in known}
        y_exact, *after = formula(
            exact["dx"], exact["dweight"], exact["dbias"], *before, state.momentum, **extra
        )
        y_exact.backward(dy.double())

        state.extra.update(known)
        step = state.step
        y, saved = op.forward(x, weight, bias, state)
        assert y.dtype == x.dtype
        assert y.is_contiguous(memory_format=memory)
        dx, dweight, dbias, *more = op.backward(dy, saved)
        again = op.backward(dy, saved)
        assert torch.equal(again[0], dx), "backward changed what it was given"
        assert dx.dtype == x.dtype
        assert state.step == step + state.training

        tolerance = TOLERANCE[dtype]
        near(y, y_exact, tolerance, "y")
        got = {"dx": dx, "dweight": dweight, "dbias": dbias, **(more[0] if more else {})}
        # dx is what cancellation leaves of dy, and the other gradients are sums of it.
        floor = 1e-3 * dy.double().square().mean().sqrt().item()
        for name, leaf in exact.items():
            if leaf is not None:
                loose = 1 if name == "dx" else 4
                near(got[name], leaf.grad, loose * tolerance, name, floor)
        for name, running, wanted in zip(
            ("running_mean", "running_var"),
            (state.running_mean, state.running_var),
            after,
            strict=True,
        ):
            if wanted is not None and running is not None:
                near(running, wanted, min(tolerance, 2e-5), name)
        return state


@pytest.fixture(scope="session")
def check() -> Checker:
    return Checker()
