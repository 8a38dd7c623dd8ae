"""Launches of the box kernels: from tensors and a sample to statistics, y, dx, dγ and db."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sbnbench_kernels.samplers import Elements, Sample, Share
from sbnbench_kernels.triton import heuristics
from sbnbench_kernels.triton.kernels import box, elementwise, finish, fused
from sbnbench_kernels.triton.launching import launch
from sbnbench_kernels.triton.layout import Layout, like

KIND = {"whole": 0, "patch": 1, "gather": 2}
MODE = {"exact": 0, "sampled": 1, "detached": 2}


class Fusion(NamedTuple):
    """What is fused into the pass that writes y: a ReLU, and the addition of a residual."""

    relu: bool = False
    residual: bool = False


NO_FUSION = Fusion()


class Statistics(NamedTuple):
    """(C,) each, in float32: μ, biased σ², 1/√(σ²+ε)."""

    mean: Tensor
    var: Tensor
    rstd: Tensor


class BoxArguments(NamedTuple):
    """A share of the sample as kernels take it."""

    place: Tensor | None
    """Corners or positions."""
    start: int
    total: int
    rows: int
    index_rows: int
    index_dims: int
    period: int
    map_h: int
    map_w: int
    patch_d: int
    patch_h: int
    patch_w: int
    kind: int
    ndim: int

    def located(self) -> dict[str, Any]:
        """The arguments that say where the share's values lie."""
        return {
            "start": self.start,
            "index_rows": self.index_rows,
            "index_dims": self.index_dims,
            "period": self.period,
            "map_h": self.map_h,
            "map_w": self.map_w,
            "patch_h": self.patch_h,
            "patch_w": self.patch_w,
            "KIND": self.kind,
            "NDIM": self.ndim,
        }


def box_arguments(share: Share, layout: Layout) -> BoxArguments:
    """For whole rows, patches with corners, or a list of positions."""
    map_d, map_h, map_w = (1, 1, 1, *layout.spatial)[-3:]
    size = layout.map_size
    part = share.part
    if isinstance(part, Elements):
        total = part.positions.numel()
        return BoxArguments(
            part.positions, 0, total, 0, 0, 0, size, map_h, map_w, 1, 1, 1, KIND["gather"], 1
        )
    if part.corners is None:
        total = part.count * size
        return BoxArguments(
            None, part.start, total, part.count, 0, 0, size, map_h, map_w, map_d, map_h, map_w,
            KIND["whole"], 1,
        )  # fmt: skip
    patch_d, patch_h, patch_w = (1, 1, 1, *part.patch)[-3:]
    return BoxArguments(
        part.corners, part.start, share.size, part.count, part.corners.stride(0),
        part.corners.stride(1), math.prod(part.patch), map_h, map_w, patch_d, patch_h, patch_w,
        KIND["patch"], len(part.patch),
    )  # fmt: skip


def everything(layout: Layout) -> BoxArguments:
    """All rows."""
    map_d, map_h, map_w = (1, 1, 1, *layout.spatial)[-3:]
    size = layout.map_size
    return BoxArguments(
        None, 0, layout.rows * size, layout.rows, 0, 0, size, map_h, map_w, map_d, map_h, map_w,
        KIND["whole"], 1,
    )  # fmt: skip


def order(layout: Layout) -> dict[str, Any]:
    """The arguments that say how the tensor lies."""
    return {
        "outer": layout.outer,
        "inner_units": layout.inner_units,
        "CHANNELS_LAST": layout.channels_last,
        "WIDE": layout.wide,
        "UNIT": layout.unit,
    }


def part_tables(
    x: Tensor, layout: Layout, b: BoxArguments, seg_len: int | None = None
) -> tuple[Tensor, heuristics.ReduceLaunch]:
    """Means and sums of squared deviations (2, parts, C) of a box's parts."""
    seg_len = seg_len or b.total
    segments = math.ceil(b.total / seg_len)
    cut = heuristics.reduce_launch(layout, seg_len, segments, b.kind != KIND["whole"])
    parts = segments * cut.subs
    table = torch.empty((2, parts, layout.channels), dtype=torch.float32, device=x.device)
    blocks = math.ceil(layout.channels / cut.channels)
    launch(
        box.box_moments, parts * blocks, cut.num_warps, x, b.place, table[0], table[1],
        total=b.total, seg_len=seg_len, subs=cut.subs, sub_len=cut.sub_len, **b.located(),
        **order(layout), E=cut.values, CB=cut.channels,
    )  # fmt: skip
    return table, cut


def sample_statistics(
    x: Tensor,
    layout: Layout,
    sample: Sample,
    eps: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running: tuple[Tensor, Tensor] | None = None,
    factor: float = 0.0,
    correction: float = 1.0,
) -> tuple[Statistics, Tensor, Tensor]:
    """Statistics of a sample, and the scale and shift (C,) of the affine map they make."""
    first = box_arguments(sample[0], layout)
    table, cut = part_tables(x, layout, first)
    other_table, other_cut, other, other_weight = table, cut, first, 0.0
    mixed = len(sample) == 2
    if mixed:
        other = box_arguments(sample[1], layout)
        other_table, other_cut = part_tables(x, layout, other)
        other_weight = sample[1].weight
    out = torch.empty((5, layout.channels), dtype=torch.float32, device=x.device)
    rows, block = heuristics.finish_launch(layout.channels, max(len(table[0]), len(other_table[0])))
    launch(
        finish.finish_moments, math.ceil(layout.channels / block),
        heuristics.warps(rows * block, 8), table[0], table[1], other_table[0], other_table[1],
        weight, bias, running[0] if running else None, running[1] if running else None, *out,
        layout.channels, table.shape[1], first.total, cut.sub_len, other_table.shape[1],
        other.total, other_cut.sub_len, other_weight, eps, factor, correction, MIXED=mixed,
        WEIGHT=weight is not None, BIAS=bias is not None, RUNNING=running is not None, P=rows,
        CB=block,
    )  # fmt: skip
    return Statistics(out[0], out[1], out[2]), out[3], out[4]


def affine_pass(
    x: Tensor,
    layout: Layout,
    scale: Tensor,
    shift: Tensor,
    fusion: Fusion = NO_FUSION,
    residual: Tensor | None = None,
    seg_rows: int = 0,
    y: Tensor | None = None,
) -> Tensor:
    """y = act(scale·x + shift + residual), written to `y` where one is given; scale and shift are
    (C,), or (segments, C) with seg_rows."""
    y = torch.empty_like(x) if y is None else y
    p = heuristics.pass_launch(layout)
    launch(
        elementwise.affine, p.programs(layout), p.num_warps, x, residual, y, scale, shift,
        layout.numel, seg_rows=seg_rows, **order(layout), SEGMENTED=seg_rows > 0, MODE=p.mode,
        RELU=fusion.relu, RESIDUAL=residual is not None, EVEN=p.even, R=p.vectors, V=p.width,
    )  # fmt: skip
    return y


def forward(
    x: Tensor,
    layout: Layout,
    weight: Tensor | None,
    bias: Tensor | None,
    running: tuple[Tensor, Tensor] | None,
    sample: Sample,
    eps: float,
    factor: float,
    correction: float,
    fusion: Fusion,
    residual: Tensor | None,
) -> tuple[Tensor, Statistics]:
    """y and the statistics of a training forward; updates `running` in place."""
    if fusion.residual and residual is not None:
        residual = like(residual, layout)
    whole = sample[0].is_whole(layout.rows)
    cut = heuristics.fused_launch(
        layout, layout.rows * layout.map_size, whole, extra=residual is not None
    )
    if cut is None:
        stats, scale, shift = sample_statistics(
            x, layout, sample, eps, weight, bias, running, factor, correction
        )
        return affine_pass(x, layout, scale, shift, fusion, residual), stats
    y = torch.empty_like(x)
    out = torch.empty((3, layout.channels), dtype=torch.float32, device=x.device)
    b = box_arguments(sample[0], layout)
    other = box_arguments(sample[1], layout) if len(sample) == 2 else b
    launch(
        fused.fused_forward, math.ceil(layout.channels / cut.channels), cut.num_warps, x, residual,
        y, b.place, weight, bias, running[0] if running else None, running[1] if running else None,
        *out, rows=layout.rows, seg_rows=0, total=b.total, other_start=other.start,
        other_total=other.total, other_weight=sample[-1].weight, eps=eps, factor=factor,
        correction=correction, group=1, plane=1, **b.located(), **order(layout),
        MIXED=len(sample) == 2, SEGMENTED=False, GROUPED=False, RESIDENT=cut.resident,
        WEIGHT=weight is not None, BIAS=bias is not None, RUNNING=running is not None,
        RELU=fusion.relu, RESIDUAL=residual is not None, E=cut.values,
        EB=cut.box_values(b.total, b.kind != KIND["whole"]), CB=cut.channels,
    )  # fmt: skip
    return y, Statistics(*out)


def given_statistics(
    x: Tensor,
    layout: Layout,
    weight: Tensor | None,
    bias: Tensor | None,
    running: tuple[Tensor, Tensor],
    eps: float,
) -> tuple[Statistics, Tensor, Tensor]:
    """The running statistics, with scale and shift (C,)."""
    out = torch.empty((4, layout.channels), dtype=torch.float32, device=x.device)
    block = min(heuristics.power_of_two(layout.channels), 128)
    launch(
        finish.given_moments, math.ceil(layout.channels / block), 1, *running, weight, bias, *out,
        layout.channels, eps, WEIGHT=weight is not None, BIAS=bias is not None, CB=block,
    )  # fmt: skip
    return Statistics(out[0], running[1], out[1]), out[2], out[3]
