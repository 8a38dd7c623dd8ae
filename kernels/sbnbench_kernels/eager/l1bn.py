"""L1 Batch Normalization: the mean absolute deviation in place of the standard deviation.

x̂ = (x−μ)/√(σ₁²+ε),   σ₁ = √(π/2) · mean|x−μ|,   y = γx̂ + b

E. Hoffer, R. Banner, I. Golan, D. Soudry, Norm matters: efficient and accurate normalization
schemes in deep networks, NeurIPS 2018, arXiv 1803.01814; also S. Wu et al., L1-Norm
Batch Normalization for Efficient Training of Deep Neural Networks, arXiv 1802.09769, which leaves
the factor √(π/2) (exact for a Gaussian) to γ.

Choices. ε stands under the root, as in BatchNorm (Wu et al. add it to σ₁): a collapsed channel then
multiplies a gradient by 316 and not by 10⁵, which float16 cannot hold. `running_var` averages σ₁²
with Bessel's correction, so inference is BatchNorm's.

Backward, D = √(σ₁²+ε):  dx = (1/D)·[g − ḡ − (σ₁/D)·√(π/2)·(sgn(x−μ) − mean sgn)·mean(g x̂)],
with sgn 0 = 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.arithmetic import accumulator, column, combine
from sbnbench_kernels.eager.peer import (
    BatchPeer,
    Gradients,
    Scales,
    bessel,
    channel_sums,
    values,
)
from sbnbench_kernels.running import update_running

GAUSSIAN = math.sqrt(math.pi / 2)
"""Standard over mean absolute deviation of a Gaussian."""


class _Saved(NamedTuple):
    x: Tensor
    scales: Scales
    mean: Tensor
    deviation: Tensor
    rstd: Tensor


class L1BatchNorm(BatchPeer):
    """`l1bn`."""

    def statistics(self, x: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """μ and σ₁², which estimate mean and variance; advances `state.step`."""
        state.step += 1
        mean, deviation = _estimate(x)
        return mean, deviation.square()

    def _train(self, x: Tensor, scales: Scales, state: State) -> tuple[Tensor, _Saved]:
        mean, deviation = _estimate(x)
        if state.training:
            update_running(state, mean, deviation.square(), bessel(x))
        rstd = (deviation.square() + self.eps).rsqrt()
        return scales.apply(x, mean, rstd), _Saved(x, scales, mean, deviation, rstd)

    def _gradients(self, dy: Tensor, saved: _Saved) -> Gradients:
        x, scales, mean, deviation, rstd = saved
        sum_dy, sum_dyd = channel_sums(dy, x, mean)
        sign = (x - column(mean, x)).sign()
        a = scales.times(rstd)
        slope = -a * GAUSSIAN * deviation * rstd.square() * sum_dyd / values(x)
        sum_sign = sign.sum((0, *range(2, x.dim())), dtype=mean.dtype)
        c = -(a * sum_dy + slope * sum_sign) / values(x)
        dx = combine(dy, a, sign, slope, c).to(x.dtype)
        return dx, *scales.gradients(sum_dyd * rstd, sum_dy)


def _estimate(x: Tensor) -> tuple[Tensor, Tensor]:
    """μ and σ₁."""
    dims = (0, *range(2, x.dim()))
    mean = x.mean(dims, dtype=accumulator(x))
    return mean, GAUSSIAN * (x - column(mean, x)).abs_().mean(dims)
