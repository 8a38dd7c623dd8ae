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


class Sizes(NamedTuple):
    """`ghosts` sub-batches of `size` rows, the first `larger` of which have one row more."""

    size: int
    larger: int
    ghosts: int

    def sum(self, rows: Tensor) -> Tensor:
        """(N, C) summed within sub-batches, (ghosts, C)."""
        cut = self.larger * (self.size + 1)
        first = rows[:cut].reshape(self.larger, self.size + 1, rows.shape[1])
        rest = rows[cut:].reshape(self.ghosts - self.larger, self.size, rows.shape[1])
        return torch.cat((first.sum(1), rest.sum(1)))

    def spread(self, each: Tensor) -> Tensor:
        """(ghosts, C) to the rows of each sub-batch, (N, C)."""
        first = each[: self.larger].repeat_interleave(self.size + 1, 0)
        return torch.cat((first, each[self.larger :].repeat_interleave(self.size, 0)))

    def rows(self, like: Tensor) -> Tensor:
        """Rows of each sub-batch, (ghosts, 1)."""
        index = torch.arange(self.ghosts, device=like.device)
        return (self.size + (index < self.larger).to(like.dtype)).unsqueeze(1)


class _Saved(NamedTuple):
    x: Tensor
    scales: Scales
    mean: Tensor
    rstd: Tensor
    sizes: Sizes


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
        sizes = Sizes(*divmod(rows, ghosts), ghosts)
        each = sizes.rows(means)
        mean = sizes.sum(means) / each
        var = sizes.sum(variances + (means - sizes.spread(mean)).square()) / each
        if state.training:
            n = each * map_size(x)
            update_running(state, mean.mean(0), (var * n / (n - 1)).mean(0), 1.0)
        rstd = (var + self.eps).rsqrt()
        y = scales.apply(x, sizes.spread(mean), sizes.spread(rstd))
        return y, _Saved(x, scales, mean, rstd, sizes)

    def _gradients(self, dy: Tensor, saved: _Saved) -> Gradients:
        x, scales, mean, rstd, sizes = saved
        sums = sample_sums(dy, x, sizes.spread(mean))
        sum_dy, sum_dyd = (sizes.sum(part) for part in sums)
        n, a = sizes.rows(mean) * map_size(x), scales.times(rstd)
        b = -a * rstd.square() * sum_dyd / n
        c = -a * sum_dy / n - b * mean
        dx = combine(dy, sizes.spread(a), x, sizes.spread(b), sizes.spread(c))
        return dx, *scales.gradients((sum_dyd * rstd).sum(0), sum_dy.sum(0))
