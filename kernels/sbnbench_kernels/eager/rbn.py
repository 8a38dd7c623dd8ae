"""Range Batch Normalization: the range in place of the standard deviation.

x̂ = (x−μ)/√(σ_R²+ε),   σ_R = C(n)·mean over chunks (max − min),   C(n) = 1/√(2 ln n),   y = γx̂ + b

n counts the values of a channel in a chunk. R. Banner, I. Hubara, E. Hoffer, D. Soudry, Scalable
Methods for 8-bit Training of Neural Networks, NeurIPS 2018, arXiv 1805.11046, eq. 2, which
bounds 0.325σ ≤ E σ_R ≤ 2σ for a Gaussian: σ_R is no estimate of σ, γ takes up the factor. (Code the
authors released multiplies C by a further 0.175·(1+√(π ln 4)) ≈ 0.54.)

Choices. The paper takes one range; the authors' code averages it over 16 chunks, in the order N, H,
W of the values, and so does this: over the largest number of equal chunks, up to `chunks`, that
divides the values; chunks=1 is the paper's formula. ε stands under the root, as in BatchNorm (for
the reason see l1bn). `running_var` averages σ_R² with Bessel's correction, so inference is
BatchNorm's with σ_R² for σ². Quantization, the paper's subject, is left out.

Backward, D = √(σ_R²+ε):  dx = (1/D)·(g − ḡ) − (σ_R/D²)·Σ(g x̂)·C(n)/k at each of the k maxima, and
the opposite at the minima; of equal ones the one found first takes it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.arithmetic import accumulator, combine
from sbnbench_kernels.eager.peer import (
    BatchPeer,
    Gradients,
    Scales,
    bessel,
    channel_sums,
    values,
)
from sbnbench_kernels.running import update_running


class _Saved(NamedTuple):
    x: Tensor
    scales: Scales
    mean: Tensor
    deviation: Tensor
    rstd: Tensor
    highest: Tensor
    lowest: Tensor


class RangeBatchNorm(BatchPeer):
    """`rbn`. chunks: at most so many equal parts of a channel's values, each with its range."""

    def __init__(self, eps: float = 1e-5, chunks: int = 16) -> None:
        super().__init__(eps)
        self.chunks = chunks

    def _train(self, x: Tensor, scales: Scales, state: State) -> tuple[Tensor, _Saved]:
        mean = x.mean((0, *range(2, x.dim())), dtype=accumulator(x))
        parts = x.transpose(0, 1).reshape(x.shape[1], self._count(x), -1)
        high, low = parts.max(dim=2), parts.min(dim=2)
        spread = high.values.to(mean.dtype) - low.values.to(mean.dtype)
        deviation = spread.mean(1) * self._constant(x)
        if state.training:
            update_running(state, mean, deviation.square(), bessel(x))
        rstd = (deviation.square() + self.eps).rsqrt()
        saved = _Saved(x, scales, mean, deviation, rstd, high.indices, low.indices)
        return scales.apply(x, mean, rstd), saved

    def _gradients(self, dy: Tensor, saved: _Saved) -> Gradients:
        x, scales, mean, deviation, rstd, highest, lowest = saved
        sum_dy, sum_dyd = channel_sums(dy, x, mean)
        a = scales.times(rstd)
        slope = -a * deviation * rstd.square() * sum_dyd * self._constant(x) / highest.shape[1]
        # The slope of the deviation lives at the extremes alone: x takes its place in `combine`.
        peaks = x.new_zeros((x.shape[1], *highest.shape[1:], values(x) // highest.shape[1]))
        peaks.scatter_(2, highest.unsqueeze(2), 1.0)
        peaks.scatter_add_(2, lowest.unsqueeze(2), -peaks.new_ones(lowest.unsqueeze(2).shape))
        peaks = torch.empty_like(x).copy_(peaks.reshape_as(x.transpose(0, 1)).transpose(0, 1))
        dx = combine(dy, a, peaks, slope, -a * sum_dy / values(x))
        return dx, *scales.gradients(sum_dyd * rstd, sum_dy)

    def _count(self, x: Tensor) -> int:
        n = values(x)
        return max(k for k in range(1, self.chunks + 1) if n % k == 0 and (k == 1 or n // k > 1))

    def _constant(self, x: Tensor) -> float:
        return 1 / math.sqrt(2 * math.log(values(x) // self._count(x)))
