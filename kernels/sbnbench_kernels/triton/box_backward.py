"""Launches of the box family's backward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sbnbench_kernels.samplers import Elements, Sample
from sbnbench_kernels.triton import heuristics
from sbnbench_kernels.triton.box_launch import (
    KIND,
    MODE,
    NO_FUSION,
    BoxArguments,
    Fusion,
    box_arguments,
    everything,
    order,
)
from sbnbench_kernels.triton.kernels import box, elementwise, finish, fused
from sbnbench_kernels.triton.launching import launch
from sbnbench_kernels.triton.layout import Layout


class Given(NamedTuple):
    """What a backward works from. `y` is there where a ReLU follows a residual."""

    x: Tensor
    dy: Tensor
    y: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    rstd: Tensor


class Gradients(NamedTuple):
    dx: Tensor
    dweight: Tensor | None
    dbias: Tensor | None
    dresidual: Tensor | None


def backward(given: Given, layout: Layout, sample: Sample, mode: str, fusion: Fusion) -> Gradients:
    """dx, dγ, db of a forward with the statistics of `sample`; with an empty one, of constants."""
    x, weight, bias = given.x, given.weight, given.bias
    whole = any(s.is_whole(layout.rows) for s in sample)
    if not sample:
        mode = "detached"
    elif whole and mode == "sampled":
        mode = "exact"
    out = Gradients(
        torch.empty_like(x),
        None if weight is None else torch.empty_like(weight),
        None if bias is None else torch.empty_like(bias),
        torch.empty_like(x) if fusion.residual and fusion.relu else None,
    )
    if mode == "detached":
        _detached(given, layout, out, fusion)
    elif not _fused(given, layout, sample, mode, whole, out, fusion):
        _split(given, layout, sample, mode, whole, out, fusion)
    if fusion.residual and not fusion.relu:
        return out._replace(dresidual=given.dy)
    return out


def gradient_tables(
    given: Given, layout: Layout, b: BoxArguments, fusion: Fusion = NO_FUSION,
    out: Gradients | None = None, seg_len: int | None = None, group: int = 1,
) -> tuple[Tensor, heuristics.ReduceLaunch]:  # fmt: skip
    """Σ dy and Σ dy·x̂ (2, parts, C); writes dx = dy·γ/σ (and dresidual) where `out` is given.

    With `seg_len`, segments of so many values a channel have their own statistics, which `group`
    channels share.
    """
    x = given.x
    dx, dresidual = (out.dx, out.dresidual) if out else (None, None)
    segments = math.ceil(b.total / seg_len) if seg_len else 1
    cut = heuristics.reduce_launch(
        layout, seg_len or b.total, segments, scattered=b.kind != KIND["whole"],
        sums=3 if fusion.relu else 2,  # whether it was open
    )  # fmt: skip
    parts = segments * cut.subs
    table = torch.empty((2, parts, layout.channels), dtype=torch.float32, device=x.device)
    blocks = math.ceil(layout.channels / cut.channels)
    launch(
        box.box_gradients, parts * blocks, cut.num_warps, x, given.dy, given.y, dx, dresidual,
        b.place, given.mean, given.rstd, given.weight, given.bias, table[0], table[1],
        total=b.total, seg_len=seg_len or b.total, subs=cut.subs, group=group, sub_len=cut.sub_len,
        **b.located(), **order(layout), SEGMENTED=seg_len is not None,
        WEIGHT=given.weight is not None, BIAS=given.bias is not None, RELU=fusion.relu,
        Y=given.y is not None, WRITE=dx is not None, DRESIDUAL=dresidual is not None, E=cut.values,
        CB=cut.channels,
    )  # fmt: skip
    return table, cut


def _fused(
    given: Given, layout: Layout, sample: Sample, mode: str, whole: bool, out: Gradients,
    fusion: Fusion,
) -> bool:  # fmt: skip
    """The one-launch backward where it applies."""
    located = mode == "exact" and not whole
    cut = heuristics.fused_launch(
        layout, layout.rows * layout.map_size, False, located, extra=len(sample) == 2
    )
    b = box_arguments(sample[0], layout)
    if cut is None or (mode == "exact" and b.kind == KIND["gather"]):
        return False
    other = box_arguments(sample[-1], layout) if len(sample) == 2 else b
    omega, extent, other_omega, other_extent = _shares(sample, mode)
    launch(
        fused.fused_backward, math.ceil(layout.channels / cut.channels), cut.num_warps, given.x,
        given.dy, given.y, out.dx, out.dresidual, b.place, given.mean, given.rstd, given.weight,
        given.bias, out.dweight, out.dbias, rows=layout.rows, seg_rows=0, total=b.total,
        patch_d=b.patch_d, omega=omega, extent=extent, other_start=other.start,
        other_total=other.total, other_omega=other_omega, other_extent=other_extent, **b.located(),
        **order(layout), MODE=MODE[mode], PARTIAL=not whole, MIXED=len(sample) == 2,
        SEGMENTED=False, SUMS=False, WEIGHT=given.weight is not None, BIAS=given.bias is not None,
        RELU=fusion.relu, READ_Y=given.y is not None, DRESIDUAL=out.dresidual is not None,
        E=cut.values, EB=cut.box_values(b.total, b.kind != KIND["whole"]), CB=cut.channels,
    )  # fmt: skip
    return True


def _shares(sample: Sample, mode: str) -> tuple[float, float, float, float]:
    """ω and (in `sampled`) the extent of the first and the second share."""
    first, other = sample[0], sample[-1]
    omega, other_omega = first.weight / first.size, other.weight / other.size
    if mode == "exact":
        return omega, 1.0, other_omega, 0.0
    return omega, first.stands_for / first.size, other_omega, other.stands_for / other.size


def _split(
    given: Given, layout: Layout, sample: Sample, mode: str, whole: bool, out: Gradients,
    fusion: Fusion,
) -> None:  # fmt: skip
    """Sums into tables, their merging, and a pass that writes dx."""
    x, channels = given.x, layout.channels
    boxes = [box_arguments(s, layout) for s in sample]
    if mode == "sampled":
        tables = [gradient_tables(given, layout, b, fusion)[0] for b in boxes]
    else:
        tables = [gradient_tables(given, layout, everything(layout), fusion)[0]]
    table, other = tables[0], tables[-1]
    omega, extent, other_omega, other_extent = _shares(sample, mode)
    coefficients = torch.empty((4, channels), dtype=torch.float32, device=x.device)
    rows, block = heuristics.finish_launch(channels, max(table.shape[1], other.shape[1]))
    launch(
        finish.finish_gradients, math.ceil(channels / block), heuristics.warps(rows * block, 8),
        table[0], table[1], other[0], other[1], given.mean, given.rstd, given.weight, given.bias,
        out.dweight, out.dbias, *coefficients, channels, table.shape[1], other.shape[1], omega,
        other_omega, extent, other_extent, None, None, MODE=MODE[mode], MIXED=len(tables) == 2,
        WHOLE_BOX=whole, RENORM=False, WEIGHT=given.weight is not None, BIAS=given.bias is not None,
        P=rows, CB=block,
    )  # fmt: skip
    partial = mode == "exact" and not whole
    gathered = partial and isinstance(sample[0].part, Elements)
    dx_pass(
        given, layout, tuple(coefficients), out, fusion, boxes if partial and not gathered else [],
        omega, other_omega, linear=not gathered,
    )  # fmt: skip
    if gathered:
        slope, lift, constant, _ = coefficients
        cut = heuristics.reduce_launch(layout, boxes[0].total, scattered=True)
        grid = math.ceil(boxes[0].total / cut.values) * math.ceil(channels / cut.channels)
        launch(
            box.box_scatter, grid, cut.num_warps, x, given.dy, given.y, out.dx, boxes[0].place,
            slope, lift, constant, omega=omega, total=boxes[0].total, mean=given.mean,
            rstd=given.rstd, weight=given.weight, bias=given.bias, **order(layout),
            WEIGHT=given.weight is not None, BIAS=given.bias is not None, RELU=fusion.relu,
            Y=given.y is not None, E=cut.values, CB=cut.channels,
        )  # fmt: skip


def dx_pass(
    given: Given, layout: Layout, coefficients: Sequence[Tensor | None], out: Gradients,
    fusion: Fusion = NO_FUSION, boxes: Sequence[BoxArguments] = (), omega: float = 1.0,
    other_omega: float = 0.0, linear: bool = True, seg_rows: int = 0,
    twist: tuple[Tensor, Tensor] | None = None,
) -> None:  # fmt: skip
    """dx from slope, lift, constant and shift: see elementwise.affine_gradient. Tables are (C,), or
    (segments, C) with `seg_rows`; `twist` is the factor of sgn(x − centre), and the centre."""
    slope, lift, constant, shift = coefficients
    p = heuristics.pass_launch(layout)
    b = boxes[0] if boxes else everything(layout)
    other = boxes[-1] if len(boxes) == 2 else b
    launch(
        elementwise.affine_gradient, p.programs(layout), p.num_warps, given.x, given.dy, given.y,
        out.dx, out.dresidual, b.place, slope, lift, constant, shift, *(twist or (None, None)),
        layout.numel, seg_rows=seg_rows, start=b.start, rows=b.rows, index_rows=b.index_rows,
        index_dims=b.index_dims, map_h=b.map_h, map_w=b.map_w, patch_d=b.patch_d, patch_h=b.patch_h,
        patch_w=b.patch_w, omega=omega, other_start=other.start, other_rows=other.rows,
        other_omega=other_omega, **order(layout), SEGMENTED=seg_rows > 0, MODE=p.mode,
        RELU=fusion.relu, READ_Y=given.y is not None, DRESIDUAL=out.dresidual is not None,
        LINEAR=linear, PARTIAL=bool(boxes), OTHER=len(boxes) == 2, TWIST=twist is not None,
        KIND=b.kind, NDIM=b.ndim, EVEN=p.even, R=p.vectors, V=p.width,
    )  # fmt: skip


def _detached(given: Given, layout: Layout, out: Gradients, fusion: Fusion) -> None:
    """One pass reads x and dy, and gives dx and the sums that are dγ and db."""
    table, _ = gradient_tables(given, layout, everything(layout), fusion, out)
    add_columns(table, out.dweight, out.dbias)


def add_columns(table: Tensor, dweight: Tensor | None, dbias: Tensor | None) -> None:
    """dγ and db from the tables of Σ dy and Σ dy·x̂ (2, parts, C)."""
    if dweight is None and dbias is None:
        return
    _, parts, channels = table.shape
    rows, block = heuristics.finish_launch(channels, parts)
    launch(
        finish.add_columns, math.ceil(channels / block), heuristics.warps(rows * block, 8),
        table[1], table[0], dweight, dbias, channels, parts, HAS_A=dweight is not None,
        HAS_B=dbias is not None, P=rows, CB=block,
    )  # fmt: skip
