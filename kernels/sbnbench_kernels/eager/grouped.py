"""Normalizers with statistics of each sample: GroupNorm and its two ends.

Over the values of one sample n and one group G of channels (m of them), biased variance:

    μ = mean_G x,  σ² = mean_G (x−μ)² + ε,  x̂ = (x−μ)/σ,  y = γx̂ + b
    dx = (1/σ)·(g − mean_G g − x̂·mean_G(g x̂)),  g = γ·dy;  dγ = Σ dy·x̂,  db = Σ dy over N and space

`ln` is one group of all channels (what is called LayerNorm on feature maps), `in` a group for each
channel. No running statistics: training and eval() are the same. Sources: Wu and He,
arXiv 1803.08494 (gn); Ba et al., arXiv 1607.06450 (ln); Ulyanov et al., arXiv 1607.08022 (in).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.arithmetic import affine, check_input, combine
from sbnbench_kernels.eager.peer import merge, sample_moments, sample_sums


class Saved(NamedTuple):
    """What backward reads. mean, rstd: (N, groups)."""

    x: Tensor
    weight: Tensor | None
    bias_dtype: torch.dtype | None
    mean: Tensor
    rstd: Tensor


def check_groups(channels: int, groups: int) -> None:
    """NotApplicable unless `groups` divides the channels."""
    if channels % groups:
        fitting = max(g for g in range(1, min(groups, channels) + 1) if channels % g == 0)
        raise NotApplicable(
            f"groups={groups} does not divide the {channels} channels; groups={fitting} does"
        )


def check_spatial(shape: torch.Size) -> None:
    """NotApplicable, in torch's words, where a map has a single element."""
    if shape[2:].numel() < 2:
        raise NotApplicable(
            f"Expected more than 1 spatial element when training, got input size {shape}"
        )


class GroupNorm:
    """x, y, dy, dx: (N, C, *spatial); γ, b: (C,). Raises NotApplicable unless groups divides C."""

    def __init__(self, *, eps: float, groups: int) -> None:
        self.eps = eps
        self.groups = groups

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, Saved]:
        check_input(x)
        groups = self._groups(x)
        shape = x.shape[0], groups, x.shape[1] // groups
        mean, var = (t.reshape(shape) for t in sample_moments(x))
        mean, var = (t.squeeze(2) for t in merge(mean, var, 2))
        rstd = torch.rsqrt(var + self.eps)
        scale = _spread(rstd, x)
        if weight is not None:
            scale = scale * weight
        shift = -_spread(mean, x) * scale
        if bias is not None:
            shift = shift + bias
        bias_dtype = None if bias is None else bias.dtype
        return affine(x, scale, shift), Saved(x, weight, bias_dtype, mean, rstd)

    def backward(self, dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x, weight, bias_dtype, mean, rstd = saved
        each_mean, each_rstd = _spread(mean, x), _spread(rstd, x)
        # Sums of each map: those of a group and those of a channel are made from them.
        sum_dy, sum_dyd = sample_sums(dy, x, each_mean)
        sum_dyx = sum_dyd * each_rstd
        gamma = torch.ones_like(each_rstd) if weight is None else weight.to(mean.dtype)
        mean_g, mean_gx = (_group_mean(gamma * s, x, mean.shape[1]) for s in (sum_dy, sum_dyx))
        slope = -(each_rstd**2) * mean_gx
        shift = -each_rstd * mean_g - slope * each_mean
        dx = combine(dy, gamma * each_rstd, x, slope, shift)
        dweight = None if weight is None else sum_dyx.sum(0).to(weight.dtype)
        return dx, dweight, None if bias_dtype is None else sum_dy.sum(0).to(bias_dtype)

    def _groups(self, x: Tensor) -> int:
        check_groups(x.shape[1], self.groups)
        return self.groups


class LayerNorm(GroupNorm):
    """`ln`: over all channels and positions of a sample."""

    def __init__(self, *, eps: float) -> None:
        super().__init__(eps=eps, groups=1)


class InstanceNorm(GroupNorm):
    """`in`: over each map. Raises NotApplicable where a map has a single element."""

    def __init__(self, *, eps: float) -> None:
        super().__init__(eps=eps, groups=0)

    def _groups(self, x: Tensor) -> int:
        check_spatial(x.shape)
        return x.shape[1]


def _spread(v: Tensor, x: Tensor) -> Tensor:
    """(N, groups) to (N, C)."""
    return v.repeat_interleave(x.shape[1] // v.shape[1], 1)


def _group_mean(sums: Tensor, x: Tensor, groups: int) -> Tensor:
    """Sums of each map (N, C) to the mean over their group, spread to (N, C) again."""
    batch, channels = sums.shape
    size = channels // groups * x.shape[2:].numel()
    return _spread(sums.reshape(batch, groups, channels // groups).sum(2) / size, x)
