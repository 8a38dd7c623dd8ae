"""What the peers share: moments, sums of a backward pass, the affine, inference.

Throughout: x̂ is the normalized input, y = γx̂ + b, P the values of one map, n = N·P those of a
channel. Shapes: (C,) is per channel, (N, C) per sample and channel. Statistics are held in float32,
float64 for float64 input; a variance is taken about its mean, in two passes, and merged with
another by Chan's formula, never as E[x²] − E[x]².
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import Saved, State
from sbnbench_kernels.eager.arithmetic import accumulator, affine, check_input, column, scale_of

Gradients = tuple[Tensor, Tensor | None, Tensor | None]
ExtendedGradients = tuple[Tensor, Tensor | None, Tensor | None, dict[str, Tensor]]


def values(x: Tensor) -> int:
    """n: values of a channel."""
    return x.numel() // x.shape[1]


def map_size(x: Tensor) -> int:
    """P: values of a map, 1 for (N, C)."""
    return x.numel() // (x.shape[0] * x.shape[1])


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,), in two passes over each map."""
    mean, var = merge(*sample_moments(x), 0)
    return mean[0], var[0]


def sample_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (N, C) of every map, in two passes."""
    return _moments(x, tuple(range(2, x.dim())))


def _moments(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    if not dims:  # torch takes no dimensions as all of them
        x = x.to(accumulator(x))
        return x, torch.zeros_like(x)
    mean = x.mean(dims, dtype=accumulator(x), keepdim=True)
    var = (x - mean).pow_(2).mean(dims)
    return mean.reshape(var.shape), var


def merge(mean: Tensor, var: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the union of equally large sets along `dim`, kept as one."""
    total = mean.mean(dim, keepdim=True)
    return total, (var + (mean - total).square()).mean(dim, keepdim=True)


def channel_sums(dy: Tensor, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Σ dy and Σ dy·(x−centre), (C,); centre (C,) or (N, C)."""
    dims = (0, *range(2, x.dim()))
    return _sum(dy, dims, centre.dtype), _sum(dy * (x - column(centre, x)), dims, centre.dtype)


def sample_sums(dy: Tensor, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Σ dy and Σ dy·(x−centre), (N, C); centre (C,) or (N, C)."""
    return map_sums(dy, centre.dtype), map_sums(dy * (x - column(centre, x)), centre.dtype)


def map_sums(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Σ over every map, (N, C)."""
    return _sum(t, tuple(range(2, t.dim())), dtype)


def _sum(t: Tensor, dims: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return t.sum(dims, dtype=dtype) if dims else t.to(dtype)


class Scales(NamedTuple):
    """γ and b of one call, either of which may be missing."""

    weight: Tensor | None
    bias: Tensor | None

    def apply(self, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        """γ(x−mean)·rstd + b in x's dtype; mean and rstd (C,) or (N, C)."""
        scale = self.times(rstd)
        return affine(x, scale, self.shift(mean, scale))

    def shift(self, mean: Tensor, scale: Tensor) -> Tensor:
        """b − mean·scale."""
        return -mean * scale if self.bias is None else self.bias.to(scale.dtype) - mean * scale

    def outer(self, xhat: Tensor) -> Tensor:
        """γx̂ + b in x̂'s dtype."""
        y = xhat if self.weight is None else xhat * column(self.weight.to(xhat.dtype), xhat)
        return y if self.bias is None else y + column(self.bias.to(xhat.dtype), xhat)

    def times(self, rstd: Tensor) -> Tensor:
        """γ·rstd."""
        return scale_of(self.weight, rstd)

    def gradients(self, dweight: Tensor, dbias: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """dγ and db in the dtypes of γ and b."""
        return (
            None if self.weight is None else dweight.to(self.weight.dtype),
            None if self.bias is None else dbias.to(self.bias.dtype),
        )


class ExtendedPeer:
    """A peer with tensors of its own, which live in `State.extra`."""

    def parameters(self, channels: int) -> dict[str, Tensor]:
        return {}

    def buffers(self, channels: int) -> dict[str, Tensor]:
        return {}

    def _extra(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """The op's tensors, those that miss put in at their initial values."""
        initial = self.parameters(x.shape[1]) | self.buffers(x.shape[1])
        for name in initial.keys() - state.extra.keys():
            state.extra[name] = initial[name].to(x.device, accumulator(x))
        return state.extra


class Live:
    """`State.extra` for a backward to write to. Not a container, on purpose: what a graph saves
    must not change, and these tensors do."""

    def __init__(self, extra: dict[str, Tensor]) -> None:
        self.extra = extra


class Constants(NamedTuple):
    """What inference saves: y = γ(x−mean)·rstd + b, where x moves neither mean nor rstd (C,)."""

    x: Tensor
    scales: Scales
    mean: Tensor
    rstd: Tensor

    @classmethod
    def infer(
        cls, x: Tensor, scales: Scales, mean: Tensor, var: Tensor, eps: float
    ) -> tuple[Tensor, Constants]:
        """y with the given mean and variance, and what its backward needs."""
        # A copy: a training call between this forward and its backward changes the averages.
        mean, rstd = mean.to(accumulator(x), copy=True), (var.to(accumulator(x)) + eps).rsqrt()
        return scales.apply(x, mean, rstd), cls(x, scales, mean, rstd)

    def backward(self, dy: Tensor) -> Gradients:
        sum_dy, sum_dyd = channel_sums(dy, self.x, self.mean)
        dx = (dy * column(self.scales.times(self.rstd), dy)).to(self.x.dtype)
        return dx, *self.scales.gradients(sum_dyd * self.rstd, sum_dy)


class BatchPeer(ABC):
    """A peer that trains in its own way and infers as BatchNorm does.

    eval(): y = γ(x−μ)/√(σ²+ε) + b from the running statistics; without them (as
    track_running_stats=False has it) from those of the batch, and nothing is updated.
    Raises NotApplicable, a ValueError, where a channel has a single value to learn from.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        self.eps = eps

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, Saved]:
        check_input(x)
        scales = Scales(weight, bias)
        if not state.training and state.running_mean is not None and state.running_var is not None:
            return Constants.infer(x, scales, state.running_mean, state.running_var, self.eps)
        require_values(x)
        result = self._train(x, scales, state)
        state.step += state.training
        return result

    def backward(self, dy: Tensor, saved: Saved) -> Gradients:
        return saved.backward(dy) if isinstance(saved, Constants) else self._gradients(dy, saved)

    @abstractmethod
    def _train(self, x: Tensor, scales: Scales, state: State) -> tuple[Tensor, Any]: ...

    @abstractmethod
    def _gradients(self, dy: Tensor, saved: Any) -> Gradients: ...


def require_values(x: Tensor) -> None:
    """NotApplicable where a channel has one value: its deviation and its gradient are zero."""
    if values(x) < 2:
        raise NotApplicable(
            f"Expected more than 1 value per channel when training, got input size {x.shape}"
        )


def require_running(state: State, name: str) -> tuple[Tensor, Tensor]:
    """The running statistics of an algorithm that cannot do without."""
    if state.running_mean is None or state.running_var is None:
        raise NotApplicable(f"{name} needs running statistics: track_running_stats must be True")
    return state.running_mean, state.running_var


def bessel(x: Tensor) -> float:
    """n/(n−1) for the values of a channel."""
    return values(x) / (values(x) - 1)
