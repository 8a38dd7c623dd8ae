"""Passes over whole tensors: y = a·x + b, and dx = a·dy + b·x + d.

A tile is [R, V]: R vectors of V values, 16 bytes each, so that a thread moves one vector with one
instruction. Coefficients belong to a channel (or to a channel of a segment of rows). How they are
found keeps the wide accesses:

PLANE   a program lies in one map: its coefficients are scalars.
VECTOR  a vector lies in one map (V divides the map's size), or with channels last in one run of
        channels (V divides C): found once a vector.
else    found once a value; the vectors of x, y and dy stay whole.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import member

PLANE = tl.constexpr(0)
VECTOR = tl.constexpr(1)
SINGLE = tl.constexpr(2)


@triton.jit
def addresses(
    numel, outer, inner_units, CHANNELS_LAST: tl.constexpr, MODE: tl.constexpr, EVEN: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, R: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Offsets [R, V] of a tile, which of them exist, and row, channel and map position of each.

    Row and channel have the shape in which they differ: () for PLANE, else [R, 1] or [R, V], as
    has the last result, which says where they exist. EVEN: V divides numel. WIDE:
    offsets need 64 bits.
    """
    inner = inner_units * UNIT
    lane = (tl.arange(0, R) * V)[:, None]
    within = tl.arange(0, V)[None, :]
    pid = tl.program_id(0)
    if MODE == PLANE:
        chunks = tl.cdiv(inner, R * V)
        plane = pid // chunks
        k = pid % chunks * (R * V) + lane + within
        base = plane.to(tl.int64) if WIDE else plane
        at = base * inner + k
        inside = k < inner
        live = plane >= 0
        row = plane // outer
        c = plane % outer
    else:
        if EVEN:
            numel = tl.multiple_of(numel, V)
        # Where 64-bit divisions are needed, once a program; the lanes divide in 32 bits.
        first = (pid.to(tl.int64) if WIDE else pid) * (R * V)
        at = first + (lane + within)
        inside = at < numel
        if CHANNELS_LAST:
            sample = inner * outer
            first_row = first // sample
            t = (first % sample).to(tl.int32) + lane
        else:
            first_row = first // inner // outer
            first_plane = (first // inner % outer).to(tl.int32)
            t = (first % inner).to(tl.int32) + lane
        if MODE == SINGLE:
            t = t + within
            live = inside
        else:
            live = first + lane < numel
        if CHANNELS_LAST:
            row = first_row.to(tl.int32) + t // sample
            t = t % sample
            k = t // inner
            c = t % inner
            if MODE == VECTOR:
                # Known to the compiler of the dividend, but lost in the remainder.
                c = tl.multiple_of(c, (V, V)) + within
        else:
            plane = first_plane + t // inner
            k = t % inner
            row = first_row.to(tl.int32) + plane // outer
            c = plane % outer
            if MODE == VECTOR:
                k = k + within
    return at, inside, row, c, k, live


@triton.jit
def coefficient(table, entry, live, MODE: tl.constexpr):
    """Entries of a table of coefficients as float32."""
    if MODE == PLANE:
        value = tl.load(table + entry)
    else:
        value = tl.load(table + entry, mask=live, other=0.0)
    return value.to(tl.float32)


@triton.jit
def affine(
    x, residual, y, scales, shifts, numel, outer, inner_units, seg_rows,
    CHANNELS_LAST: tl.constexpr, SEGMENTED: tl.constexpr, MODE: tl.constexpr, RELU: tl.constexpr,
    RESIDUAL: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
    R: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """y = scale·x + shift + residual, behind a ReLU where there is one.

    SEGMENTED: tables are (segments, C), else (C,).
    """
    at, inside, row, c, _, live = addresses(
        numel, outer, inner_units, CHANNELS_LAST, MODE, EVEN, WIDE, UNIT, R, V
    )
    entry = c
    if SEGMENTED:
        entry = row // seg_rows * (inner_units * UNIT if CHANNELS_LAST else outer) + c
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    value = value * coefficient(scales, entry, live, MODE)
    value += coefficient(shifts, entry, live, MODE)
    if RESIDUAL:
        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        value = tl.maximum(value, 0.0)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["start", "other_start"], do_not_specialize_on_alignment=["index"])
def affine_gradient(
    x, dy, y, dx, dresidual, index, slopes, lifts, constants, shifts, twists, centres, numel, outer,
    inner_units, seg_rows, start, rows, index_rows, index_dims, map_h, map_w, patch_d, patch_h,
    patch_w, omega, other_start, other_rows, other_omega, CHANNELS_LAST: tl.constexpr,
    SEGMENTED: tl.constexpr, MODE: tl.constexpr, RELU: tl.constexpr, READ_Y: tl.constexpr,
    DRESIDUAL: tl.constexpr, LINEAR: tl.constexpr, PARTIAL: tl.constexpr, OTHER: tl.constexpr,
    TWIST: tl.constexpr, KIND: tl.constexpr, NDIM: tl.constexpr, EVEN: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, R: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """dx = slope·g + ω·(lift·x + constant) + twist·sgn(x − centre), g = dy behind the ReLU.

    ω is 1, or with PARTIAL the weight of the element's share of the sample: `omega` in the box,
    `other_omega` in the rows from `other_start` (OTHER), 0 elsewhere. Without LINEAR the middle
    term is absent. What entered the ReLU is recomputed as slope·x + shift; with READ_Y, for
    a residual, its output is read. DRESIDUAL also writes g, the residual's gradient.
    """
    at, inside, row, c, k, live = addresses(
        numel, outer, inner_units, CHANNELS_LAST, MODE, EVEN, WIDE, UNIT, R, V
    )
    entry = c
    if SEGMENTED:
        entry = row // seg_rows * (inner_units * UNIT if CHANNELS_LAST else outer) + c
    g = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    slope = coefficient(slopes, entry, live, MODE)
    if LINEAR or TWIST or (RELU and not READ_Y):
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        if READ_Y:
            before = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        else:
            before = value * slope + coefficient(shifts, entry, live, MODE)
        g = tl.where(before > 0, g, 0.0)
    if DRESIDUAL:
        tl.store(dresidual + at, g.to(dresidual.dtype.element_ty), mask=inside)
    result = g * slope
    if LINEAR:
        linear = value * coefficient(lifts, entry, live, MODE)
        linear += coefficient(constants, entry, live, MODE)
        if PARTIAL:
            here = member(
                row, k, start, rows, index, index_rows, index_dims, map_h, map_w, patch_d, patch_h,
                patch_w, KIND, NDIM,
            )  # fmt: skip
            weight = tl.where(here, omega, 0.0)
            if OTHER:
                other = (row >= other_start) & (row < other_start + other_rows)
                weight = weight + tl.where(other, other_omega, 0.0)
            linear = linear * weight
        result += linear
    if TWIST:
        away = value - coefficient(centres, entry, live, MODE)
        sign = tl.where(away > 0, 1.0, tl.where(away < 0, -1.0, 0.0))
        result += sign * coefficient(twists, entry, live, MODE)
    tl.store(dx + at, result.to(dx.dtype.element_ty), mask=inside)
