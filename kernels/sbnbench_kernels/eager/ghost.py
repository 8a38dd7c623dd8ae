"""Ghost Batch Normalization: BatchNorm over sub-batches ("ghosts") of `size` samples.

x̂ = (x−μ_k)/√(σ_k²+ε) for x in sub-batch k;  y = γx̂ + b with one γ, b for all of them.

E. Hoffer, I. Hubara, D. Soudry, Train longer, generalize better: closing the generalization gap in
large batch training of neural networks, NeurIPS 2017, arXiv 1705.08741, Algorithm 1.

Choices. The algorithm lets the running averages take one step a sub-batch, which makes momentum
mean something else with every batch size; here they take one step a batch, towards the mean of the
sub-batches' means and (Bessel-corrected) variances, so with one sub-batch it is BatchNorm in every
respect. A batch that `size` does not divide is cut into ⌊N/size⌋ sub-batches as even as can be (the
first N mod k hold one sample more), so none is ever smaller than `size` unless the batch is.

Backward: BatchNorm's in each sub-batch; dγ and db sum over all.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.arithmetic import combine
from sbnbench_kernels.eager.peer import (
    BatchPeer,
    Gradients,
    Scales,
    map_size,
    sample_moments,
    sample_sums,
)
from sbnbench_kernels.running import update_running


class _Saved(NamedTuple):
    x: Tensor
    scales: Scales
    mean: Tensor
    rstd: Tensor
    member: Tensor


class GhostBatchNorm(BatchPeer):
    """`ghost`. size: samples in a sub-batch."""

    def __init__(self, eps: float = 1e-5, size: int = 32) -> None:
        super().__init__(eps)
        self.size = size

    def _train(self, x: Tensor, scales: Scales, state: State) -> tuple[Tensor, _Saved]:
        rows = x.shape[0]
        ghosts = max(1, rows // self.size)
        if rows // ghosts * map_size(x) < 2:
            raise NotApplicable(
                "Expected more than 1 value per channel when training, got sub-batches of "
                f"size={self.size} in input size {x.shape}"
            )
        means, variances = sample_moments(x)
        member = _membership(rows, ghosts, means.dtype, x.device)
        each = member.sum(1, keepdim=True)
        mean = member @ means / each
        var = member @ (variances + (means - member.T @ mean).square()) / each
        if state.training:
            n = each * map_size(x)
            update_running(state, mean.mean(0), (var * n / (n - 1)).mean(0), 1.0)
        rstd = (var + self.eps).rsqrt()
        y = scales.apply(x, member.T @ mean, member.T @ rstd)
        return y, _Saved(x, scales, mean, rstd, member)

    def _gradients(self, dy: Tensor, saved: _Saved) -> Gradients:
        x, scales, mean, rstd, member = saved
        sum_dy, sum_dyd = (member @ part for part in sample_sums(dy, x, member.T @ mean))
        n, a = member.sum(1, keepdim=True) * map_size(x), scales.times(rstd)
        b = -a * rstd.square() * sum_dyd / n
        c = -a * sum_dy / n - b * mean
        dx = combine(dy, member.T @ a, x, member.T @ b, member.T @ c)
        return dx, *scales.gradients((sum_dyd * rstd).sum(0), sum_dy.sum(0))


@lru_cache(maxsize=64)
def _membership(rows: int, ghosts: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(k, N) of ones and zeros: which rows each sub-batch holds. Products with it sum within
    sub-batches and spread over rows, in one deterministic step."""
    split = torch.eye(rows, dtype=dtype).tensor_split(ghosts)
    return torch.stack([part.sum(0) for part in split]).to(device)
