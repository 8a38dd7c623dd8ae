"""A tensor as kernels see it: rows × channels × map, in one of two orders."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sbnbench.errors import NotApplicable, Unavailable
from sbnbench_kernels.triton import interpreted, missing, too_old
from sbnbench_kernels.triton.launching import is_recording

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_SAMPLE = 2**31 - 2**16
"""Values a sample may hold: lanes count within one in 32 bits. The whole tensor is unlimited."""


@dataclass(frozen=True)
class Layout:
    """Sizes and order of a dense tensor (rows, channels, *spatial)."""

    rows: int
    channels: int
    spatial: tuple[int, ...]
    channels_last: bool
    itemsize: int

    @property
    def map_size(self) -> int:
        return math.prod(self.spatial)

    @property
    def numel(self) -> int:
        return self.rows * self.channels * self.map_size

    @property
    def inner(self) -> int:
        """Size along the contiguous axis."""
        return self.channels if self.channels_last else self.map_size

    @property
    def outer(self) -> int:
        return self.map_size if self.channels_last else self.channels

    @property
    def unit(self) -> int:
        """The largest power of two up to 16 that divides `inner`."""
        return math.gcd(self.inner, 16)

    @property
    def inner_units(self) -> int:
        return self.inner // self.unit

    @property
    def vectors(self) -> bool:
        """Whether 16-byte vectors fit into the contiguous axis without remainder."""
        return self.unit * self.itemsize % 16 == 0

    @property
    def wide(self) -> bool:
        """Whether offsets, with a tile's overhang, need 64 bits."""
        return self.numel > LARGEST_SAMPLE


def check(x: Tensor) -> None:
    """Unavailable where the kernels cannot run on x's device, NotApplicable for its dtype/shape."""
    if not interpreted() and not is_recording():
        reason = missing()
        if reason is None and not x.is_cuda:
            reason = (
                f"its kernels run on CUDA tensors and this one is on {x.device}; use the backend "
                "aten or inductor there, or set TRITON_INTERPRET=1 to check (never to time) them"
            )
        if reason is None:
            reason = too_old(x.device.index)
        if reason:
            raise Unavailable(f"backend triton: {reason}")
    if x.dtype not in DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise NotApplicable(f"the triton kernels take {names}, not {x.dtype}")
    if not 2 <= x.dim() <= 5:
        raise NotApplicable(
            f"expected (N, C) with at most three spatial sizes, got input size {tuple(x.shape)}"
        )
    if x.numel() == 0:
        raise NotApplicable(f"an empty input {tuple(x.shape)} has no statistics")
    if x.numel() // x.shape[0] > LARGEST_SAMPLE:
        raise NotApplicable("a single sample of 2³¹ values or more")


def dense(x: Tensor) -> tuple[Tensor, Layout]:
    """x, copied only where it is in neither order, and its layout.

    A map of one position is in both orders; channels last is the one that vectorises.
    """
    last = x.movedim(1, -1).is_contiguous() and (
        not x.is_contiguous() or math.prod(x.shape[2:]) == 1
    )
    if not last:
        x = x.contiguous()
    return x, Layout(x.shape[0], x.shape[1], tuple(x.shape[2:]), last, x.element_size())


def like(other: Tensor, layout: Layout) -> Tensor:
    """`other` in the order of `layout`, copied only where it is not."""
    if not layout.channels_last:
        return other.contiguous()
    return other.movedim(1, -1).contiguous().movedim(-1, 1)
