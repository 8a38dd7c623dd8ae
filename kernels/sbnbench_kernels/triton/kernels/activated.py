"""Normalizers that bring their activation: frn with its thresholded unit, evonorm-s0 and -b0.

Tables: `each` (N, C) is γ/√(mean x²+ε) for frn, γ/σ for s0, the map's σ for b0; (C,) are the bias
b, `knee` (τ for frn, v for the others), γ and for b0 the batch's σ.

frn: y = max(each·x + b, τ);  s0: y = each·x·sigmoid(vx) + b;
b0: y = γx/max(σ_batch, vx + each) + b
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from .box import part_of
from .elementwise import addresses, coefficient
from .tiles import locate, offsets, origin

FRN = tl.constexpr(0)
S0 = tl.constexpr(1)
B0 = tl.constexpr(2)


@triton.jit
def output(x, each, bias, knee, gamma, batch, KIND: tl.constexpr):
    """y of values x."""
    if KIND == FRN:
        y = tl.maximum(x * each + bias, knee)
    elif KIND == S0:
        y = x * tl.sigmoid(knee * x) * each + bias
    else:
        y = gamma * x / tl.maximum(batch, knee * x + each) + bias
    return y


@triton.jit
def direct(x, dy, each, bias, knee, gamma, batch, KIND: tl.constexpr):
    """dx with the statistics held constant."""
    if KIND == FRN:
        dx = tl.where(x * each + bias > knee, dy * each, 0.0)
    elif KIND == S0:
        gate = tl.sigmoid(knee * x)
        dx = dy * each * (gate + knee * x * gate * (1 - gate))
    else:
        own = knee * x + each
        denominator = tl.maximum(batch, own)
        g = dy * gamma / denominator
        dx = g - tl.where(own > batch, knee * g * x / denominator, 0.0)
    return dx


@triton.jit
def contributions(x, dy, each, bias, knee, gamma, batch, KIND: tl.constexpr):
    """What is summed over each map: five numbers of every value.

    frn: dz, dz·x, dy behind the threshold.  s0: dy, dy·x·sigmoid, dy·x²·sigmoid′.
    b0: dy, dy·x/denominator, and of q = ∂L/∂denominator: q of the map's branch, q·x of it, q of the
    batch's branch.
    """
    zero = dy * 0.0
    if KIND == FRN:
        open_ = x * each + bias > knee
        dz = tl.where(open_, dy, 0.0)
        result = dz, dz * x, tl.where(open_, 0.0, dy), zero, zero
    elif KIND == S0:
        gate = tl.sigmoid(knee * x)
        result = dy, dy * x * gate, dy * x * x * gate * (1 - gate), zero, zero
    else:
        own = knee * x + each
        denominator = tl.maximum(batch, own)
        xhat = x / denominator
        q = -dy * gamma * xhat / denominator
        of_map = tl.where(own > batch, q, 0.0)
        result = dy, dy * xhat, of_map, of_map * x, q - of_map
    return result


@triton.jit
def activated_forward(
    x, y, eaches, biases, knees, gammas, batches, numel, outer, inner_units,
    CHANNELS_LAST: tl.constexpr, KIND: tl.constexpr, MODE: tl.constexpr, EVEN: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, R: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """y of the whole tensor."""
    at, inside, row, c, _, live = addresses(
        numel, outer, inner_units, CHANNELS_LAST, MODE, EVEN, WIDE, UNIT, R, V
    )
    entry = row * (inner_units * UNIT if CHANNELS_LAST else outer) + c
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    each = coefficient(eaches, entry, live, MODE)
    bias = coefficient(biases, c, live, MODE)
    knee = coefficient(knees, c, live, MODE)
    gamma = each
    batch = each
    if KIND == B0:
        gamma = coefficient(gammas, c, live, MODE)
        batch = coefficient(batches, c, live, MODE)
    value = output(value, each, bias, knee, gamma, batch, KIND)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def activated_gradient(
    x, dy, dx, eaches, biases, knees, gammas, batches, lifts, constants, numel, outer, inner_units,
    CHANNELS_LAST: tl.constexpr, KIND: tl.constexpr, MODE: tl.constexpr, EVEN: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, R: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """dx = what the constants' derivative gives + lift·x + constant, tables (N, C)."""
    at, inside, row, c, _, live = addresses(
        numel, outer, inner_units, CHANNELS_LAST, MODE, EVEN, WIDE, UNIT, R, V
    )
    entry = row * (inner_units * UNIT if CHANNELS_LAST else outer) + c
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    each = coefficient(eaches, entry, live, MODE)
    bias = coefficient(biases, c, live, MODE)
    knee = coefficient(knees, c, live, MODE)
    gamma = each
    batch = each
    if KIND == B0:
        gamma = coefficient(gammas, c, live, MODE)
        batch = coefficient(batches, c, live, MODE)
    result = direct(value, g, each, bias, knee, gamma, batch, KIND)
    result += value * coefficient(lifts, entry, live, MODE)
    result += coefficient(constants, entry, live, MODE)
    tl.store(dx + at, result.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def activated_sums(
    x, dy, eaches, biases, knees, gammas, batches, tables, outer, inner_units, total, seg_len, subs,
    sub_len, table, CHANNELS_LAST: tl.constexpr, KIND: tl.constexpr, WIDE: tl.constexpr,
    UNIT: tl.constexpr, E: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    """The sums over every part of every map, into tables (5, parts, C); `table` is one's size."""
    channels = inner_units * UNIT if CHANNELS_LAST else outer
    map_size = outer if CHANNELS_LAST else inner_units * UNIT
    E_UNIT: tl.constexpr = 1 if CHANNELS_LAST else UNIT
    blocks = tl.cdiv(channels, CB)
    part = tl.program_id(0) // blocks
    c = tl.program_id(0) % blocks * CB + tl.arange(0, CB)
    live = c < channels
    seg, first, n = part_of(part, total, seg_len, subs, sub_len, E_UNIT)
    first_row, rest = origin(first, map_size, 0, E_UNIT)
    each = tl.load(eaches + seg * channels + c, mask=live, other=1.0)[None, :]
    bias = tl.load(biases + c, mask=live, other=0.0)[None, :]
    knee = tl.load(knees + c, mask=live, other=0.0)[None, :]
    gamma = each
    batch = each
    if KIND == B0:
        gamma = tl.load(gammas + c, mask=live, other=0.0)[None, :]
        batch = tl.load(batches + c, mask=live, other=1.0)[None, :]
    sum0 = tl.zeros((E, CB), tl.float32)
    sum1 = tl.zeros((E, CB), tl.float32)
    sum2 = tl.zeros((E, CB), tl.float32)
    sum3 = tl.zeros((E, CB), tl.float32)
    sum4 = tl.zeros((E, CB), tl.float32)
    for j in range(tl.cdiv(n, E)):
        local = j * E + tl.arange(0, E)
        row, k = locate(
            local, n, first, first_row, rest, first, 0, 0, map_size, map_size, 1, 1, 1, 1, 0, 1,
            WIDE,
        )  # fmt: skip
        inside = (local < n)[:, None] & live[None, :]
        at = offsets(row, k, c, channels, map_size, CHANNELS_LAST)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        a0, a1, a2, a3, a4 = contributions(value, g, each, bias, knee, gamma, batch, KIND)
        sum0 += a0
        sum1 += a1
        sum2 += a2
        sum3 += a3
        sum4 += a4
    at = tables + part.to(tl.int64) * channels + c
    tl.store(at, tl.sum(sum0, axis=0), mask=live)
    tl.store(at + table, tl.sum(sum1, axis=0), mask=live)
    tl.store(at + 2 * table, tl.sum(sum2, axis=0), mask=live)
    if KIND == B0:
        tl.store(at + 3 * table, tl.sum(sum3, axis=0), mask=live)
        tl.store(at + 4 * table, tl.sum(sum4, axis=0), mask=live)
