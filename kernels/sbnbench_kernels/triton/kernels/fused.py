"""Everything in one launch, for inputs of which a program can hold a block of channels (RESIDENT)
or at least pass twice over it while it stays in the caches: the micro-batches.

A program has a segment of rows (all of them for BatchNorm) and CB channels. The arithmetic is that
of box.py, finish.py and elementwise.py, by the same functions.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from .box import channel_statistics, part_gradients, relu_gradient
from .finish import coefficients, mixed, scale_shift, slopes
from .tiles import EXACT, SAMPLED, locate, member, merge_lanes, offsets, part_moments


@triton.jit
def segment_tile(
    j, n, first_row, channels, map_size, c, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    E: tl.constexpr,
):  # fmt: skip
    """Tile j of a segment of whole rows: rows and map positions [E], offsets and mask [E, CB]."""
    local = j * E + tl.arange(0, E)
    row, k = locate(
        local, n, 0, first_row, 0, first_row, 0, 0, map_size, map_size, 1, 1, 1, 1, 0, 1, WIDE
    )
    at = offsets(row, k, c, channels, map_size, CHANNELS_LAST)
    return row, k, at, (local < n)[:, None] & (c < channels)[None, :]


@triton.jit
def finished(value, residual, at, inside, RELU: tl.constexpr, RESIDUAL: tl.constexpr):
    """value with the residual added, behind the ReLU."""
    if RESIDUAL:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        value = tl.maximum(value, 0.0)
    return value


@triton.jit(do_not_specialize=["start", "other_start"], do_not_specialize_on_alignment=["index"])
def fused_forward(
    x, residual, y, index, weight, bias, running_mean, running_var, means, variances, rstds, outer,
    inner_units, rows, seg_rows, start, total, index_rows, index_dims, period, map_h, map_w,
    patch_h, patch_w, other_start, other_total, other_weight, eps, factor, correction, group, plane,
    KIND: tl.constexpr, NDIM: tl.constexpr, CHANNELS_LAST: tl.constexpr, MIXED: tl.constexpr,
    SEGMENTED: tl.constexpr, GROUPED: tl.constexpr, RESIDENT: tl.constexpr, WEIGHT: tl.constexpr,
    BIAS: tl.constexpr, RUNNING: tl.constexpr, RELU: tl.constexpr, RESIDUAL: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, E: tl.constexpr, EB: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Statistics of a sample, running averages, y.

    SEGMENTED: each run of `seg_rows` rows by its own statistics, all of them sampled. GROUPED: a
    "channel" is a group of `group` real ones, of `plane` positions each, with its own γ and b.
    EB: values of a tile of the sample.
    """
    channels = inner_units * UNIT if CHANNELS_LAST else outer
    map_size = outer if CHANNELS_LAST else inner_units * UNIT
    E_UNIT: tl.constexpr = 1 if CHANNELS_LAST else UNIT
    BOX_UNIT: tl.constexpr = E_UNIT if KIND == 0 else 1
    blocks = tl.cdiv(channels, CB)
    pid = tl.program_id(0)
    seg = pid // blocks
    c = pid % blocks * CB + tl.arange(0, CB)
    live = c < channels
    zero = (pid * 0).to(tl.int64)
    first_row = zero
    n = rows * map_size
    if SEGMENTED:
        first_row = seg.to(tl.int64) * seg_rows
        n = tl.minimum(seg_rows, rows - seg * seg_rows) * map_size
    n = tl.multiple_of(n, E_UNIT)
    if RESIDENT:
        _, k, at, inside = segment_tile(
            0, n, first_row, channels, map_size, c, CHANNELS_LAST, WIDE, E
        )
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        counts = (tl.arange(0, E) < n).to(tl.int32)
        mean, m2 = merge_lanes(value, tl.zeros((E, CB), tl.float32), counts, n)
        var = m2 / n
    else:
        box_first = zero
        box_n = total
        if SEGMENTED:
            box_first = first_row * map_size
            box_n = n
        box_n = tl.multiple_of(box_n, BOX_UNIT)
        mean, m2 = part_moments(
            x, box_first, box_n, c, channels, map_size, start, index, index_rows, index_dims,
            period, map_h, map_w, patch_h, patch_w, KIND, NDIM, CHANNELS_LAST, WIDE, BOX_UNIT, EB,
            CB,
        )  # fmt: skip
        var = m2 / box_n
        if MIXED:
            other_n = tl.multiple_of(other_total, E_UNIT)
            other_mean, other_m2 = part_moments(
                x, zero, other_n, c, channels, map_size, other_start, x, 0, 0, map_size, 1, 1, 1, 1,
                0, NDIM, CHANNELS_LAST, WIDE, E_UNIT, E, CB,
            )  # fmt: skip
            mean, var = mixed(mean, var, other_mean, other_m2 / other_n, other_weight)
    if SEGMENTED:
        rstd = tl.rsqrt(var + eps)
        stats = seg.to(tl.int64) * channels + c
        tl.store(means + stats, mean, mask=live)
        tl.store(variances + stats, var, mask=live)
        tl.store(rstds + stats, rstd, mask=live)
        scale, shift = scale_shift(
            mean, rstd, weight, bias, c, live, WEIGHT and not GROUPED, BIAS and not GROUPED
        )
    else:
        tl.store(variances + c, var, mask=live)
        scale, shift = coefficients(
            mean, var, weight, bias, running_mean, running_var, means, rstds, x, x, c, live, eps,
            factor, correction, WEIGHT, BIAS, RUNNING, False,
        )  # fmt: skip
    if RESIDENT:
        value = normalized(
            value, scale, shift, weight, bias, c, k, inside, group, plane, GROUPED, WEIGHT, BIAS
        )
        value = finished(value, residual, at, inside, RELU, RESIDUAL)
        tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)
    else:
        for j in range(tl.cdiv(n, E)):
            _, k, at, inside = segment_tile(
                j, n, first_row, channels, map_size, c, CHANNELS_LAST, WIDE, E
            )
            value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            value = normalized(
                value, scale, shift, weight, bias, c, k, inside, group, plane, GROUPED, WEIGHT,
                BIAS,
            )  # fmt: skip
            value = finished(value, residual, at, inside, RELU, RESIDUAL)
            tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def normalized(
    value, scale, shift, weight, bias, c, k, inside, group, plane, GROUPED: tl.constexpr,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """scale·x + shift, and for groups γ and b of the real channel on top."""
    value = value * scale[None, :] + shift[None, :]
    if GROUPED and (WEIGHT or BIAS):
        channel = c[None, :] * group + (k // plane)[:, None]
        if WEIGHT:
            value *= tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
        if BIAS:
            value += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    return value


@triton.jit(do_not_specialize=["start", "other_start"], do_not_specialize_on_alignment=["index"])
def fused_backward(
    x, dy, y, dx, dresidual, index, mean, rstd, weight, bias, dweight, dbias, outer, inner_units,
    rows, seg_rows, start, total, index_rows, index_dims, period, map_h, map_w, patch_d, patch_h,
    patch_w, omega, extent, other_start, other_total, other_omega, other_extent, KIND: tl.constexpr,
    NDIM: tl.constexpr, CHANNELS_LAST: tl.constexpr, MODE: tl.constexpr, PARTIAL: tl.constexpr,
    MIXED: tl.constexpr, SEGMENTED: tl.constexpr, SUMS: tl.constexpr, WEIGHT: tl.constexpr,
    BIAS: tl.constexpr, RELU: tl.constexpr, READ_Y: tl.constexpr, DRESIDUAL: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, E: tl.constexpr, EB: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """dγ, db (of each segment with SEGMENTED, wanted or not with SUMS) and dx.

    `omega`, `extent`: see finish_gradients. PARTIAL: in `exact`, the sample is not everything.
    """
    channels = inner_units * UNIT if CHANNELS_LAST else outer
    map_size = outer if CHANNELS_LAST else inner_units * UNIT
    E_UNIT: tl.constexpr = 1 if CHANNELS_LAST else UNIT
    BOX_UNIT: tl.constexpr = E_UNIT if KIND == 0 else 1
    blocks = tl.cdiv(channels, CB)
    pid = tl.program_id(0)
    seg = pid // blocks
    c = pid % blocks * CB + tl.arange(0, CB)
    live = c < channels
    zero = (pid * 0).to(tl.int64)
    first_row = zero
    n = rows * map_size
    stats_at = c
    weight_of_value = omega
    if SEGMENTED:
        first_row = seg.to(tl.int64) * seg_rows
        n = tl.minimum(seg_rows, rows - seg * seg_rows) * map_size
        stats_at = c + seg.to(tl.int64) * channels
        weight_of_value = 1.0 / n
    n = tl.multiple_of(n, E_UNIT)
    m, r, w, scale, shift = channel_statistics(
        mean, rstd, weight, bias, stats_at, c, live, WEIGHT, BIAS
    )
    if MODE == SAMPLED:
        sum_n = tl.multiple_of(total, BOX_UNIT)
        g, gx = part_gradients(
            x, dy, y, dx, dresidual, c, m, r, w, scale, shift, zero, sum_n, channels, map_size,
            start, index, index_rows, index_dims, period, map_h, map_w, patch_h, patch_w, KIND,
            NDIM, CHANNELS_LAST, RELU, READ_Y, False, False, WIDE, BOX_UNIT, EB, CB,
        )  # fmt: skip
    else:
        g, gx = part_gradients(
            x, dy, y, dx, dresidual, c, m, r, w, scale, shift, first_row * map_size, n, channels,
            map_size, 0, x, 0, 0, map_size, 1, 1, 1, 1, 0, NDIM, CHANNELS_LAST, RELU, READ_Y, False,
            False, WIDE, E_UNIT, E, CB,
        )  # fmt: skip
    db = g * extent
    dw = gx * extent
    if MODE == SAMPLED or not PARTIAL:
        g = g * weight_of_value
        gx = gx * weight_of_value
    if MODE == SAMPLED and MIXED:
        other_n = tl.multiple_of(other_total, E_UNIT)
        other_g, other_gx = part_gradients(
            x, dy, y, dx, dresidual, c, m, r, w, scale, shift, zero, other_n, channels, map_size,
            other_start, x, 0, 0, map_size, 1, 1, 1, 1, 0, NDIM, CHANNELS_LAST, RELU, READ_Y, False,
            False, WIDE, E_UNIT, E, CB,
        )  # fmt: skip
        db += other_g * other_extent
        dw += other_gx * other_extent
        g += other_g * other_omega
        gx += other_gx * other_omega
    if WEIGHT or SUMS:
        tl.store(dweight + stats_at, dw.to(dweight.dtype.element_ty), mask=live)
    if BIAS or SUMS:
        tl.store(dbias + stats_at, db.to(dbias.dtype.element_ty), mask=live)
    slope, lift, constant = slopes(m, r, w, g, gx)
    for j in range(tl.cdiv(n, E)):
        row, k, at, inside = segment_tile(
            j, n, first_row, channels, map_size, c, CHANNELS_LAST, WIDE, E
        )
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        g_ = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        g_ = relu_gradient(g_, value, y, at, inside, scale[None, :], shift[None, :], RELU, READ_Y)
        if DRESIDUAL:
            tl.store(dresidual + at, g_.to(dresidual.dtype.element_ty), mask=inside)
        linear = value * lift[None, :] + constant[None, :]
        if MODE == EXACT and PARTIAL:
            here = member(
                row, k, start, total // period, index, index_rows, index_dims, map_h, map_w,
                patch_d, patch_h, patch_w, KIND, NDIM,
            )  # fmt: skip
            share = tl.where(here, omega, 0.0)
            if MIXED:
                other = (row >= other_start) & (row < other_start + other_total // map_size)
                share = share + tl.where(other, other_omega, 0.0)
            linear = linear * share[:, None]
        tl.store(dx + at, (g_ * slope[None, :] + linear).to(dx.dtype.element_ty), mask=inside)
