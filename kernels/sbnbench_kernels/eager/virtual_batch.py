"""Virtual Batch Normalization: each sample with a fixed reference batch.

μ_i = c·m_i + (1−c)·m_R,   σ_i² = c·s_i + (1−c)·s_R + c(1−c)·(m_i−m_R)²,   c = 1/(R+1)
x̂_i = (x_i−μ_i)/√(σ_i²+ε),   y = γx̂ + b

m_i, s_i: mean and biased variance of sample i's map; m_R, s_R: of the R reference samples, taken
together. T. Salimans et al., Improved Techniques for Training GANs, NeurIPS 2016, arXiv 1606.03498,
section 3.5; the weights c, and that the reference samples are normalized by m_R, s_R alone, are the
authors' released code, which combines E[x²] where this combines variances, to the same number.

The reference batch, chosen once from the data, goes through the network with each batch: the last
`num_virtual` rows of x are the reference samples (kind C). Gradients pass through them.

eval(): the last training forward's m_R and s_R, which `running_mean` and `running_var` hold (the
newest value, no average and no Bessel correction, as the weights have changed since any older one);
x has no reference rows then. Without running statistics x has them in eval() too.

Backward, per map of P values, a = γ/σ_i, D_μ = −a·Σ dy, D_v = −½·a/σ_i²·Σ dy(x−μ_i), c = 0 in
reference rows:
dx_i = a·dy + (c/P)·(D_μ + 2·D_v·(x−m_i + (1−c)(m_i−m_R)))
and with the sums over all rows M = Σ (1−c)(D_μ − 2c·D_v(m_i−m_R)), V = Σ (1−c)·D_v
dx_R += (1/(R·P))·(M + 2·V·(x−m_R)).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.arithmetic import accumulator, check_input, combine
from sbnbench_kernels.eager.peer import (
    Gradients,
    Scales,
    map_size,
    merge,
    sample_moments,
    sample_sums,
)


class _Saved(NamedTuple):
    x: Tensor
    scales: Scales
    own: Tensor
    """m_i, (N, C)."""
    reference: Tensor
    """m_R, (C,)."""
    c: Tensor
    """Weight of the sample itself, (N, 1)."""
    mean: Tensor
    rstd: Tensor
    constant: bool


class VirtualBatchNorm:
    """`vbn`. num_virtual: R, the reference samples at the end of the batch."""

    def __init__(self, eps: float = 1e-5, num_virtual: int = 32) -> None:
        self.eps, self.num_virtual = eps, num_virtual

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, _Saved]:
        check_input(x)
        own, var = sample_moments(x)
        c = own.new_full((x.shape[0], 1), 1 / (self.num_virtual + 1))
        constant = False
        if not state.training and state.running_mean is not None and state.running_var is not None:
            constant = True
            reference = state.running_mean.to(accumulator(x), copy=True)
            spread = state.running_var.to(accumulator(x))
        else:
            self._require_reference(x)
            rows = slice(-self.num_virtual, None)
            c[rows] = 0
            reference, spread = (t[0] for t in merge(own[rows], var[rows], 0))
            if state.training:
                for kept, new in ((state.running_mean, reference), (state.running_var, spread)):
                    if kept is not None:
                        kept.copy_(new.detach())
                state.step += 1
        mean = torch.lerp(reference.expand_as(own), own, c)
        mixed = torch.lerp(spread.expand_as(own), var, c) + c * (1 - c) * (own - reference).square()
        rstd, scales = (mixed + self.eps).rsqrt(), Scales(weight, bias)
        saved = _Saved(x, scales, own, reference, c, mean, rstd, constant)
        return scales.apply(x, mean, rstd), saved

    def backward(self, dy: Tensor, saved: _Saved) -> Gradients:
        x, scales, own, reference, c, mean, rstd, constant = saved
        sum_dy, sum_dyd = sample_sums(dy, x, mean)
        a, p, gap = scales.times(rstd), map_size(x), own - reference
        d_mean, d_var = -a * sum_dy, -a * rstd.square() * sum_dyd / 2
        slope = c * 2 * d_var / p
        level = c * d_mean / p - slope * (own - (1 - c) * gap)
        if not constant:
            rows, size = slice(-self.num_virtual, None), self.num_virtual * p
            of_var = ((1 - c) * d_var).sum(0) * (2 / size)
            of_mean = ((1 - c) * (d_mean - 2 * c * d_var * gap)).sum(0) / size
            slope[rows] += of_var
            level[rows] += of_mean - of_var * reference
        dx = combine(dy, a, x, slope, level)
        return dx, *scales.gradients((sum_dyd * rstd).sum(0), sum_dy.sum(0))

    def _require_reference(self, x: Tensor) -> None:
        if x.shape[0] <= self.num_virtual:
            raise NotApplicable(
                f"vbn: num_virtual={self.num_virtual} leaves no sample beside the reference in "
                f"input size {x.shape}"
            )
        if self.num_virtual * map_size(x) < 2:
            raise NotApplicable(
                "Expected more than 1 value per channel when training, got a reference of "
                f"num_virtual={self.num_virtual} in input size {x.shape}"
            )
