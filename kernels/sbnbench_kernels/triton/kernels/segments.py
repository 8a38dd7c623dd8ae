"""From tables of parts to coefficients, for statistics of segments of rows (a sample, a sub-batch),
each channel by itself or groups of channels together.

Tables of parts are (segments·subs, C), of statistics (segments, groups), of coefficients
(segments, C). A program has a segment and a block of channels, or with GROUPED one group.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from .finish import add_parts, merge_parts, scale_shift, update


@triton.jit
def block_of(pid, channels, group, GROUPED: tl.constexpr, CB: tl.constexpr):
    """Segment, block, channels and which of them exist, of a program."""
    lane = tl.arange(0, CB)
    if GROUPED:
        blocks = channels // group
        c = pid % blocks * group + lane
        live = lane < group
    else:
        blocks = tl.cdiv(channels, CB)
        c = pid % blocks * CB + lane
        live = c < channels
    return pid // blocks, pid % blocks, c, live


@triton.jit
def finish_segments(
    part_means, part_m2s, weight, bias, means, variances, rstds, scales, shifts, channels, group,
    total, seg_len, subs, sub_len, eps, GROUPED: tl.constexpr, WEIGHT: tl.constexpr,
    BIAS: tl.constexpr, P: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Merges the parts of each segment; statistics, and scale and shift of y."""
    seg, block, c, live = block_of(tl.program_id(0), channels, group, GROUPED, CB)
    seg = seg.to(tl.int64)
    skip = seg * subs * channels
    n = tl.minimum(seg_len, total - seg * seg_len)
    mean, var = merge_parts(
        part_means + skip, part_m2s + skip, c, live, channels, subs, n, sub_len, P
    )
    if GROUPED:
        # About one channel's mean, so that a large offset does not round the sum.
        pivot = tl.sum(tl.where(tl.arange(0, CB) == 0, mean, 0.0), axis=0)
        common = pivot + tl.sum(tl.where(live, mean - pivot, 0.0), axis=0) / group
        away = mean - common
        var = tl.sum(tl.where(live, var + away * away, 0.0), axis=0) / group
        at = seg * (channels // group) + block
        tl.store(means + at, common)
        tl.store(variances + at, var)
        tl.store(rstds + at, tl.rsqrt(var + eps))
        mean = tl.zeros((CB,), tl.float32) + common
        var = tl.zeros((CB,), tl.float32) + var
    else:
        at = seg * channels + c
        tl.store(means + at, mean, mask=live)
        tl.store(variances + at, var, mask=live)
        tl.store(rstds + at, tl.rsqrt(var + eps), mask=live)
    scale, shift = scale_shift(mean, tl.rsqrt(var + eps), weight, bias, c, live, WEIGHT, BIAS)
    tl.store(scales + seg * channels + c, scale, mask=live)
    tl.store(shifts + seg * channels + c, shift, mask=live)


@triton.jit
def finish_segment_gradients(
    sums_g, sums_gx, means, rstds, weight, slopes, lifts, constants, channels, group, total,
    seg_len, subs, GROUPED: tl.constexpr, WEIGHT: tl.constexpr, P: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Coefficients of dx = (1/σ)(g − mean g − x̂·mean(g x̂)), g = γ·dy, means over the segment."""
    seg, block, c, live = block_of(tl.program_id(0), channels, group, GROUPED, CB)
    seg = seg.to(tl.int64)
    skip = seg * subs * channels
    n = tl.minimum(seg_len, total - seg * seg_len).to(tl.float32)
    g = add_parts(sums_g + skip, c, live, channels, subs, P)
    gx = add_parts(sums_gx + skip, c, live, channels, subs, P)
    gamma = tl.full((CB,), 1.0, tl.float32)
    if WEIGHT:
        gamma = tl.load(weight + c, mask=live, other=0.0).to(tl.float32)
    g = g * gamma / n
    gx = gx * gamma / n
    if GROUPED:
        at = seg * (channels // group) + block
        mean = tl.zeros((CB,), tl.float32) + tl.load(means + at)
        rstd = tl.zeros((CB,), tl.float32) + tl.load(rstds + at)
        g = tl.sum(tl.where(live, g, 0.0), axis=0) / group
        gx = tl.sum(tl.where(live, gx, 0.0), axis=0) / group
    else:
        at = seg * channels + c
        mean = tl.load(means + at, mask=live, other=0.0)
        rstd = tl.load(rstds + at, mask=live, other=0.0)
    lift = -rstd * rstd * gx
    tl.store(slopes + seg * channels + c, gamma * rstd, mask=live)
    tl.store(lifts + seg * channels + c, lift, mask=live)
    tl.store(constants + seg * channels + c, -rstd * g - lift * mean, mask=live)


@triton.jit
def average_segments(
    means, variances, running_mean, running_var, channels, segments, larger, more, fewer, factor,
    P: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Running statistics towards the mean over segments of their means and unbiased variances.

    The first `larger` segments have `more` values a channel, the others `fewer`.
    """
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    live = c < channels
    lane = tl.arange(0, P)
    mean = tl.zeros((P, CB), tl.float32)
    var = tl.zeros((P, CB), tl.float32)
    for j in range(tl.cdiv(segments, P)):
        seg = j * P + lane
        n = tl.where(seg < larger, more, fewer).to(tl.float32)
        inside = (seg < segments)[:, None] & live[None, :]
        at = seg.to(tl.int64)[:, None] * channels + c[None, :]
        mean += tl.load(means + at, mask=inside, other=0.0)
        var += tl.load(variances + at, mask=inside, other=0.0) * (n / (n - 1))[:, None]
    update(running_mean, tl.sum(mean, axis=0) / segments, factor, c, live)
    update(running_var, tl.sum(var, axis=0) / segments, factor, c, live)
