"""Sums a channel, written so that Inductor reads memory in order and with all threads."""

from __future__ import annotations

from torch import Tensor

from sbnbench_kernels.eager.arithmetic import accumulator, column


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance a channel, in two passes."""
    size = values.numel() // values.shape[1]
    mean = channel_sum(values.to(accumulator(values))) / size
    return mean, channel_sum((values - column(mean, values)).square()) / size


def sums(dy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Σ dy and Σ dy·(x−μ) a channel."""
    dy = dy.to(mean.dtype)
    return channel_sum(dy), channel_sum(dy * (x - column(mean, x)))


def channel_sum(t: Tensor) -> Tensor:
    """Σ over all but dimension 1."""
    return t.sum([d for d in range(t.dim()) if d != 1])
