"""Sums over boxes: moments for the forward, gradient sums for the backward.

Grids are one-dimensional: part-major, channel blocks innermost. A box is cut into segments (one
for BatchNorm, one a row or a sub-batch for its relatives), a segment into `subs` parts of
`sub_len` values; each part writes its own row of a table, so that nothing is ever added
atomically and a result does not depend on the order of execution.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import WHOLE, locate, offsets, origin, part_moments


@triton.jit
def part_of(pid, total, seg_len, subs, sub_len, UNIT: tl.constexpr):
    """Segment, first value (int64) and number of values of part `pid`."""
    seg = pid // subs
    skip = (pid % subs).to(tl.int64) * sub_len
    first = seg.to(tl.int64) * seg_len + skip
    n = tl.minimum(tl.minimum(seg_len - skip, sub_len), total - first).to(tl.int32)
    return seg, first, tl.multiple_of(n, UNIT)


@triton.jit(do_not_specialize=["start"], do_not_specialize_on_alignment=["index"])
def box_moments(
    x, index, means, m2s, outer, inner_units, start, total, seg_len, subs, sub_len, index_rows,
    index_dims, period, map_h, map_w, patch_h, patch_w, KIND: tl.constexpr, NDIM: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr, E: tl.constexpr,
    CB: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of every part of a box, into tables (parts, C)."""
    channels = inner_units * UNIT if CHANNELS_LAST else outer
    map_size = outer if CHANNELS_LAST else inner_units * UNIT
    E_UNIT: tl.constexpr = 1 if CHANNELS_LAST or KIND != 0 else UNIT
    blocks = tl.cdiv(channels, CB)
    pid = tl.program_id(0)
    part = pid // blocks
    c = pid % blocks * CB + tl.arange(0, CB)
    _, first, n = part_of(part, total, seg_len, subs, sub_len, E_UNIT)
    mean, m2 = part_moments(
        x, first, n, c, channels, map_size, start, index, index_rows, index_dims, period, map_h,
        map_w, patch_h, patch_w, KIND, NDIM, CHANNELS_LAST, WIDE, E_UNIT, E, CB,
    )  # fmt: skip
    at = part.to(tl.int64) * channels + c
    tl.store(means + at, mean, mask=c < channels)
    tl.store(m2s + at, m2, mask=c < channels)


@triton.jit
def relu_gradient(dy, value, y, at, inside, scale, shift, RELU: tl.constexpr, Y: tl.constexpr):
    """dy where the fused ReLU let the value through, else 0.

    What entered the ReLU is recomputed as the forward did it; with a residual its output is read.
    """
    if RELU:
        if Y:
            open_ = tl.load(y + at, mask=inside, other=0.0).to(tl.float32) > 0
        else:
            open_ = value * scale + shift > 0
        dy = tl.where(open_, dy, 0.0)
    return dy


@triton.jit
def part_gradients(
    x, dy, y, dx, dresidual, c, mean, rstd, weight, scale, shift, first, n, channels, map_size,
    start, index, index_rows, index_dims, period, map_h, map_w, patch_h, patch_w,
    KIND: tl.constexpr, NDIM: tl.constexpr, CHANNELS_LAST: tl.constexpr, RELU: tl.constexpr,
    Y: tl.constexpr, WRITE: tl.constexpr, DRESIDUAL: tl.constexpr, WIDE: tl.constexpr,
    UNIT: tl.constexpr, E: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Σ dy and Σ dy·x̂ [CB] over a part of a box; with WRITE also dx = dy·γ/σ there, and with
    DRESIDUAL the gradient of a residual."""
    lane = tl.arange(0, E)
    if KIND == WHOLE:
        period = map_size  # the same number, of which the compiler knows a divisor
    first_row, rest = origin(first, period, KIND, UNIT)
    sum_g = tl.zeros((E, CB), tl.float32)
    sum_gx = tl.zeros((E, CB), tl.float32)
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
        g = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        g = relu_gradient(g, value, y, at, inside, scale[None, :], shift[None, :], RELU, Y)
        sum_g += g
        sum_gx += tl.where(inside, g * (value - mean[None, :]), 0.0)
        if WRITE:
            tl.store(dx + at, (g * scale[None, :]).to(dx.dtype.element_ty), mask=inside)
        if DRESIDUAL:
            tl.store(dresidual + at, g.to(dresidual.dtype.element_ty), mask=inside)
    return tl.sum(sum_g, axis=0), tl.sum(sum_gx, axis=0) * rstd


@triton.jit
def channel_statistics(
    mean, rstd, weight, bias, stats_at, c, live, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """μ, 1/σ, γ, scale γ/σ and shift b − μγ/σ of channels c."""
    m = tl.load(mean + stats_at, mask=live, other=0.0)
    r = tl.load(rstd + stats_at, mask=live, other=0.0)
    w = tl.full(m.shape, 1.0, tl.float32)
    b = tl.zeros(m.shape, tl.float32)
    if WEIGHT:
        w = tl.load(weight + c, mask=live, other=0.0).to(tl.float32)
    if BIAS:
        b = tl.load(bias + c, mask=live, other=0.0).to(tl.float32)
    scale = r * w
    return m, r, w, scale, b - m * scale


@triton.jit(do_not_specialize=["start"], do_not_specialize_on_alignment=["index"])
def box_gradients(
    x, dy, y, dx, dresidual, index, mean, rstd, weight, bias, sums_g, sums_gx, outer, inner_units,
    start, total, seg_len, subs, sub_len, group, index_rows, index_dims, period, map_h, map_w,
    patch_h, patch_w, KIND: tl.constexpr, NDIM: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    SEGMENTED: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr,
    Y: tl.constexpr, WRITE: tl.constexpr, DRESIDUAL: tl.constexpr, WIDE: tl.constexpr,
    UNIT: tl.constexpr, E: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Σ dy and Σ dy·x̂ of every part of a box, into tables (parts, C).

    SEGMENTED takes μ and 1/σ from row `segment` of their tables, in which `group` channels share
    an entry. WRITE, for the detached mode,
    also writes dx = dy·γ/σ (and with DRESIDUAL the residual's gradient) in the same pass.
    """
    channels = inner_units * UNIT if CHANNELS_LAST else outer
    map_size = outer if CHANNELS_LAST else inner_units * UNIT
    E_UNIT: tl.constexpr = 1 if CHANNELS_LAST or KIND != 0 else UNIT
    blocks = tl.cdiv(channels, CB)
    pid = tl.program_id(0)
    part = pid // blocks
    c = pid % blocks * CB + tl.arange(0, CB)
    live = c < channels
    seg, first, n = part_of(part, total, seg_len, subs, sub_len, E_UNIT)
    stats_at = seg.to(tl.int64) * (channels // group) + c // group if SEGMENTED else c
    m, r, w, scale, shift = channel_statistics(
        mean, rstd, weight, bias, stats_at, c, live, WEIGHT, BIAS
    )
    g, gx = part_gradients(
        x, dy, y, dx, dresidual, c, m, r, w, scale, shift, first, n, channels, map_size, start,
        index, index_rows, index_dims, period, map_h, map_w, patch_h, patch_w, KIND, NDIM,
        CHANNELS_LAST, RELU, Y, WRITE, DRESIDUAL, WIDE, E_UNIT, E, CB,
    )  # fmt: skip
    at = part.to(tl.int64) * channels + c
    tl.store(sums_g + at, g, mask=live)
    tl.store(sums_gx + at, gx, mask=live)


@triton.jit
def box_scatter(
    x, dy, y, dx, index, slope, lift, constant, omega, outer, inner_units, total, mean, rstd,
    weight, bias, CHANNELS_LAST: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    RELU: tl.constexpr, Y: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr, E: tl.constexpr,
    CB: tl.constexpr,
):  # fmt: skip
    """dx = slope·g + ω·(lift·x + constant) at single positions, each of which occurs once."""
    channels = inner_units * UNIT if CHANNELS_LAST else outer
    map_size = outer if CHANNELS_LAST else inner_units * UNIT
    blocks = tl.cdiv(channels, CB)
    pid = tl.program_id(0)
    c = pid % blocks * CB + tl.arange(0, CB)
    live = c < channels
    lane = (pid // blocks).to(tl.int64) * E + tl.arange(0, E)
    at = tl.load(index + lane, mask=lane < total, other=0)
    if not WIDE:
        at = at.to(tl.int32)
    row = (at // map_size).to(tl.int64)
    k = (at % map_size).to(tl.int64)
    inside = (lane < total)[:, None] & live[None, :]
    at = offsets(row, k, c, channels, map_size, CHANNELS_LAST)
    _, _, _, scale, shift = channel_statistics(mean, rstd, weight, bias, c, c, live, WEIGHT, BIAS)
    a = tl.load(slope + c, mask=live, other=0.0)[None, :]
    b = tl.load(lift + c, mask=live, other=0.0)[None, :]
    d = tl.load(constant + c, mask=live, other=0.0)[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    g = relu_gradient(g, value, y, at, inside, scale[None, :], shift[None, :], RELU, Y)
    tl.store(dx + at, (a * g + omega * (b * value + d)).to(dx.dtype.element_ty), mask=inside)
