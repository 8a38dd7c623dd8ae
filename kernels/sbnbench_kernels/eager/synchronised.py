"""BatchNorm, and any sampled relative, with statistics over all processes of a group.

μ, σ² are those of the union of all processes' samples: each sends count, mean and variance of its
own, and they are merged stably (T. Chan, G. Golub, R. LeVeque, Updating formulae and a pairwise
algorithm for computing sample variances, 1979):

    n = Σ n_r,  μ = Σ n_r μ_r/n,  nσ² = Σ n_r σ_r² + Σ n_r (μ_r−μ)²

One all-gather of 2C+1 numbers forward, one all-reduce of 2C backward: the two sums Σ dy and
Σ dy·(x−μ) of the sampled family's backward (see `sampled`) run over all processes, with ω the
weight of a value in the union. dx is then the gradient of the sum of all processes' losses; dγ and
db are each process's own, for DistributedDataParallel to average, as in torch.nn.SyncBatchNorm
(whose formula, for `bn`, this is). Batches may differ in size between processes.

`vdn` needs none of it: with the same seed every process carries the same virtual rows through the
same weights, so the statistics agree without a word, and averaging the processes' gradients gives
the gradient of the average loss. `synchronise` returns it as it is.

In one process, or where torch.distributed is not initialized, all are their plain selves; eval()
is that of BatchNorm and never communicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.arithmetic import column, combine
from sbnbench_kernels.eager.parts import put, take
from sbnbench_kernels.eager.peer import Gradients, Scales, channel_moments, channel_sums
from sbnbench_kernels.eager.sampled import BatchNorm, SampledNorm, Saved
from sbnbench_kernels.running import update_running
from sbnbench_kernels.samplers import Sample, VirtualRows

Group = dist.ProcessGroup


def world_size(group: Group | None = None) -> int:
    """Processes of the group (None: all), 1 without torch.distributed."""
    ready = dist.is_available() and dist.is_initialized()
    return dist.get_world_size(group) if ready else 1


def union(
    counts: list[int], means: Tensor, variances: Tensor, group: Group | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Count (K,), mean and biased variance (K, C) over all processes of K samples, from this
    process's own. One all-gather."""
    own = torch.cat((means.new_tensor(counts)[:, None], means, variances), 1)
    every = [torch.empty_like(own) for _ in range(world_size(group))]
    dist.all_gather(every, own, group)
    sizes = [1, means.shape[1], means.shape[1]]
    count, mean, var = torch.split(torch.stack(every), sizes, 2)
    total = count.sum(0)
    merged = (count * mean).sum(0) / total
    spread = (count * (var + (mean - merged).square())).sum(0) / total
    return total[:, 0], merged, spread


def sum_over(group: Group | None, *parts: Tensor) -> tuple[Tensor, ...]:
    """Sums of equally shaped tensors over all processes. One all-reduce."""
    stacked = torch.stack(parts)
    dist.all_reduce(stacked, group=group)
    return stacked.unbind()


class _Saved(NamedTuple):
    x: Tensor
    scales: Scales
    mean: Tensor
    rstd: Tensor
    sample: Sample
    totals: Tensor
    """Values of each share over all processes, (K,)."""


class Synchronised:
    """`op` with the statistics of all processes of `group` (None: of all)."""

    def __init__(self, op: SampledNorm, group: Group | None = None) -> None:
        self.op, self.group, self.eps = op, group, op.eps

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, Saved | _Saved]:
        if world_size(self.group) == 1 or not state.training:
            return self.op.forward(x, weight, bias, state)
        mean, var, sample, totals = self._estimate(x, state)
        weights = mean.new_tensor([share.weight for share in sample])
        unbiased = var / (1 - (weights.square() / totals).sum())
        update_running(state, mean, unbiased, 1.0)
        state.step += 1
        scales, rstd = Scales(weight, bias), (var + self.op.eps).rsqrt()
        saved = _Saved(x, scales, mean, rstd, sample, totals)
        return scales.apply(x, mean, rstd), saved

    def backward(self, dy: Tensor, saved: Saved | _Saved) -> Gradients:
        if isinstance(saved, Saved):
            return self.op.backward(dy, saved)
        x, scales, mean, rstd, sample, totals = saved
        a = scales.times(rstd)
        if self.op.mode == "sampled":
            parts = [channel_sums(take(s.part, dy), take(s.part, x), mean) for s in sample]
            omega = [s.weight / n for s, n in zip(sample, totals, strict=True)]
            local = [_weighted(omega, [p[k] for p in parts]) for k in (0, 1)]
            dx = _through(dy, x, a, mean, rstd, *sum_over(self.group, *local))
            up = [s.stands_for / s.size for s in sample]
            sum_dy, sum_dyd = (_weighted(up, [p[k] for p in parts]) for k in (0, 1))
        else:
            sum_dy, sum_dyd = channel_sums(dy, x, mean)
            dx = torch.mul(dy, column(a, dy), out=torch.empty_like(x))
            if self.op.mode == "exact":
                sums = sum_over(self.group, sum_dy, sum_dyd)
                for s, n in zip(sample, totals, strict=True):
                    share = [s.weight / n * t for t in sums]
                    part = take(s.part, dy), take(s.part, x)
                    put(s.part, dx, _through(*part, a, mean, rstd, *share))
        return dx, *scales.gradients(sum_dyd * rstd, sum_dy)

    @property
    def exact_gradient(self) -> bool:
        """Whether backward is the derivative of forward."""
        return self.op.exact_gradient

    def statistics(self, x: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (C,) over all processes; advances `state.step` alone."""
        if world_size(self.group) == 1:
            return self.op.statistics(x, state)
        mean, var, _, _ = self._estimate(x, state)
        state.step += 1
        return mean, var

    def _estimate(self, x: Tensor, state: State) -> tuple[Tensor, Tensor, Sample, Tensor]:
        sample = self.op.sampler.draw(x.shape, state.seed, state.step, x.device)
        counts = [share.size for share in sample]
        if sum(counts) * world_size(self.group) < 2:
            raise NotApplicable(
                f"Expected more than 1 value per channel when training, got input size {x.shape}"
            )
        moments = [channel_moments(take(share.part, x)) for share in sample]
        means, variances = (torch.stack([m[k] for m in moments]) for k in (0, 1))
        totals, means, variances = union(counts, means, variances, self.group)
        weights = means.new_tensor([share.weight for share in sample])[:, None]
        mean = (weights * means).sum(0)
        var = (weights * (variances + (means - mean).square())).sum(0)
        return mean, var, sample, totals


class SyncBatchNorm(Synchronised):
    """`syncbn`."""

    def __init__(self, eps: float = 1e-5, group: Group | None = None) -> None:
        super().__init__(BatchNorm(eps=eps), group)


def synchronise(op: SampledNorm, group: Group | None = None) -> SampledNorm | Synchronised:
    """The synchronised form of a sampled normalizer; `vdn` is its own."""
    return op if isinstance(op.sampler, VirtualRows) else Synchronised(op, group)


def _through(
    dy: Tensor, x: Tensor, a: Tensor, mean: Tensor, rstd: Tensor, mean_dy: Tensor, mean_dyd: Tensor
) -> Tensor:
    """(γ/σ)·(dy − mean_dy − (x−μ)·mean_dyd/σ²)."""
    slope = -a * rstd.square() * mean_dyd
    return combine(dy, a, x, slope, -a * mean_dy - slope * mean)


def _weighted(weights: Sequence[float | Tensor], parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([t * w for w, t in zip(weights, parts, strict=True)]).sum(0)
