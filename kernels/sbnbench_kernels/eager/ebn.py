"""Extended Batch Normalization: each channel's own mean, one deviation for all of them.

x̂ = (x−μ_c)/√(σ²+ε),   μ_c over N, H, W,   σ² = mean over N, C, H, W of (x−μ_c)²,   y = γx̂ + b

C. Luo, J. Zhan, L. Wang, W. Gao, Extended Batch Normalization, arXiv 2003.05569.

Choices. The deviation is taken from each channel's own mean (the abstract says only along which
dimensions it runs). Every entry of `running_var` holds the same number, σ²·m/(m−1) with m = N·H·W:
as C means are estimated, that is the unbiased estimate.

Backward:  dx = (1/σ)·(g − mean_c g − x̂·mean_{N,C,H,W}(g x̂)).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.arithmetic import combine
from sbnbench_kernels.eager.peer import (
    BatchPeer,
    Gradients,
    Scales,
    bessel,
    channel_moments,
    channel_sums,
    values,
)
from sbnbench_kernels.running import update_running


class _Saved(NamedTuple):
    x: Tensor
    scales: Scales
    mean: Tensor
    rstd: Tensor


class ExtendedBatchNorm(BatchPeer):
    """`ebn`."""

    def _train(self, x: Tensor, scales: Scales, state: State) -> tuple[Tensor, _Saved]:
        mean, var = channel_moments(x)
        var = var.mean().expand_as(var)
        if state.training:
            update_running(state, mean, var, bessel(x))
        rstd = (var + self.eps).rsqrt()
        return scales.apply(x, mean, rstd), _Saved(x, scales, mean, rstd)

    def _gradients(self, dy: Tensor, saved: _Saved) -> Gradients:
        x, scales, mean, rstd = saved
        sum_dy, sum_dyd = channel_sums(dy, x, mean)
        a = scales.times(rstd)
        b = -rstd.square() * (a * sum_dyd).sum() / x.numel()
        dx = combine(dy, a, x, b, -a * sum_dy / values(x) - b * mean)
        return dx, *scales.gradients(sum_dyd * rstd, sum_dy)
