"""Batch-Channel Normalization: BatchNorm, then GroupNorm of its output.

h = γ(x−μ_c)/√(σ_c²+ε) + b,   y = Γ_g(h−μ_ng)/√(σ_ng²+ε) + β_g

γ, b per channel are the layer's weight and bias; Γ, β per group of channels stand in `State.extra`
as `group_weight` and `group_bias`. S. Qiao, H. Wang, C. Liu, W. Shen, A. Yuille, Micro-Batch
Training with Batch-Channel Normalization and Weight Standardization, arXiv 1903.10520.

estimate=false: the statistics of the batch, the paper's form for large batches.
estimate=true: for micro-batches, the running estimates, moved before they are used and constant to
the gradient: μ̂ ← μ̂ + α(mean x − μ̂), σ̂² ← σ̂² + α(mean (x−μ̂_old)² − σ̂²). The deviation from the
old mean, the missing Bessel correction, and Γ, β per group and not per channel are the authors'
released code; α is the layer's momentum.

eval(): h from the running statistics, then the groups as in training.

Backward: GroupNorm's, then BatchNorm's. h is linear in x for each map, so all moments of h, and all
sums of ∂L/∂h, come from those of x and dy over each map: x is read once more, h never stored.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.arithmetic import accumulator, affine, check_input, combine
from sbnbench_kernels.eager.grouped import check_groups
from sbnbench_kernels.eager.peer import (
    ExtendedGradients,
    ExtendedPeer,
    Scales,
    bessel,
    map_size,
    merge,
    require_running,
    require_values,
    sample_moments,
    sample_sums,
    values,
)
from sbnbench_kernels.running import lerp_weight, update_running


class _Saved(NamedTuple):
    x: Tensor
    scales: Scales
    group_weight: Tensor
    maps: tuple[Tensor, Tensor]
    """Mean and variance of each map of x, (N, C)."""
    batch: tuple[Tensor, Tensor]
    """μ and 1/σ of BatchNorm, (C,)."""
    groups: tuple[Tensor, Tensor]
    """μ and 1/σ of GroupNorm, spread to (N, C)."""
    fixed: bool


class BatchChannelNorm(ExtendedPeer):
    """`bcn`. groups: of channels, must divide C; estimate: normalize with the running estimates."""

    def __init__(self, eps: float = 1e-5, groups: int = 32, estimate: bool = False) -> None:
        self.eps, self.groups, self.estimate = eps, groups, estimate

    def parameters(self, channels: int) -> dict[str, Tensor]:
        return {"group_weight": torch.ones(self.groups), "group_bias": torch.zeros(self.groups)}

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, _Saved]:
        check_input(x)
        check_groups(x.shape[1], self.groups)
        if x.shape[1:].numel() // self.groups < 2:
            raise NotApplicable(
                f"Expected more than 1 value per channel when training: groups={self.groups} of "
                f"input size {x.shape} hold one value each"
            )
        extra, scales = self._extra(x, state), Scales(weight, bias)
        maps = sample_moments(x)
        mean, var, fixed = self._batch(x, maps, state)
        state.step += state.training

        rstd = (var + self.eps).rsqrt()
        slope = scales.times(rstd)
        shift = scales.shift(mean, slope)
        group_mean, group_var = merge(
            self._grouped(slope * maps[0] + shift), self._grouped(slope.square() * maps[1]), 2
        )
        group_rstd = (group_var + self.eps).rsqrt()
        groups = self._spread(group_mean, x), self._spread(group_rstd, x)
        gain, offset = (self._per_channel(extra[k], x) for k in ("group_weight", "group_bias"))
        outer = gain * groups[1]
        y = affine(x, outer * slope, outer * (shift - groups[0]) + offset)
        return y, _Saved(x, scales, gain, maps, (mean, rstd), groups, fixed)

    def backward(self, dy: Tensor, saved: _Saved) -> ExtendedGradients:
        x, scales, gain, (map_mean, map_var), (mean, rstd), (group_mean, group_rstd), fixed = saved
        sum_dy, sum_dyd = sample_sums(dy, x, map_mean)
        slope = scales.times(rstd)
        centre = scales.shift(mean, slope) - group_mean
        map_h = slope * map_mean + centre  # mean of h − μ_ng over a map

        # GroupNorm: ∂L/∂h = outer·dy + level + tilt·(h − μ_ng).
        outer, p = gain * group_rstd, map_size(x)
        sum_dyh = slope * sum_dyd + map_h * sum_dy
        level = -self._mean(outer * sum_dy, x) / p
        tilt = -self._mean(outer * sum_dyh, x) * group_rstd.square() / p
        sum_dh = outer * sum_dy + p * (level + tilt * map_h)
        sum_dhd = outer * sum_dyd + p * tilt * slope * map_var + (map_mean - mean) * sum_dh

        # BatchNorm, from the sums of ∂L/∂h and ∂L/∂h·(x−μ) over a channel.
        total, total_d = sum_dh.sum(0), sum_dhd.sum(0)
        b, c = slope * slope * tilt, slope * (level + tilt * centre)
        if not fixed:
            through = -slope * rstd.square() * total_d / values(x)
            b, c = b + through, c - slope * total / values(x) - through * mean
        dx = combine(dy, slope * outer, x, b, c)
        own = {
            "group_weight": self._grouped(group_rstd * sum_dyh).sum((0, 2)),
            "group_bias": self._grouped(sum_dy).sum((0, 2)),
        }
        return dx, *scales.gradients(total_d * rstd, total), own

    def _batch(
        self, x: Tensor, maps: tuple[Tensor, Tensor], state: State
    ) -> tuple[Tensor, Tensor, bool]:
        """μ and σ² (C,) of the first stage, and whether they are constants."""
        dtype = accumulator(x)
        kept = state.running_mean is not None and state.running_var is not None
        if self.estimate or (kept and not state.training):
            running_mean, running_var = require_running(state, "bcn with estimate=true")
            if state.training:
                mean, var = (t[0].detach() for t in merge(*maps, 0))
                about_old = var + (mean - running_mean.to(dtype)).square()
                weight = lerp_weight(state, running_mean)
                running_mean.lerp_(mean.to(running_mean.dtype), weight)
                running_var.lerp_(about_old.to(running_var.dtype), weight)
            return running_mean.to(dtype, copy=True), running_var.to(dtype, copy=True), True
        require_values(x)
        mean, var = (t[0] for t in merge(*maps, 0))
        if state.training:
            update_running(state, mean, var, bessel(x))
        return mean, var, False

    def _grouped(self, t: Tensor) -> Tensor:
        """(N, C) to (N, groups, C/groups)."""
        return t.reshape(t.shape[0], self.groups, t.shape[1] // self.groups)

    def _spread(self, t: Tensor, x: Tensor) -> Tensor:
        """(N, groups, 1) to (N, C)."""
        return t.expand(-1, -1, x.shape[1] // self.groups).reshape(x.shape[:2])

    def _mean(self, t: Tensor, x: Tensor) -> Tensor:
        """Mean over each group, (N, C) to (N, C)."""
        return self._spread(self._grouped(t).mean(2, keepdim=True), x)

    def _per_channel(self, t: Tensor, x: Tensor) -> Tensor:
        """(groups,) to (C,)."""
        return t.to(accumulator(x)).repeat_interleave(x.shape[1] // self.groups)
