"""BatchNorm and its sampled relatives: one code path, which differs in the sample alone.

Forward, per channel, S the sample, ω_i the weight of value i of S (Σω = 1; 1/s for one share):

    μ = Σ_S ω_i x_i,  σ² = Σ_S ω_i (x_i−μ)² + ε,  x̂ = (x−μ)/σ,  y = γx̂ + b

Backward, g = γ·∂L/∂y, Σ over everything where no set is named:

    exact:    dx_i = (1/σ)·(g_i − ω_i·(Σg + x̂_i·Σ g x̂)), ω_i = 0 outside S: what autograd gives.
    sampled:  dx_i = (1/σ)·(g_i − Σ_S ω g − x̂_i·Σ_S ω g x̂) for all i; biased, and reads no more
              than S to get its sums.
    detached: dx_i = g_i/σ, the statistics taken as constants.

dγ = Σ dy·x̂ and db = Σ dy, in `sampled` estimated: the sum over each share of the sample, scaled
from its s_k values to those it stands for (all n, or in a mixture the real and the virtual ones).
Where the sample is everything, exact and sampled are both BatchNorm's backward.

A mixture of virtual rows v and a real sample s has ω = β/s_v and (1−β)/s_s, so that
μ = βμ_v + (1−β)μ_s and σ² = βσ_v² + (1−β)σ_s² + β(1−β)(μ_v−μ_s)²; its three backwards are the
ones above with these weights.

A collapsed sample (a constant patch) has σ = √ε: y and dx are then up to 1/√ε times x−μ and dy,
finite as long as that fits the dtype. Nothing is clamped, so an overflow stays visible.

Statistics are taken in two passes. Sources: Ioffe and Szegedy, arXiv 1502.03167 (`bn`); Chen et
al., arXiv 1810.10962 (`bs`, `fs`, `vdn`, mixtures). Which backward the paper used is not stated in
what could be read; the mixture's moments are an interpretation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.arithmetic import (
    accumulator,
    affine,
    check_input,
    column,
    combine,
    scale_of,
)
from sbnbench_kernels.eager.parts import put, take
from sbnbench_kernels.running import update_running
from sbnbench_kernels.samplers import (
    Description,
    Everything,
    Mixture,
    RandomElements,
    RandomPatches,
    RandomRows,
    Sample,
    Sampler,
    VirtualRows,
    bessel,
    require_variance,
)

Backward = Literal["exact", "sampled", "detached"]


class Saved(NamedTuple):
    """What backward reads. An empty sample says that the statistics were constants."""

    x: Tensor
    weight: Tensor | None
    bias_dtype: torch.dtype | None
    mean: Tensor
    rstd: Tensor
    sample: Sample


class SampledNorm:
    """Normalizes everything with the statistics of a sample.

    x, y, dy, dx: (N, C, *spatial); γ, b, mean, var: (C,). Raises NotApplicable in training where
    the sample has one value a channel.
    """

    def __init__(self, sampler: Sampler, eps: float, backward: Backward) -> None:
        self.sampler = sampler
        self.eps = eps
        self.mode = backward

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, Saved]:
        check_input(x)
        if state.training or state.running_mean is None or state.running_var is None:
            mean, var, sample = self._estimate(x, state)
        else:
            # Copies: a training call between this forward and its backward changes the averages.
            mean = state.running_mean.to(accumulator(x), copy=True)
            var, sample = state.running_var.to(accumulator(x)), ()
        if state.training:
            update_running(state, mean, var, bessel(sample))
            state.step += 1
        rstd = torch.rsqrt(var + self.eps)
        scale = scale_of(weight, rstd)
        shift = -mean * scale if bias is None else bias - mean * scale
        bias_dtype = None if bias is None else bias.dtype
        return affine(x, scale, shift), Saved(x, weight, bias_dtype, mean, rstd, sample)

    def backward(self, dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor | None, Tensor | None]:
        scale = scale_of(saved.weight, saved.rstd)
        if self.mode == "sampled" and saved.sample:
            dx, sum_dy, sum_dyd = _sampled_gradient(dy, saved, scale)
        else:
            sum_dy, sum_dyd = _sums(dy, saved.x, saved.mean)
            inside = saved.sample if self.mode == "exact" else ()
            dx = _exact_gradient(dy, saved, scale, inside, sum_dy, sum_dyd)
        dweight = None if saved.weight is None else (sum_dyd * saved.rstd).to(saved.weight.dtype)
        dbias = None if saved.bias_dtype is None else sum_dy.to(saved.bias_dtype)
        return dx, dweight, dbias

    @property
    def exact_gradient(self) -> bool:
        """Whether backward is the derivative of forward."""
        return self.mode == "exact" or isinstance(self.sampler, Everything)

    def statistics(self, x: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (C,) of the next draw; advances `state.step` alone."""
        check_input(x)
        mean, var, _ = self._estimate(x, state)
        state.step += 1
        return mean, var

    def describe(self, shape: tuple[int, ...]) -> Description:
        """The share s/n of the values that are sampled in an input of `shape`, virtual rows
        counted, and notes on a setting that is not what was asked for."""
        return self.sampler.describe(shape)

    def _estimate(self, x: Tensor, state: State) -> tuple[Tensor, Tensor, Sample]:
        sample = self.sampler.draw(x.shape, state.seed, state.step, x.device)
        require_variance(sample, x.shape)
        means, variances = zip(*(_moments(take(s.part, x)) for s in sample), strict=True)
        if len(sample) == 1:
            return means[0], variances[0], sample
        weights = [s.weight for s in sample]
        mean = _weighted(weights, means)
        spreads = [v + (m - mean) ** 2 for m, v in zip(means, variances, strict=True)]
        return mean, _weighted(weights, spreads), sample


class BatchNorm(SampledNorm):
    """`bn`: the sample is everything."""

    def __init__(self, *, eps: float) -> None:
        super().__init__(Everything(), eps, "sampled")


class NaiveSampling(SampledNorm):
    """`ns`: random elements, the same positions for every channel."""

    def __init__(self, *, eps: float, ratio: float, backward: Backward, redraw: int) -> None:
        super().__init__(RandomElements(ratio, redraw), eps, backward)


class BatchSampling(SampledNorm):
    """`bs`: a few whole samples of the batch."""

    def __init__(self, *, eps: float, ratio: float, backward: Backward, redraw: int) -> None:
        super().__init__(RandomRows(ratio, redraw), eps, backward)


class FeatureSampling(SampledNorm):
    """`fs`: a small patch of each feature map of every sample."""

    def __init__(
        self, *, eps: float, ratio: float, backward: Backward, redraw: int, position: str
    ) -> None:
        super().__init__(RandomPatches(ratio, redraw, position), eps, backward)


class VirtualDataset(SampledNorm):
    """`vdn`: the last `num_virtual` rows."""

    def __init__(self, *, eps: float, num_virtual: int, backward: Backward) -> None:
        super().__init__(VirtualRows(num_virtual), eps, backward)


class BatchSamplingVirtual(SampledNorm):
    """`bs+vdn`: weight `beta` on the virtual rows, the rest on `bs` of the real ones."""

    def __init__(
        self,
        *,
        eps: float,
        ratio: float,
        backward: Backward,
        redraw: int,
        beta: float,
        num_virtual: int,
    ) -> None:
        real = RandomRows(ratio, redraw)
        super().__init__(Mixture(real, beta, num_virtual), eps, backward)


class FeatureSamplingVirtual(SampledNorm):
    """`fs+vdn`: weight `beta` on the virtual rows, the rest on `fs` of the real ones."""

    def __init__(
        self,
        *,
        eps: float,
        ratio: float,
        backward: Backward,
        redraw: int,
        position: str,
        beta: float,
        num_virtual: int,
    ) -> None:
        real = RandomPatches(ratio, redraw, position)
        super().__init__(Mixture(real, beta, num_virtual), eps, backward)


def _sampled_gradient(dy: Tensor, saved: Saved, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dx, and the estimates of Σ dy and Σ dy·(x−μ)."""
    x, sample = saved.x, saved.sample
    sums = [_sums(take(s.part, dy), take(s.part, x), saved.mean) for s in sample]
    sums_dy, sums_dyd = zip(*sums, strict=True)
    omega = [s.weight / s.size for s in sample]
    dx = _gradient(dy, x, saved, scale, _weighted(omega, sums_dy), _weighted(omega, sums_dyd))
    up = [s.stands_for / s.size for s in sample]
    return dx, _weighted(up, sums_dy), _weighted(up, sums_dyd)


def _exact_gradient(
    dy: Tensor, saved: Saved, scale: Tensor, sample: Sample, sum_dy: Tensor, sum_dyd: Tensor
) -> Tensor:
    """dx, the statistics being functions of the `sample` alone."""
    x = saved.x
    if any(s.is_whole(x.shape[0]) for s in sample):
        return _gradient(dy, x, saved, scale, sum_dy / sample[0].size, sum_dyd / sample[0].size)
    dx = torch.mul(dy, column(scale, dy), out=torch.empty_like(x))
    for s in sample:
        omega = s.weight / s.size
        inside = _gradient(
            take(s.part, dy), take(s.part, x), saved, scale, omega * sum_dy, omega * sum_dyd
        )
        put(s.part, dx, inside)
    return dx


def _gradient(
    dy: Tensor, x: Tensor, saved: Saved, scale: Tensor, mean_dy: Tensor, mean_dyd: Tensor
) -> Tensor:
    """(γ/σ)·(dy − mean_dy − (x−μ)·mean_dyd/σ²)."""
    slope = -scale * saved.rstd**2 * mean_dyd
    return combine(dy, scale, x, slope, -scale * mean_dy - slope * saved.mean)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance a channel, in two passes."""
    dims = [d for d in range(values.dim()) if d != 1]
    mean = values.mean(dims, dtype=accumulator(values))
    return mean, (values - column(mean, values)).pow_(2).mean(dims)


def _sums(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Σ dy and Σ dy·(x−μ) a channel; centred first, so that an offset of x cancels exactly."""
    dims = [d for d in range(x.dim()) if d != 1]
    centred = x - column(mean, x)
    return dy.sum(dims, dtype=mean.dtype), centred.mul_(dy).sum(dims)


def _weighted(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([w * t for w, t in zip(weights, tensors, strict=True)]).sum(0)
