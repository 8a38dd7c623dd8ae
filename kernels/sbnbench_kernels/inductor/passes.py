"""The pass that writes: y = a·x + b, or dx = a·dy + (c·x + d), with coefficients a channel.

A vector of bfloat16 is widened, computed and rounded by integer instructions in as many 32-bit
lanes as it has values; where caches hold the tensor they take the time, not memory. So two adjacent
values share a lane where the layout allows: widening is a shift for the one and a mask for the
other, and each is rounded in the half where it stays or goes. Results are the same bit for bit.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from sbnbench_kernels.eager.arithmetic import accumulator, column
from sbnbench_kernels.inductor.sums import buffer

LANES = 16
"""Lanes of the widest vectors there are."""

WORTH = 1 << 20
"""Values from which pairs are worth it: to see a tensor as pairs and back takes some microseconds
a call."""

UPPER = -(1 << 16)
"""Mask of a lane's upper half."""


def affine(terms: Sequence[tuple[Tensor, Tensor]], shift: Tensor | None, pairs: bool) -> Tensor:
    """Σ a·t + b in t's dtype, for the terms (t, a) with a and the shift b (C,); `pairs` where the
    tensors can be paired."""
    if pairs:
        return _paired(terms, shift)
    like = terms[0][0]
    wide = [(t.to(accumulator(t)), column(a, t)) for t, a in terms]
    return _combined(wide, None if shift is None else column(shift, like)).to(like.dtype)


def _combined(terms: Sequence[tuple[Tensor, Tensor]], shift: Tensor | None) -> Tensor:
    *first, (t, a) = terms
    total = t * a if shift is None else t * a + shift
    for t, a in first:
        total = t * a + total
    return total


def can_pair(*tensors: Tensor) -> bool:
    """Whether the tensors are bfloat16 on a CPU in one dense layout, large enough, and have either
    maps of an even size that fills a vector, or channels side by side that fill vectors together.
    """
    t = tensors[0]
    if any(
        each.dtype != torch.bfloat16
        or each.device.type != "cpu"
        or each.stride() != t.stride()
        or each.storage_offset() % 2
        for each in tensors
    ):
        return False
    if t.numel() < WORTH or sys.byteorder != "little":
        return False
    if _by_maps(t):
        values = math.prod(t.shape[2:])
        return values % 2 == 0 and values >= 2 * LANES
    return _in_order(t).is_contiguous() and t.numel() % _period(t) == 0


def leaves_tails(t: Tensor) -> bool:
    """Whether the lanes of a map end in a part of a vector. Inductor passes the bits of a partial
    vector through memory, at the cost of many whole ones; value by value is faster."""
    return _by_maps(t) and math.prod(t.shape[2:]) % (2 * LANES) != 0


def _paired(terms: Sequence[tuple[Tensor, Tensor]], shift: Tensor | None) -> Tensor:
    like = terms[0][0]
    halves = [_halves(_lanes(t)) for t, _ in terms]
    scales = [_spread(a, like) for _, a in terms]
    shifts = (None, None) if shift is None else _spread(shift, like)
    lower, upper = (
        _rounded(_combined([(h[k], s[k]) for h, s in zip(halves, scales, strict=True)], shifts[k]))
        for k in (0, 1)
    )
    lanes = ((lower >> 16) & ~UPPER) | (upper & UPPER)
    values = lanes.view(torch.bfloat16)
    if _by_maps(like):
        return values.view(like.shape)
    return values.view(_in_order(like).shape).movedim(-1, 1)


def _by_maps(t: Tensor) -> bool:
    return t.dim() > 2 and t.is_contiguous()


def _in_order(t: Tensor) -> Tensor:
    """Channels last."""
    return t.movedim(1, -1)


def _period(t: Tensor) -> int:
    """Values of whole positions that are whole vectors of pairs too."""
    return math.lcm(t.shape[1], 2 * LANES)


def _lanes(t: Tensor) -> Tensor:
    """int32, (N, C, pairs) of maps, (rows, pairs of a period) of channels side by side."""
    if _by_maps(t):
        return t.flatten(2).view(torch.int32)
    return _in_order(t).reshape(-1, _period(t)).view(torch.int32)


def _halves(lanes: Tensor) -> tuple[Tensor, Tensor]:
    """Both values of each lane as float32, of which a bfloat16 is the upper half."""
    return (lanes << 16).view(torch.float32), (lanes & UPPER).view(torch.float32)


def _spread(coefficient: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The coefficients (C,) for the lower and the upper values of `_lanes(t)`."""
    # Rounding would carry out of a NaN whose lower bits are ones.
    clean = torch.where(coefficient.isnan(), math.nan, coefficient)
    if _by_maps(t):
        each = column(buffer(clean), _lanes(t))
        return each, each
    table = clean.expand(_period(t) // t.shape[1], -1).reshape(-1, 2)
    return buffer(table[:, 0]), buffer(table[:, 1])


def _rounded(values: Tensor) -> Tensor:
    """The bits of float32 values, their upper halves rounded to the nearest, ties to even."""
    bits = values.view(torch.int32)
    return bits + (((bits >> 16) & 1) + 0x7FFF)
