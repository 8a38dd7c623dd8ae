"""nn.GroupNorm's and nn.InstanceNorm's operators. Formulas as in eager/grouped.py."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sbnbench_kernels.aten.batch import BatchNorm
from sbnbench_kernels.aten.batch import Saved as BatchSaved
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.grouped import check_groups, check_spatial


class Saved(NamedTuple):
    """mean, rstd: (N, groups)."""

    x: Tensor
    weight: Tensor | None
    has_bias: bool
    mean: Tensor
    rstd: Tensor


class GroupNorm:
    """`gn`, as F.group_norm: on CUDA y is contiguous, whatever format x has."""

    def __init__(self, *, eps: float, groups: int) -> None:
        self.eps = eps
        self.groups = groups

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, Saved]:
        check_groups(x.shape[1], self.groups)
        x = _contiguous(x, x)
        y, mean, rstd = torch.ops.aten.native_group_norm(
            x, weight, bias, *_sizes(x), self.groups, self.eps
        )
        return y, Saved(x, weight, bias is not None, mean, rstd)

    def backward(self, dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x, weight, has_bias, mean, rstd = saved
        mask = [True, weight is not None, has_bias]
        dx, dweight, dbias = torch.ops.aten.native_group_norm_backward(
            _contiguous(dy, x), x, mean, rstd, weight, *_sizes(x), self.groups, mask
        )
        return dx, dweight, dbias


class LayerNorm(GroupNorm):
    """`ln`: GroupNorm with one group, as feature maps are usually layer-normalized."""

    def __init__(self, *, eps: float) -> None:
        super().__init__(eps=eps, groups=1)


class InstanceNorm:
    """`in`, as F.instance_norm: BatchNorm of one sample with N·C channels, γ and b repeated."""

    def __init__(self, *, eps: float) -> None:
        self.batch_norm = BatchNorm(eps=eps)

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, BatchSaved]:
        check_spatial(x.shape)
        batch = x.shape[0]
        gamma, beta = (None if v is None else v.repeat(batch) for v in (weight, bias))
        y, saved = self.batch_norm.forward(_as_one(x), gamma, beta, State())
        return y.view(x.shape), saved

    def backward(
        self, dy: Tensor, saved: BatchSaved
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        dx, dgamma, dbeta = self.batch_norm.backward(_as_one(dy), saved)
        channels = dy.shape[1]
        dweight, dbias = (
            None if v is None else v.view(-1, channels).sum(0) for v in (dgamma, dbeta)
        )
        return dx.view(dy.shape), dweight, dbias


def _contiguous(t: Tensor, x: Tensor) -> Tensor:
    """`t` as F.group_norm hands it on: on a CPU in x's memory format, else contiguous."""
    keeps = x.device.type == "cpu" and x.dim() == 4
    keeps = keeps and x.is_contiguous(memory_format=torch.channels_last)
    return t.contiguous(memory_format=torch.channels_last if keeps else torch.contiguous_format)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2:].numel()


def _as_one(t: Tensor) -> Tensor:
    return t.contiguous().view(1, -1, *t.shape[2:])
