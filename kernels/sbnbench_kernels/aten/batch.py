"""nn.BatchNorm's operator: cuDNN, native CUDA or native CPU, whichever F.batch_norm takes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.arithmetic import accumulator
from sbnbench_kernels.running import momentum_of
from sbnbench_kernels.samplers import Everything, require_variance

_CUDNN = 1


class Saved(NamedTuple):
    """`library` says which library ran; the rest is its own."""

    x: Tensor
    weight: Tensor | None
    bias_dtype: torch.dtype | None
    running_mean: Tensor | None
    running_var: Tensor | None
    mean: Tensor
    rstd: Tensor
    reserve: Tensor
    batch_statistics: bool
    library: int


class BatchNorm:
    """`bn`: formula as in eager/sampled.py; source: Ioffe and Szegedy, arXiv 1502.03167.

    F.batch_norm is the first of the five results of `_batch_norm_impl_index`; the others are what
    its backward wants, which can so be called, and timed, alone.
    """

    def __init__(self, *, eps: float) -> None:
        self.eps = eps

    @property
    def cudnn(self) -> bool:
        """May cuDNN do it, where it can?"""
        return torch.backends.cudnn.enabled

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, Saved]:
        batch_statistics = state.training or state.running_mean is None
        if batch_statistics:
            require_variance(Everything().draw(x.shape, 0, 0, x.device), x.shape)
        momentum = momentum_of(state) if state.training else 0.0
        running = (state.running_mean, state.running_var)
        y, mean, rstd, reserve, library = torch._batch_norm_impl_index(
            x, weight, bias, *running, batch_statistics, momentum, self.eps, self.cudnn
        )
        if state.training:
            state.step += 1
        bias_dtype = None if bias is None else bias.dtype
        return y, Saved(
            x, weight, bias_dtype, *running, mean, rstd, reserve, batch_statistics, library
        )

    def backward(self, dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x, weight = saved.x, saved.weight
        if saved.library == _CUDNN:
            dy = dy.contiguous(memory_format=_format(x))  # as autograd does
        mask = [True, weight is not None, saved.bias_dtype is not None]
        dx, dweight, dbias = torch.ops.aten._batch_norm_impl_index_backward(
            saved.library, x, dy, weight, saved.running_mean, saved.running_var, saved.mean,
            saved.rstd, saved.batch_statistics, self.eps, mask, saved.reserve,
        )  # fmt: skip
        return dx, dweight, dbias

    def statistics(self, x: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (C,) of the whole batch."""
        state.step += 1
        others = [d for d in range(x.dim()) if d != 1]
        var, mean = torch.var_mean(x.to(accumulator(x)), others, correction=0)
        return mean, var


class NativeBatchNorm(BatchNorm):
    """`bn` by PyTorch's own CUDA kernels, without cuDNN. NotApplicable on a CPU."""

    cudnn = False

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, Saved]:
        if not x.is_cuda:
            raise NotApplicable("on a CPU `aten` is PyTorch's own kernel already")
        return super().forward(x, weight, bias, state)


def _format(x: Tensor) -> torch.memory_format:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if last is not None and x.is_contiguous(memory_format=last):
        return last
    return torch.contiguous_format
