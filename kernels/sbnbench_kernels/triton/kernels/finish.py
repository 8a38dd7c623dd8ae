"""From tables of parts to coefficients, for normalizers with one mean and deviation a channel."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import SAMPLED, merge_lanes


@triton.jit
def merge_parts(means, m2s, c, live, channels, parts, total, sub_len, P: tl.constexpr):
    """Mean and biased variance [CB] of a box from its table of parts.

    Every part but the last holds `sub_len` values. Lanes merge rows of the table in a fixed order.
    """
    lane = tl.arange(0, P)
    total = total.to(tl.int64)
    counts = tl.zeros((P,), tl.int64)
    mean = tl.zeros((P, c.shape[0]), tl.float32)
    m2 = tl.zeros((P, c.shape[0]), tl.float32)
    for j in range(tl.cdiv(parts, P)):
        part = (j * P + lane).to(tl.int64)
        n = tl.minimum(tl.maximum(total - part * sub_len, 0), sub_len)
        inside = (part < parts)[:, None] & live[None, :]
        at = part[:, None] * channels + c[None, :]
        other = tl.load(means + at, mask=inside, other=0.0)
        away = other - mean
        share = (n / tl.maximum(counts + n, 1)).to(tl.float32)[:, None]
        mean = tl.where(inside, mean + away * share, mean)
        m2 += tl.load(m2s + at, mask=inside, other=0.0)
        m2 += tl.where(inside, away * away * counts.to(tl.float32)[:, None] * share, 0.0)
        counts += n
    mean, m2 = merge_lanes(mean, m2, counts, total)
    return mean, m2 / total


@triton.jit
def mixed(mean, var, other_mean, other_var, other_weight):
    """Moments of a mixture: weight 1−w on the first, w on the other."""
    away = other_mean - mean
    var = var + other_weight * (other_var - var)
    return mean + other_weight * away, var + other_weight * (1 - other_weight) * away * away


@triton.jit
def update(running, value, factor, c, live):
    """new = old + factor·(value − old), in place."""
    old = tl.load(running + c, mask=live, other=0.0)
    new = old + factor * (value - old)
    tl.store(running + c, new.to(running.dtype.element_ty), mask=live)


@triton.jit
def scale_shift(mean, rstd, weight, bias, c, live, WEIGHT: tl.constexpr, BIAS: tl.constexpr):
    """Scale γ/σ and shift b − μγ/σ of channels c."""
    scale = rstd
    if WEIGHT:
        scale = rstd * tl.load(weight + c, mask=live, other=0.0).to(tl.float32)
    shift = -mean * scale
    if BIAS:
        shift += tl.load(bias + c, mask=live, other=0.0).to(tl.float32)
    return scale, shift


@triton.jit
def coefficients(
    mean, var, weight, bias, running_mean, running_var, means, rstds, scales, shifts, c, live, eps,
    factor, correction, WEIGHT: tl.constexpr, BIAS: tl.constexpr, RUNNING: tl.constexpr,
    STORE: tl.constexpr,
):  # fmt: skip
    """scale γ/σ and shift b − μγ/σ; updates and stores what a training forward leaves behind."""
    rstd = tl.rsqrt(var + eps)
    scale, shift = scale_shift(mean, rstd, weight, bias, c, live, WEIGHT, BIAS)
    if RUNNING:
        update(running_mean, mean, factor, c, live)
        update(running_var, var * correction, factor, c, live)
    tl.store(means + c, mean, mask=live)
    tl.store(rstds + c, rstd, mask=live)
    if STORE:
        tl.store(scales + c, scale, mask=live)
        tl.store(shifts + c, shift, mask=live)
    return scale, shift


@triton.jit
def finish_moments(
    part_means, part_m2s, other_part_means, other_part_m2s, weight, bias, running_mean, running_var,
    means, variances, rstds, scales, shifts, channels, parts, total, sub_len, other_parts,
    other_total, other_sub_len, other_weight, eps, factor, correction, MIXED: tl.constexpr,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, RUNNING: tl.constexpr, P: tl.constexpr,
    CB: tl.constexpr,
):  # fmt: skip
    """Merges the parts of one or two boxes; running statistics and coefficients from them."""
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    live = c < channels
    mean, var = merge_parts(part_means, part_m2s, c, live, channels, parts, total, sub_len, P)
    if MIXED:
        other_mean, other_var = merge_parts(
            other_part_means, other_part_m2s, c, live, channels, other_parts, other_total,
            other_sub_len, P,
        )  # fmt: skip
        mean, var = mixed(mean, var, other_mean, other_var, other_weight)
    tl.store(variances + c, var, mask=live)
    coefficients(
        mean, var, weight, bias, running_mean, running_var, means, rstds, scales, shifts, c, live,
        eps, factor, correction, WEIGHT, BIAS, RUNNING, True,
    )  # fmt: skip


@triton.jit
def given_moments(
    running_mean, running_var, weight, bias, means, rstds, scales, shifts, channels, eps,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Coefficients from running statistics, for inference."""
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    live = c < channels
    mean = tl.load(running_mean + c, mask=live, other=0.0).to(tl.float32)
    var = tl.load(running_var + c, mask=live, other=1.0).to(tl.float32)
    coefficients(
        mean, var, weight, bias, running_mean, running_var, means, rstds, scales, shifts, c, live,
        eps, 0.0, 1.0, WEIGHT, BIAS, False, True,
    )  # fmt: skip


@triton.jit
def add_parts(table, c, live, channels, parts, P: tl.constexpr):
    """Σ over the rows of a table of parts, in a fixed order."""
    lane = tl.arange(0, P)
    total = tl.zeros((P, c.shape[0]), tl.float32)
    for j in range(tl.cdiv(parts, P)):
        part = (j * P + lane).to(tl.int64)
        inside = (part < parts)[:, None] & live[None, :]
        total += tl.load(table + part[:, None] * channels + c[None, :], mask=inside, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def slopes(mean, rstd, gamma, g, gx):
    """dx = slope·dy + lift·x + constant = γ/σ·(dy − g − x̂·gx)."""
    slope = gamma * rstd
    lift = -slope * gx * rstd
    return slope, lift, -slope * g - lift * mean


@triton.jit
def finish_gradients(
    sums_g, sums_gx, other_sums_g, other_sums_gx, mean, rstd, weight, bias, dweight, dbias,
    slope_out, lift_out, constant_out, shift_out, channels, parts, other_parts, omega, other_omega,
    extent, other_extent, rs, ds, MODE: tl.constexpr, MIXED: tl.constexpr, WHOLE_BOX: tl.constexpr,
    RENORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, P: tl.constexpr,
    CB: tl.constexpr,
):  # fmt: skip
    """dγ, db, dx's coefficients and the forward's shift, from gradient sums of one or two shares.

    `omega` weighs each value of a share. In `sampled` the sums are the sample's: means come from
    ω, and dγ, db from `extent`, what a share stands for over what it holds. In `exact` they are
    everything's; ω is applied here where the sample is everything (WHOLE_BOX), else by the pass
    that knows which elements are in it. RENORM: x̂ was (x−μ)/σ·r + d.
    """
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    live = c < channels
    g = add_parts(sums_g, c, live, channels, parts, P)
    gx = add_parts(sums_gx, c, live, channels, parts, P)
    db = g * extent
    dw = gx * extent
    if MODE == SAMPLED or WHOLE_BOX:
        g = g * omega
        gx = gx * omega
    if MIXED:
        other_g = add_parts(other_sums_g, c, live, channels, other_parts, P)
        other_gx = add_parts(other_sums_gx, c, live, channels, other_parts, P)
        db += other_g * other_extent
        dw += other_gx * other_extent
        g += other_g * other_omega
        gx += other_gx * other_omega
    m = tl.load(mean + c, mask=live, other=0.0)
    r = tl.load(rstd + c, mask=live, other=0.0)
    gamma = tl.full(m.shape, 1.0, tl.float32)
    renorm = gamma
    if RENORM:
        renorm = tl.load(rs + c, mask=live, other=0.0)
        dw = dw * renorm + db * tl.load(ds + c, mask=live, other=0.0)
    if WEIGHT:
        gamma = tl.load(weight + c, mask=live, other=0.0).to(tl.float32)
        tl.store(dweight + c, dw.to(dweight.dtype.element_ty), mask=live)
    if BIAS:
        tl.store(dbias + c, db.to(dbias.dtype.element_ty), mask=live)
    slope, lift, constant = slopes(m, r, gamma * renorm, g, gx)
    _, shift = scale_shift(m, r, weight, bias, c, live, WEIGHT, BIAS)
    tl.store(shift_out + c, shift, mask=live)
    tl.store(slope_out + c, slope, mask=live)
    tl.store(lift_out + c, lift, mask=live)
    tl.store(constant_out + c, constant, mask=live)


@triton.jit
def add_columns(
    table_a, table_b, out_a, out_b, channels, parts, HAS_A: tl.constexpr, HAS_B: tl.constexpr,
    P: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """Σ over the parts of two tables: dγ and db where nothing else is wanted."""
    c = tl.program_id(0) * CB + tl.arange(0, CB)
    live = c < channels
    if HAS_A:
        a = add_parts(table_a, c, live, channels, parts, P)
        tl.store(out_a + c, a.to(out_a.dtype.element_ty), mask=live)
    if HAS_B:
        b = add_parts(table_b, c, live, channels, parts, P)
        tl.store(out_b + c, b.to(out_b.dtype.element_ty), mask=live)
