"""What brn, ebn, l1bn and rbn need beyond BatchNorm's kernels."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from .box import part_of
from .finish import add_parts, coefficients, merge_parts, update
from .tiles import locate, merge_lanes, offsets, origin, welford


@triton.jit
def finish_renorm(
    part_means, part_m2s, weight, bias, running_mean, running_var, means, rstds, rs, ds, scales,
    shifts, channels, parts, total, sub_len, eps, factor, rmax, dmax, WEIGHT: tl.constexpr,
    BIAS: tl.constexpr, TRAINING: tl.constexpr, P: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Batch Renormalization: r and d against the averages, which then take a step, in σ."""
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    live = c < channels
    mean, var = merge_parts(part_means, part_m2s, c, live, channels, parts, total, sub_len, P)
    std = tl.sqrt(var + eps)
    old_mean = tl.load(running_mean + c, mask=live, other=0.0).to(tl.float32)
    old_std = tl.sqrt(tl.load(running_var + c, mask=live, other=1.0).to(tl.float32) + eps)
    r = tl.minimum(tl.maximum(std / old_std, 1 / rmax), rmax)
    d = tl.minimum(tl.maximum((mean - old_mean) / old_std, -dmax), dmax)
    if TRAINING:
        update(running_mean, mean, factor, c, live)
        new = old_std + factor * (std - old_std)
        new_var = tl.maximum(new * new - eps, 0.0)
        tl.store(running_var + c, new_var.to(running_var.dtype.element_ty), mask=live)
    gamma = tl.full((CB,), 1.0, tl.float32)
    if WEIGHT:
        gamma = tl.load(weight + c, mask=live, other=0.0).to(tl.float32)
    shift = gamma * d
    if BIAS:
        shift += tl.load(bias + c, mask=live, other=0.0).to(tl.float32)
    scale = gamma * r / std
    tl.store(means + c, mean, mask=live)
    tl.store(rstds + c, 1 / std, mask=live)
    tl.store(rs + c, r, mask=live)
    tl.store(ds + c, d, mask=live)
    tl.store(scales + c, scale, mask=live)
    tl.store(shifts + c, shift - mean * scale, mask=live)


@triton.jit
def finish_extended(
    part_means, part_m2s, weight, bias, running_mean, running_var, means, rstds, scales, shifts,
    channels, parts, total, sub_len, eps, factor, correction, WEIGHT: tl.constexpr,
    BIAS: tl.constexpr, RUNNING: tl.constexpr, P: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Extended BN: the mean of all channels' variances in place of each one's. One program."""
    sum_var = tl.zeros((CB,), tl.float32)
    for j in range(tl.cdiv(channels, CB)):
        c = j * CB + tl.arange(0, CB)
        live = c < channels
        _, var = merge_parts(part_means, part_m2s, c, live, channels, parts, total, sub_len, P)
        sum_var += tl.where(live, var, 0.0)
    common = tl.sum(sum_var, axis=0) / channels
    for j in range(tl.cdiv(channels, CB)):
        c = j * CB + tl.arange(0, CB)
        live = c < channels
        mean, _ = merge_parts(part_means, part_m2s, c, live, channels, parts, total, sub_len, P)
        var = tl.zeros((CB,), tl.float32) + common
        coefficients(
            mean, var, weight, bias, running_mean, running_var, means, rstds, scales, shifts, c,
            live, eps, factor, correction, WEIGHT, BIAS, RUNNING, True,
        )  # fmt: skip


@triton.jit
def finish_extended_gradients(
    sums_g, sums_gx, means, rstds, weight, dweight, dbias, slopes, lifts, constants, channels,
    parts, values, WEIGHT: tl.constexpr, BIAS: tl.constexpr, P: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """dγ, db and dx's coefficients: mean g is a channel's, mean g·x̂ everything's. One program."""
    sum_gx = tl.zeros((CB,), tl.float32)
    for j in range(tl.cdiv(channels, CB)):
        c = j * CB + tl.arange(0, CB)
        live = c < channels
        gx = add_parts(sums_gx, c, live, channels, parts, P)
        if WEIGHT:
            tl.store(dweight + c, gx.to(dweight.dtype.element_ty), mask=live)
            gx *= tl.load(weight + c, mask=live, other=0.0).to(tl.float32)
        sum_gx += tl.where(live, gx, 0.0)
    common = tl.sum(sum_gx, axis=0) / channels / values
    for j in range(tl.cdiv(channels, CB)):
        c = j * CB + tl.arange(0, CB)
        live = c < channels
        g = add_parts(sums_g, c, live, channels, parts, P)
        if BIAS:
            tl.store(dbias + c, g.to(dbias.dtype.element_ty), mask=live)
        rstd = tl.load(rstds + c, mask=live, other=0.0)
        slope = rstd
        if WEIGHT:
            slope = rstd * tl.load(weight + c, mask=live, other=0.0).to(tl.float32)
        lift = -rstd * rstd * common
        mean = tl.load(means + c, mask=live, other=0.0)
        tl.store(slopes + c, slope, mask=live)
        tl.store(lifts + c, lift, mask=live)
        tl.store(constants + c, -slope * g / values - lift * mean, mask=live)


@triton.jit
def box_absolute(
    x, means, sums, signs, outer, inner_units, total, subs, sub_len, CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, E: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Σ|x−μ| and Σ sgn(x−μ) of every part of the whole batch, into tables (parts, C)."""
    channels = inner_units * UNIT if CHANNELS_LAST else outer
    map_size = outer if CHANNELS_LAST else inner_units * UNIT
    E_UNIT: tl.constexpr = 1 if CHANNELS_LAST else UNIT
    blocks = tl.cdiv(channels, CB)
    part = tl.program_id(0) // blocks
    c = tl.program_id(0) % blocks * CB + tl.arange(0, CB)
    live = c < channels
    _, first, n = part_of(part, total, total, subs, sub_len, E_UNIT)
    first_row, rest = origin(first, map_size, 0, E_UNIT)
    mean = tl.load(means + c, mask=live, other=0.0)[None, :]
    away_sum = tl.zeros((E, CB), tl.float32)
    sign_sum = tl.zeros((E, CB), tl.float32)
    for j in range(tl.cdiv(n, E)):
        local = j * E + tl.arange(0, E)
        row, k = locate(
            local, n, first, first_row, rest, first, 0, 0, map_size, map_size, 1, 1, 1, 1, 0, 1,
            WIDE,
        )  # fmt: skip
        inside = (local < n)[:, None] & live[None, :]
        at = offsets(row, k, c, channels, map_size, CHANNELS_LAST)
        away = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - mean
        away = tl.where(inside, away, 0.0)
        away_sum += tl.abs(away)
        sign_sum += tl.where(away > 0, 1.0, tl.where(away < 0, -1.0, 0.0))
    at = part.to(tl.int64) * channels + c
    tl.store(sums + at, tl.sum(away_sum, axis=0), mask=live)
    tl.store(signs + at, tl.sum(sign_sum, axis=0), mask=live)


@triton.jit
def finish_absolute(
    sums, signs, weight, bias, running_mean, running_var, means, rstds, deviations, sign_means,
    scales, shifts, channels, parts, values, eps, factor, correction, gaussian,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, RUNNING: tl.constexpr, P: tl.constexpr,
    CB: tl.constexpr,
):  # fmt: skip
    """L1 BN: deviation `gaussian`·mean|x−μ|, and mean sgn(x−μ); coefficients from them."""
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    live = c < channels
    deviation = gaussian * add_parts(sums, c, live, channels, parts, P) / values
    sign = add_parts(signs, c, live, channels, parts, P) / values
    tl.store(deviations + c, deviation, mask=live)
    tl.store(sign_means + c, sign, mask=live)
    mean = tl.load(means + c, mask=live, other=0.0)
    coefficients(
        mean, deviation * deviation, weight, bias, running_mean, running_var, means, rstds, scales,
        shifts, c, live, eps, factor, correction, WEIGHT, BIAS, RUNNING, True,
    )  # fmt: skip


@triton.jit
def finish_deviation_gradients(
    sums_g, sums_gx, rstds, deviations, sign_means, weight, dweight, dbias, slopes, lifts,
    constants, twists, channels, parts, values, factor, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    SIGNS: tl.constexpr, P: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Where the deviation σ₁ is no root of squares: dx = slope·(dy − mean dy) + twist·∂σ₁/∂x.

    twist = −slope·σ₁/σ·factor·Σ dy·x̂, `factor` what ∂σ₁/∂x was left without; SIGNS: ∂σ₁/∂x has the
    mean `sign_means`, taken out here.
    """
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    live = c < channels
    g = add_parts(sums_g, c, live, channels, parts, P)
    gx = add_parts(sums_gx, c, live, channels, parts, P)
    rstd = tl.load(rstds + c, mask=live, other=0.0)
    slope = rstd
    if WEIGHT:
        slope = rstd * tl.load(weight + c, mask=live, other=0.0).to(tl.float32)
        tl.store(dweight + c, gx.to(dweight.dtype.element_ty), mask=live)
    if BIAS:
        tl.store(dbias + c, g.to(dbias.dtype.element_ty), mask=live)
    twist = -slope * tl.load(deviations + c, mask=live, other=0.0) * rstd * gx * factor
    constant = -slope * g / values
    if SIGNS:
        constant -= twist * tl.load(sign_means + c, mask=live, other=0.0)
    tl.store(slopes + c, slope, mask=live)
    tl.store(lifts + c, tl.zeros((CB,), tl.float32), mask=live)
    tl.store(constants + c, constant, mask=live)
    tl.store(twists + c, twist, mask=live)


@triton.jit
def box_extremes(
    x, means, m2s, highs, lows, high_at, low_at, outer, inner_units, chunk,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, CHUNK_UNIT: tl.constexpr, UNIT: tl.constexpr,
    E: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Moments, extremes and where in the chunk the first of each lies, of chunks of `chunk` values
    of the batch, into tables (chunks, C). CHUNK_UNIT divides a chunk and a map."""
    channels = inner_units * UNIT if CHANNELS_LAST else outer
    map_size = outer if CHANNELS_LAST else inner_units * UNIT
    blocks = tl.cdiv(channels, CB)
    part = tl.program_id(0) // blocks
    c = tl.program_id(0) % blocks * CB + tl.arange(0, CB)
    live = c < channels
    first = part.to(tl.int64) * chunk
    first_row, rest = origin(first, map_size, 0, CHUNK_UNIT)
    chunk = tl.multiple_of(chunk, CHUNK_UNIT)
    lane = tl.arange(0, E)
    mean = tl.zeros((E, CB), tl.float32)
    m2 = tl.zeros((E, CB), tl.float32)
    high = tl.full((E, CB), float("-inf"), tl.float32)
    low = tl.full((E, CB), float("inf"), tl.float32)
    high_index = tl.zeros((E, CB), tl.int32)
    low_index = tl.zeros((E, CB), tl.int32)
    for j in range(tl.cdiv(chunk, E)):
        local = j * E + lane
        row, k = locate(
            local, chunk, first, first_row, rest, first, 0, 0, map_size, map_size, 1, 1, 1, 1, 0, 1,
            WIDE,
        )  # fmt: skip
        inside = (local < chunk)[:, None] & live[None, :]
        at = offsets(row, k, c, channels, map_size, CHANNELS_LAST)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        mean, m2 = welford(mean, m2, value, inside, j + 1.0)
        higher = inside & (value > high)
        lower = inside & (value < low)
        high = tl.where(higher, value, high)
        low = tl.where(lower, value, low)
        high_index = tl.where(higher, local[:, None], high_index)
        low_index = tl.where(lower, local[:, None], low_index)
    counts = tl.cdiv(tl.maximum(chunk - lane, 0), E)
    mean, m2 = merge_lanes(mean, m2, counts, chunk)
    highest = tl.max(high, axis=0)
    lowest = tl.min(low, axis=0)
    beyond = 2147483647
    high_first = tl.min(tl.where(high == highest[None, :], high_index, beyond), axis=0)
    low_first = tl.min(tl.where(low == lowest[None, :], low_index, beyond), axis=0)
    at = part.to(tl.int64) * channels + c
    tl.store(means + at, mean, mask=live)
    tl.store(m2s + at, m2, mask=live)
    tl.store(highs + at, highest, mask=live)
    tl.store(lows + at, lowest, mask=live)
    tl.store(high_at + at, high_first, mask=live)
    tl.store(low_at + at, low_first, mask=live)


@triton.jit
def finish_range(
    part_means, part_m2s, highs, lows, weight, bias, running_mean, running_var, means, rstds,
    deviations, scales, shifts, channels, chunks, chunk, total, eps, factor, correction, constant,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, RUNNING: tl.constexpr, P: tl.constexpr,
    CB: tl.constexpr,
):  # fmt: skip
    """Range BN: deviation `constant`·mean over chunks of (max − min); coefficients from it."""
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    live = c < channels
    mean, _ = merge_parts(part_means, part_m2s, c, live, channels, chunks, total, chunk, P)
    spread = add_parts(highs, c, live, channels, chunks, P)
    spread -= add_parts(lows, c, live, channels, chunks, P)
    deviation = constant * spread / chunks
    tl.store(deviations + c, deviation, mask=live)
    coefficients(
        mean, deviation * deviation, weight, bias, running_mean, running_var, means, rstds, scales,
        shifts, c, live, eps, factor, correction, WEIGHT, BIAS, RUNNING, True,
    )  # fmt: skip


@triton.jit
def scatter_extremes(
    dy, dx, high_at, low_at, slopes, constants, twists, outer, inner_units, chunk, chunks,
    CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """dx = slope·dy + constant ± twist at the extremes of each chunk; where the maximum is the
    minimum, without."""
    channels = inner_units * UNIT if CHANNELS_LAST else outer
    map_size = outer if CHANNELS_LAST else inner_units * UNIT
    blocks = tl.cdiv(channels, CB)
    part = tl.program_id(0) // blocks
    c = tl.program_id(0) % blocks * CB + tl.arange(0, CB)
    live = c < channels
    entry = part.to(tl.int64) * channels + c
    high = tl.load(high_at + entry, mask=live, other=0)
    low = tl.load(low_at + entry, mask=live, other=0)
    a = tl.load(slopes + c, mask=live, other=0.0)
    d = tl.load(constants + c, mask=live, other=0.0)
    twist = tl.load(twists + c, mask=live, other=0.0)
    twist = tl.where(high == low, 0.0, twist)
    for side in tl.static_range(2):
        position = part.to(tl.int64) * chunk + (high if side == 0 else low)
        row = position // map_size
        k = position % map_size
        if CHANNELS_LAST:
            at = (row * map_size + k) * channels + c
        else:
            at = (row * channels + c) * map_size + k
        g = tl.load(dy + at, mask=live, other=0.0).to(tl.float32)
        extra = twist if side == 0 else -twist
        tl.store(dx + at, (a * g + d + extra).to(dx.dtype.element_ty), mask=live)
