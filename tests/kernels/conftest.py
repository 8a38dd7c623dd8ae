"""Inputs that a wrong normalizer cannot pass, and float64 references that share no code with it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sbnbench.registry import build, parse_contender
from sbnbench_kernels.samplers import Sample
from sbnbench_kernels.sampling import Box

TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    torch.bfloat16: 1e-2,
    torch.float16: 2e-3,
}


class Inputs(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor
    dy: Tensor


class Result(NamedTuple):
    y: Tensor
    dx: Tensor
    dweight: Tensor
    dbias: Tensor


def per_channel(v: Tensor, dim: int) -> Tensor:
    return v.view(1, -1, *(1,) * (dim - 2))


def make_inputs(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    layout: str = "contiguous",
    seed: int = 0,
    offset: float = 3.0,
) -> Inputs:
    """Values with an offset and a scale for each channel, correlated in space and within a sample,
    heavy-tailed; γ, b and dy far from 1, 0 and white. Layouts: contiguous, channels_last, sliced
    (every second element of a larger tensor), transposed (the last two dimensions swapped)."""
    g = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    channels, dim = shape[1], len(shape)
    noise = normal(*shape) / (0.3 + normal(*shape).square())  # few values far out
    smooth = noise.cumsum(-1) if dim > 2 else noise
    values = 0.3 * noise + 0.2 * smooth + normal(shape[0], channels, *(1,) * (dim - 2))
    scale = 0.2 + 2 * torch.rand(channels, generator=g, dtype=torch.float64)
    x = values * per_channel(scale, dim) + offset * per_channel(normal(channels), dim)
    dy = normal(*shape) * per_channel(scale, dim) + 0.3 * x / x.abs().mean() + 0.5
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    return Inputs(
        lay_out(x.to(dtype), layout),
        (1.5 + 0.5 * normal(channels)).to(kept),
        normal(channels).to(kept),
        lay_out(dy.to(dtype), layout),
    )


def lay_out(t: Tensor, layout: str) -> Tensor:
    """The same values in another memory format."""
    if layout == "channels_last" and t.dim() in (4, 5):
        last = torch.channels_last if t.dim() == 4 else torch.channels_last_3d
        return t.contiguous(memory_format=last)
    if layout == "sliced":
        larger = t.repeat_interleave(2, 0).repeat_interleave(2, -1)
        return larger[::2, ..., ::2]
    if layout == "transposed" and t.dim() > 3:
        return t.transpose(-1, -2).contiguous().transpose(-1, -2)
    return t.contiguous()


def assert_near(actual: Any, expected: Any, tolerance: float) -> None:
    """|actual − expected| ≤ tolerance·(RMS of expected + |expected|), for each of two tuples."""
    assert len(actual) == len(expected)
    for name, a, e in zip(Result._fields, actual, expected, strict=False):
        a, e = a.double(), e.double()
        assert a.shape == e.shape
        bound = tolerance * (e.square().mean().sqrt() + e.abs()) + 1e-300
        excess = ((a - e).abs() / bound).max().item()
        assert excess <= 1, f"{name} is off by {excess:.3g} times the tolerance"


def weights_of(sample: Sample, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(N, 1, *spatial) ω and, for sums over everything, what each sampled value is scaled by."""
    omega = torch.zeros(shape[0], *shape[2:], dtype=torch.float64)
    up = torch.zeros_like(omega)
    for share in sample:
        inside = torch.zeros_like(omega, dtype=torch.bool)
        if not isinstance(share.part, Box):
            inside.view(-1)[share.part.positions] = True
        elif share.part.corners is None:
            inside[share.part.start : share.part.start + share.part.count] = True
        else:
            corners = share.part.corners.tolist()
            for row, steps in product(
                range(share.part.count), product(*map(range, share.part.patch))
            ):
                place = [c + s for c, s in zip(corners[row], steps, strict=True)]
                inside[(share.part.start + row, *place)] = True
        assert int(inside.sum()) == share.size
        assert not (omega[inside] != 0).any(), "shares overlap"
        omega[inside] = share.weight / share.size
        up[inside] = share.stands_for / share.size
    return omega.unsqueeze(1), up.unsqueeze(1)


def reference(sample: Sample, mode: str, inputs: Inputs, eps: float = 1e-5) -> Result:
    """y and the gradients of a sampled normalizer, evaluated densely in float64.

    exact: autograd through y. sampled, detached: the written formulas.
    """
    x, weight, bias, dy = (t.double() for t in inputs)
    dims = [d for d in range(x.dim()) if d != 1]
    omega, up = weights_of(sample, tuple(x.shape))

    def normalize(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = (omega * x).sum(dims, keepdim=True)
        var = (omega * (x - mean) ** 2).sum(dims, keepdim=True)
        sigma = (var + eps).sqrt()
        xhat = (x - mean) / sigma
        return xhat * per_channel(weight, x.dim()) + per_channel(bias, x.dim()), xhat, sigma

    if mode == "exact":
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        y = normalize(*leaves)[0]
        return Result(y.detach(), *torch.autograd.grad(y, leaves, dy))
    y, xhat, sigma = normalize(x, weight, bias)
    g = per_channel(weight, x.dim()) * dy
    if mode == "detached":
        return Result(y, g / sigma, (dy * xhat).sum(dims), dy.sum(dims))
    mean_g = (omega * g).sum(dims, keepdim=True)
    mean_gx = (omega * g * xhat).sum(dims, keepdim=True)
    dx = (g - mean_g - xhat * mean_gx) / sigma
    return Result(y, dx, (up * dy * xhat).sum(dims), (up * dy).sum(dims))


def run(text: str, inputs: Inputs, state: Any) -> Result:
    """Forward and backward of a contender such as `fs[ratio=1/4]@aten`."""
    op = build(parse_contender(text))
    y, saved = op.forward(inputs.x, inputs.weight, inputs.bias, state)
    return Result(y, *op.backward(inputs.dy, saved))


class Kit(NamedTuple):
    """The functions above, for tests under --import-mode=importlib."""

    make_inputs: Callable[..., Inputs]
    lay_out: Callable[[Tensor, str], Tensor]
    assert_near: Callable[[Any, Any, float], None]
    reference: Callable[..., Result]
    run: Callable[[str, Inputs, Any], Result]
    tolerance: dict[torch.dtype, float]


@pytest.fixture(scope="session")
def kit() -> Kit:
    """Input generators and float64 references."""
    return Kit(make_inputs, lay_out, assert_near, reference, run, TOLERANCE)
