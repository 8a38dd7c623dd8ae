"""Where the values of a box lie, and what is computed of them lane by lane.

A tensor is seen as rows × channels × map: element (row, channel c, position k of the map) is at
(row·C + c)·HW + k, or with channels last at (row·HW + k)·C + c. Tiles are [E, CB]: E values of a
box times CB channels; the contiguous axis is the first or the second according to the format.

Sizes along the contiguous axis come as units of UNIT, the largest power of two (up to 16) that
divides them, so that the compiler knows what an address is divisible by and issues wide loads
also where the size is no multiple of 16, which is all that its own specialisation looks at.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

WHOLE = tl.constexpr(0)
"""Box kinds: whole maps of a range of rows;"""
PATCH = tl.constexpr(1)
"""a patch of each row, at the row's own corner;"""
GATHER = tl.constexpr(2)
"""single positions (row·HW + k) from a list."""

EXACT = tl.constexpr(0)
"""Backward modes: the sums over everything reach the sampled values;"""
SAMPLED = tl.constexpr(1)
"""the sums over the sample reach every value;"""
DETACHED = tl.constexpr(2)
"""statistics are constants."""


@triton.jit
def locate(
    local, n, first, first_row, rest, index, index_rows, index_dims, period, map_size, map_h, map_w,
    patch_h, patch_w, KIND: tl.constexpr, NDIM: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Row and map position (both int64) of the values `first + local` of a box, `local` < n.

    The value `first` is number `rest` of the box's row `first_row`: 64-bit divisions that are
    done once a program and out of its loop. WIDE: there are 2³¹ positions a channel or more.
    """
    if KIND == GATHER:
        at = tl.load(index + first + local, mask=local < n, other=0)
        if not WIDE:
            at = at.to(tl.int32)
        row = (at // map_size).to(tl.int64)
        k = (at % map_size).to(tl.int64)
    else:
        t = rest + local
        row = first_row + t // period
        j = t % period
        if KIND == WHOLE:
            k = j.to(tl.int64)
        else:
            corner = index + row * index_rows
            inside = local < n
            if NDIM == 1:
                k = tl.load(corner, mask=inside, other=0) + j
            elif NDIM == 2:
                h = tl.load(corner, mask=inside, other=0) + j // patch_w
                k = h * map_w + tl.load(corner + index_dims, mask=inside, other=0) + j % patch_w
            else:
                d = tl.load(corner, mask=inside, other=0) + j // (patch_h * patch_w)
                h = tl.load(corner + index_dims, mask=inside, other=0) + j // patch_w % patch_h
                w = tl.load(corner + 2 * index_dims, mask=inside, other=0) + j % patch_w
                k = (d * map_h + h) * map_w + w
    return row, k


@triton.jit
def origin(first, period, KIND: tl.constexpr, UNIT: tl.constexpr):
    """Row of the box in which its value `first` lies, and the value's number in that row."""
    row = first // period
    rest = (first % period).to(tl.int32)
    if KIND == WHOLE:
        rest = tl.multiple_of(rest, UNIT)
    return row, rest


@triton.jit
def member(
    row, k, start, rows, index, index_rows, index_dims, map_h, map_w, patch_d, patch_h, patch_w,
    KIND: tl.constexpr, NDIM: tl.constexpr,
):  # fmt: skip
    """Whether (row, map position) lies in the box."""
    r = row - start
    inside = (r >= 0) & (r < rows)
    if KIND == PATCH:
        corner = index + r * index_rows
        w = k % map_w
        if NDIM == 1:
            left = tl.load(corner, mask=inside, other=0)
        elif NDIM == 2:
            top = tl.load(corner, mask=inside, other=0)
            left = tl.load(corner + index_dims, mask=inside, other=0)
            h = k // map_w
        else:
            front = tl.load(corner, mask=inside, other=0)
            top = tl.load(corner + index_dims, mask=inside, other=0)
            left = tl.load(corner + 2 * index_dims, mask=inside, other=0)
            h = k // map_w % map_h
            d = k // (map_h * map_w)
            inside = inside & (d >= front) & (d < front + patch_d)
        if NDIM >= 2:
            inside = inside & (h >= top) & (h < top + patch_h)
        inside = inside & (w >= left) & (w < left + patch_w)
    return inside


@triton.jit
def offsets(row, k, c, channels, map_size, CHANNELS_LAST: tl.constexpr):
    """Element offsets [E, CB] of positions (row, k) [E] times channels c [CB]."""
    if CHANNELS_LAST:
        at = ((row * map_size + k) * channels)[:, None] + c[None, :]
    else:
        at = (row * channels * map_size + k)[:, None] + c[None, :] * map_size
    return at


@triton.jit
def welford(mean, m2, value, inside, count):
    """Mean and sum of squared deviations of each lane after its `count`-th value."""
    delta = value - mean
    moved = mean + delta * (1.0 / count)
    m2 = tl.where(inside, m2 + delta * (value - moved), m2)
    return tl.where(inside, moved, mean), m2


@triton.jit
def merge_lanes(mean, m2, counts, n):
    """Mean and sum of squared deviations [CB] over the lanes [E, CB] holding `counts` values."""
    # About the first lane's mean, so that a large offset does not round the weighted sum.
    weight = counts.to(tl.float32)[:, None] / n
    pivot = tl.sum(tl.where(tl.arange(0, mean.shape[0])[:, None] == 0, mean, 0.0), axis=0)
    shifted = mean - pivot[None, :]
    total = tl.sum(weight * shifted, axis=0)
    away = shifted - total[None, :]
    m2 = tl.sum(m2 + counts.to(tl.float32)[:, None] * away * away, axis=0)
    return pivot + total, m2


@triton.jit
def part_moments(
    x, first, n, c, channels, map_size, start, index, index_rows, index_dims, period, map_h, map_w,
    patch_h, patch_w, KIND: tl.constexpr, NDIM: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, E: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations [CB] of the values first … first+n−1 of a box."""
    lane = tl.arange(0, E)
    if KIND == WHOLE:
        period = map_size  # the same number, of which the compiler knows a divisor
    first_row, rest = origin(first, period, KIND, UNIT)
    mean = tl.zeros((E, CB), tl.float32)
    m2 = tl.zeros((E, CB), tl.float32)
    live = (c < channels)[None, :]
    for j in range(tl.cdiv(n, E)):
        local = j * E + lane
        row, k = locate(
            local, n, first, first_row, rest, index, index_rows, index_dims, period, map_size,
            map_h, map_w, patch_h, patch_w, KIND, NDIM, WIDE,
        )  # fmt: skip
        inside = (local < n)[:, None] & live
        at = offsets(start + row, k, c, channels, map_size, CHANNELS_LAST)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        mean, m2 = welford(mean, m2, value, inside, j + 1.0)
    counts = tl.cdiv(tl.maximum(n - lane, 0), E)
    return merge_lanes(mean, m2, counts, n)
