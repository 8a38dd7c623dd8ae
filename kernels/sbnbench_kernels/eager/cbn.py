"""Cross-Iteration Batch Normalization: statistics of the last k iterations, corrected for how the
weights before the layer have moved since.

With θ the weights of the linear map before the layer, and iteration t−τ's statistics expanded to
first order around the θ it saw,
μ_{t−τ|t} = μ_{t−τ} + ⟨∂μ/∂θ, θ_t−θ_{t−τ}⟩,   ν_{t−τ|t} = ν_{t−τ} + ⟨∂ν/∂θ, θ_t−θ_{t−τ}⟩, ν = E[x²]
μ̄ = mean_τ μ_{t−τ|t},   σ̄² = mean_τ max(ν_{t−τ|t}, μ²_{t−τ|t}) − μ̄²,   τ = 0 … k−1
x̂ = (x−μ̄)/√(σ̄²+ε),   y = γx̂ + b

Z. Yao, Y. Cao, S. Zheng, G. Huang, S. Lin, Cross-Iteration Batch Normalization, CVPR 2021, arXiv
2002.05712. A channel's derivative runs over its own row of θ, as there.

Computed, without a difference of large numbers, as σ̄² = mean_τ v_{t−τ|t} + var_τ μ_{t−τ|t} with
v_{t−τ|t} = max(0, v + ⟨∂v/∂θ, Δ⟩ − ⟨∂μ/∂θ, Δ⟩²), v the variance of an iteration: the same number.

θ, ∂μ/∂θ and ∂v/∂θ, each (C, F), come through `State.extra` as `theta`, `mean_slope` and
`var_slope`, set by `observe` before each forward (kind C), as `watch` does for a module. Without
them Δ counts as zero: the uncorrected average over iterations, naive CBN in the paper.

Choices. Statistics are kept from the first iteration on; up to iteration `burnin` only the batch's
own are used. `running_mean` and `running_var` average the batch's own (Bessel-corrected), and
eval() is BatchNorm's. `State.extra` keeps the window, `past_mean` and `past_var` (k−1, C), with
what `observe` gave, three (k−1, C, F) more.

Backward: through the statistics of this iteration, which weigh 1/k; those of earlier ones, and θ in
the correction, are constants:  dx = (1/σ̄)·(g − (1/k)·(mean g + x̂·mean(g x̂))).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight
from torch.utils.hooks import RemovableHandle

from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.arithmetic import accumulator, column, combine
from sbnbench_kernels.eager.peer import (
    BatchPeer,
    ExtendedPeer,
    Gradients,
    Scales,
    bessel,
    channel_moments,
    channel_sums,
    values,
)
from sbnbench_kernels.running import update_running

OBSERVED = ("theta", "mean_slope", "var_slope")
_PULLS = ((nn.Conv1d, conv1d_weight), (nn.Conv2d, conv2d_weight), (nn.Conv3d, conv3d_weight))


class _Saved(NamedTuple):
    x: Tensor
    scales: Scales
    mean: Tensor
    rstd: Tensor
    share: Tensor
    """1/k, k the iterations that were united."""


class CrossIterationBatchNorm(BatchPeer, ExtendedPeer):
    """`cbn`. window: k; burnin: iterations that use the batch alone."""

    def __init__(self, eps: float = 1e-5, window: int = 8, burnin: int = 0) -> None:
        super().__init__(eps)
        self.window, self.burnin = window, burnin

    def buffers(self, channels: int) -> dict[str, Tensor]:
        """Means and variances of the last k−1 iterations, newest first; NaN where there is none."""
        empty = (self.window - 1, channels)
        return {f"past_{name}": torch.full(empty, torch.nan) for name in ("mean", "var")}

    def _train(self, x: Tensor, scales: Scales, state: State) -> tuple[Tensor, _Saved]:
        extra = self._extra(x, state)
        mean, var = channel_moments(x)
        means, variances = mean[None], var[None]
        if state.step >= self.burnin or not state.training:
            past_mean, past_var = _corrected(extra)
            means = torch.cat((means, past_mean.to(mean.dtype)))
            variances = torch.cat((variances, past_var.to(var.dtype)))
        there = ~means.isnan()
        share = 1 / there.sum(0, dtype=mean.dtype)
        merged = torch.where(there, means, 0).sum(0) * share
        between = torch.where(there, means - merged, 0).square()
        spread = (torch.where(there, variances, 0) + between).sum(0) * share
        if state.training:
            _keep(extra, mean.detach(), var.detach())
            update_running(state, mean, var, bessel(x))
        rstd = (spread + self.eps).rsqrt()
        return scales.apply(x, merged, rstd), _Saved(x, scales, merged, rstd, share)

    def _gradients(self, dy: Tensor, saved: _Saved) -> Gradients:
        x, scales, mean, rstd, share = saved
        sum_dy, sum_dyd = channel_sums(dy, x, mean)
        a = scales.times(rstd)
        b = -a * rstd.square() * sum_dyd * share / values(x)
        dx = combine(dy, a, x, b, -a * sum_dy * share / values(x) - b * mean)
        return dx, *scales.gradients(sum_dyd * rstd, sum_dy)


def _corrected(extra: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Past means and variances (k−1, C), as the weights of now would have made them."""
    mean, var = extra["past_mean"], extra["past_var"]
    if "theta" not in extra or "past_theta" not in extra:
        return mean, var
    moved = extra["theta"] - extra["past_theta"]
    mean_moved = (extra["past_mean_slope"] * moved).sum(2)
    var_moved = (extra["past_var_slope"] * moved).sum(2) - mean_moved.square()
    return mean + mean_moved, (var + var_moved).clamp_min(0)


def _keep(extra: dict[str, Tensor], mean: Tensor, var: Tensor) -> None:
    """Puts this iteration first in the window and drops the last."""
    newest = {"mean": mean, "var": var}
    newest |= {name: extra[name] for name in OBSERVED if name in extra}
    for name, new in newest.items():
        past = extra.get(f"past_{name}")
        if past is None:
            past = new.new_full((len(extra["past_mean"]), *new.shape), torch.nan)
        extra[f"past_{name}"] = torch.cat((new[None].to(past.dtype), past))[: len(past)]


@torch.no_grad()
def observe(layer: nn.Module, given: Tensor, x: Tensor, state: State) -> None:
    """Puts θ, ∂μ/∂θ and ∂v/∂θ of x = layer(given) into `State.extra`.

    layer: nn.Linear, or a convolution with zero padding. Its bias, if any, is not corrected for.
    """
    wide = accumulator(x)
    mean, _ = channel_moments(x)
    ones = torch.ones_like(x, dtype=wide) / values(x)
    centred = (x - column(mean, x)) * (2 / values(x))
    mean_slope, var_slope = (_pull(layer, given.to(wide), t) for t in (ones, centred))
    theta = layer.weight
    assert isinstance(theta, Tensor)
    state.extra["theta"] = theta.detach().flatten(1).to(wide, copy=True)
    state.extra["mean_slope"], state.extra["var_slope"] = mean_slope, var_slope


def watch(layer: nn.Module, norm: nn.Module) -> RemovableHandle:
    """Lets a training `norm` of this kind observe the layer before it; remove() ends that."""

    def hook(layer: nn.Module, given: tuple[Tensor, ...], x: Tensor) -> None:
        if norm.training:
            state = State()
            observe(layer, given[0].detach(), x.detach(), state)
            for name, value in state.extra.items():
                norm.register_buffer(f"extra_{name}", value)

    return layer.register_forward_hook(hook)


def _pull(layer: nn.Module, given: Tensor, dx: Tensor) -> Tensor:
    """⟨dx, ∂x/∂θ⟩, each channel over its own row of θ: (C, F)."""
    if isinstance(layer, nn.Linear):
        return dx.T @ given
    pull = next((pull for kind, pull in _PULLS if isinstance(layer, kind)), None)
    if pull is None or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise NotApplicable(f"cbn: no derivative for {layer}")
    options = layer.stride, layer.padding, layer.dilation, layer.groups
    slope: Tensor = pull(given, layer.weight.shape, dx, *options)  # type: ignore[no-untyped-call]
    return slope.flatten(1)
