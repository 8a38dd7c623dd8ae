"""Batch Renormalization.

x̂ = (x−μ_B)/σ_B · r + d,   y = γx̂ + b
σ_B = √(mean (x−μ_B)² + ε),  σ = √(running_var + ε)
r = clip(σ_B/σ, 1/r_max, r_max),  d = clip((μ_B−μ)/σ, −d_max, d_max),  both without gradient
then  μ ← μ + α(μ_B−μ),  σ ← σ + α(σ_B−σ)

S. Ioffe, Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models,
NeurIPS 2017, arXiv 1702.03275, Algorithm 1; the schedule is that of its experiments.

The algorithm averages the deviation, not the variance, and without Bessel's correction; so does
this one. `running_var` holds σ²−ε, so that inference and the state_dict are those of BatchNorm2d.
α is the layer's momentum; the paper trains with 0.01. With r_max = 1 and d_max = 0 the output and
gradients are those of BatchNorm.

Backward, z = (x−μ_B)/σ_B:  dx = r/σ_B · (g − mean g − z·mean(g z)),  dγ = Σ dy·x̂,  db = Σ dy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.arithmetic import combine
from sbnbench_kernels.eager.peer import (
    BatchPeer,
    Gradients,
    Scales,
    channel_moments,
    channel_sums,
    require_running,
    values,
)
from sbnbench_kernels.running import lerp_weight


def limits(step: int, steps: int, rmax: float = 3.0, dmax: float = 5.0) -> tuple[float, float]:
    """r_max and d_max after `step` training steps.

    Published for steps = 40 000: plain BatchNorm up to step 5 000, then linearly to r_max at
    40 000 and to d_max at 25 000. Another `steps` stretches all three; 0 is no schedule.
    """
    if steps <= 0:
        return rmax, dmax
    done = step / steps - 1 / 8
    toward_r, toward_d = (min(max(done / span, 0.0), 1.0) for span in (7 / 8, 1 / 2))
    return 1 + (rmax - 1) * toward_r, dmax * toward_d


class _Saved(NamedTuple):
    x: Tensor
    scales: Scales
    mean: Tensor
    rstd: Tensor
    r: Tensor
    d: Tensor


class BatchRenorm(BatchPeer):
    """`brn`. rmax, dmax: the final limits; steps: length of the schedule, 0 for none."""

    exact_gradient = False  # r and d are constants to it

    def __init__(
        self, eps: float = 1e-5, rmax: float = 3.0, dmax: float = 5.0, steps: int = 40_000
    ) -> None:
        super().__init__(eps)
        self.rmax, self.dmax, self.steps = rmax, dmax, steps

    def _train(self, x: Tensor, scales: Scales, state: State) -> tuple[Tensor, _Saved]:
        running_mean, running_var = require_running(state, "brn")
        mean, var = channel_moments(x)
        std = (var + self.eps).sqrt()
        old_mean, old_std = (
            running_mean.to(std.dtype),
            (running_var.to(std.dtype) + self.eps).sqrt(),
        )
        rmax, dmax = self._limits(state)
        r = (std.detach() / old_std).clamp(1 / rmax, rmax)
        d = ((mean.detach() - old_mean) / old_std).clamp(-dmax, dmax)
        if state.training:
            weight = lerp_weight(state, old_mean)
            running_mean.copy_(torch.lerp(old_mean, mean.detach(), weight))
            new_std = torch.lerp(old_std, std.detach(), weight)
            running_var.copy_((new_std.square() - self.eps).clamp_min(0))
        # x̂ = r/σ_B · (x − (μ_B − d·σ_B/r))
        y = scales.apply(x, mean - d * std / r, r / std)
        return y, _Saved(x, scales, mean, 1 / std, r, d)

    def _limits(self, state: State) -> tuple[Any, Any]:
        """r_max and d_max of this step."""
        return limits(state.step, self.steps, self.rmax, self.dmax)

    def _gradients(self, dy: Tensor, saved: _Saved) -> Gradients:
        x, scales, mean, rstd, r, d = saved
        sum_dy, sum_dyd = channel_sums(dy, x, mean)
        a = scales.times(r * rstd)
        b = -a * rstd.square() * sum_dyd / values(x)
        dx = combine(dy, a, x, b, -a * sum_dy / values(x) - b * mean)
        return dx, *scales.gradients(sum_dyd * rstd * r + sum_dy * d, sum_dy)
