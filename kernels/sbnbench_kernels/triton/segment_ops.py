"""Normalizers with statistics of segments of rows: gn, ln and in (a sample each), ghost.

Formulas, parameters and errors are the reference's (eager/grouped.py, eager/ghost.py). Where a
program can hold a group, or pass twice over it while it stays in the caches, the forward is one
launch; else a table of every map's moments, its merging, and an element-wise pass.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager import ghost, grouped
from sbnbench_kernels.running import momentum_of
from sbnbench_kernels.triton import box_launch, heuristics
from sbnbench_kernels.triton.box_backward import (
    Given,
    Gradients,
    add_columns,
    dx_pass,
    gradient_tables,
)
from sbnbench_kernels.triton.box_launch import Fusion, everything, order, part_tables
from sbnbench_kernels.triton.box_ops import running_pair
from sbnbench_kernels.triton.kernels import fused, segments
from sbnbench_kernels.triton.launching import launch
from sbnbench_kernels.triton.layout import Layout, check, dense, like


class Segments(NamedTuple):
    """How a tensor is cut: `rows` rows and `group` channels share statistics."""

    rows: int
    group: int


class Saved(NamedTuple):
    """What backward reads. mean, rstd: (segments, groups)."""

    x: Tensor
    layout: Layout
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    rstd: Tensor
    cut: Segments


def statistics_tables(layout: Layout, cut: Segments, device: torch.device) -> Tensor:
    """Room for mean, variance and 1/σ, (3, segments, groups)."""
    shape = (3, math.ceil(layout.rows / cut.rows), layout.channels // cut.group)
    return torch.empty(shape, dtype=torch.float32, device=device)


def forward(
    x: Tensor,
    layout: Layout,
    weight: Tensor | None,
    bias: Tensor | None,
    cut: Segments,
    eps: float,
    stats: Tensor,
    y: Tensor,
) -> None:
    """Writes statistics (3, segments, groups) and y."""
    if not _fused_forward(x, layout, weight, bias, cut, eps, stats, y):
        _split_forward(x, layout, weight, bias, cut, eps, stats, y)


def _fused_forward(
    x: Tensor, layout: Layout, weight: Tensor | None, bias: Tensor | None, cut: Segments,
    eps: float, stats: Tensor, y: Tensor,
) -> bool:  # fmt: skip
    grouped_ = cut.group > 1
    view = layout
    if grouped_ and layout.map_size > 1 and layout.channels_last:
        return False  # the channels of a group are not side by side with its positions
    if grouped_:
        # A group's maps are one after the other: as one larger map of one "channel".
        size = cut.group * layout.map_size
        view = Layout(layout.rows, layout.channels // cut.group, (size,), False, layout.itemsize)
    seg_len = cut.rows * view.map_size
    f = heuristics.fused_launch(view, seg_len, True)
    if f is None:
        return False
    blocks = math.ceil(view.channels / f.channels)
    b = everything(view)
    launch(
        fused.fused_forward, stats.shape[1] * blocks, f.num_warps, x, None, y, None, weight, bias,
        None, None, *stats, rows=view.rows, seg_rows=cut.rows, total=b.total, other_start=0,
        other_total=b.total, other_weight=0.0, eps=eps, factor=0.0, correction=1.0, group=cut.group,
        plane=layout.map_size, **b.located(), **order(view), MIXED=False, SEGMENTED=True,
        GROUPED=grouped_, RESIDENT=f.resident, WEIGHT=weight is not None, BIAS=bias is not None,
        RUNNING=False, RELU=False, RESIDUAL=False, E=f.values, EB=f.values, CB=f.channels,
    )  # fmt: skip
    return True


def _finish_blocks(channels: int, group: int, subs: int) -> tuple[int, int, int]:
    """(rows, channels, blocks) of the programs that finish a segment."""
    if group > 1:
        block = heuristics.power_of_two(group)
        return min(heuristics.power_of_two(subs), max(1, 1024 // block)), block, channels // group
    rows, block = heuristics.finish_launch(channels, subs)
    return rows, block, math.ceil(channels / block)


def _split_forward(
    x: Tensor, layout: Layout, weight: Tensor | None, bias: Tensor | None, cut: Segments,
    eps: float, stats: Tensor, y: Tensor,
) -> None:  # fmt: skip
    b = everything(layout)
    seg_len = cut.rows * layout.map_size
    table, parts = part_tables(x, layout, b, seg_len)
    count, channels = stats.shape[1], layout.channels
    scales = torch.empty((2, count, channels), dtype=torch.float32, device=x.device)
    rows, block, blocks = _finish_blocks(channels, cut.group, parts.subs)
    launch(
        segments.finish_segments, count * blocks, heuristics.warps(rows * block, 8), table[0],
        table[1], weight, bias, *stats, *scales, channels, cut.group, b.total, seg_len, parts.subs,
        parts.sub_len, eps, GROUPED=cut.group > 1, WEIGHT=weight is not None, BIAS=bias is not None,
        P=rows, CB=block,
    )  # fmt: skip
    box_launch.affine_pass(x, layout, scales[0], scales[1], seg_rows=cut.rows, y=y)


def backward(dy: Tensor, saved: Saved, dx: Tensor, sums: list[Tensor]) -> None:
    """Writes dx, and appends the tables that sum to db and dγ (2, parts, C)."""
    x, layout, weight, bias, mean, rstd, cut = saved
    given = Given(x, dy, None, weight, bias, mean, rstd)
    out = Gradients(dx, None, None, None)
    b = everything(layout)
    seg_len = cut.rows * layout.map_size
    table, parts = gradient_tables(given, layout, b, seg_len=seg_len, group=cut.group)
    sums.append(table)
    count, channels = mean.shape[0], layout.channels
    coefficients = torch.empty((3, count, channels), dtype=torch.float32, device=x.device)
    rows, block, blocks = _finish_blocks(channels, cut.group, parts.subs)
    launch(
        segments.finish_segment_gradients, count * blocks, heuristics.warps(rows * block, 8),
        table[0], table[1], mean, rstd, weight, *coefficients, channels, cut.group, b.total,
        seg_len, parts.subs, GROUPED=cut.group > 1, WEIGHT=weight is not None, P=rows, CB=block,
    )  # fmt: skip
    dx_pass(given, layout, (*coefficients, None), out, seg_rows=cut.rows)


def _fused_backward(dy: Tensor, saved: Saved, dx: Tensor, sums: list[Tensor]) -> bool:
    """One launch for dx, where a channel of a segment stands for itself."""
    x, layout, weight, bias, mean, rstd, cut = saved
    f = heuristics.fused_launch(layout, cut.rows * layout.map_size, False)
    if cut.group > 1 or f is None:
        return False
    table = torch.empty((2, *mean.shape), dtype=torch.float32, device=x.device)
    b = everything(layout)
    launch(
        fused.fused_backward, mean.shape[0] * math.ceil(layout.channels / f.channels), f.num_warps,
        x, dy, None, dx, None, None, mean, rstd, weight, bias, table[1], table[0], rows=layout.rows,
        seg_rows=cut.rows, total=b.total, patch_d=1, omega=0.0, extent=1.0, other_start=0,
        other_total=b.total, other_omega=0.0, other_extent=0.0, **b.located(), **order(layout),
        MODE=0, PARTIAL=False, MIXED=False, SEGMENTED=True, SUMS=True, WEIGHT=weight is not None,
        BIAS=bias is not None, RELU=False, READ_Y=False, DRESIDUAL=False, E=f.values, EB=f.values,
        CB=f.channels,
    )  # fmt: skip
    sums.append(table)
    return True


def gradients(
    dy: Tensor, pieces: list[tuple[slice, Saved]], weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """dx, dγ, db of rows that were normalized piece by piece."""
    dx = torch.empty_like(dy)
    sums: list[Tensor] = []
    for rows, saved in pieces:
        if not _fused_backward(dy[rows], saved, dx[rows], sums):
            backward(dy[rows], saved, dx[rows], sums)
    dweight = None if weight is None else torch.empty_like(weight)
    dbias = None if bias is None else torch.empty_like(bias)
    add_columns(sums[0] if len(sums) == 1 else torch.cat(sums, 1), dweight, dbias)
    return dx, dweight, dbias


class GroupNorm(grouped.GroupNorm):
    """`gn` on Triton; see eager.grouped.GroupNorm."""

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, Any]:
        check(x)
        x, layout = dense(x)
        cut = Segments(1, layout.channels // self._groups(x))
        if cut.group > 1 and layout.map_size == 1:
            layout = dataclasses.replace(layout, channels_last=False)
        stats, y = statistics_tables(layout, cut, x.device), torch.empty_like(x)
        forward(x, layout, weight, bias, cut, self.eps, stats, y)
        return y, Saved(x, layout, weight, bias, stats[0], stats[2], cut)

    def backward(self, dy: Tensor, saved: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        dy = like(dy, saved.layout)
        return gradients(dy, [(slice(None), saved)], saved.weight, saved.bias)


class LayerNorm(GroupNorm, grouped.LayerNorm):
    """`ln`: over all channels and positions of a sample."""


class InstanceNorm(GroupNorm, grouped.InstanceNorm):
    """`in`: over each map."""


class GhostSaved(NamedTuple):
    """What ghost's backward reads: sub-batches of one size, then those of one row less."""

    layout: Layout
    weight: Tensor | None
    bias: Tensor | None
    pieces: list[tuple[slice, Saved]]


class GhostBatchNorm(ghost.GhostBatchNorm):
    """`ghost` on Triton; see eager.ghost.GhostBatchNorm."""

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, Any]:
        check(x)
        x, layout = dense(x)
        running = running_pair(state)
        if not state.training and running is not None:
            return self._infer(x, layout, weight, bias, running)
        rows = layout.rows
        ghosts = max(1, rows // self.size)
        size, larger = divmod(rows, ghosts)
        if size * layout.map_size < 2:
            raise NotApplicable(
                "Expected more than 1 value per channel when training, got sub-batches of "
                f"size={self.size} in input size {x.shape}"
            )
        stats = torch.empty((3, ghosts, layout.channels), dtype=torch.float32, device=x.device)
        y = torch.empty_like(x)
        split = larger * (size + 1)
        pieces = []
        for first, last, each, segs in (
            (0, split, size + 1, slice(0, larger)),
            (split, rows, size, slice(larger, ghosts)),
        ):
            if first == last:
                continue
            part = dataclasses.replace(layout, rows=last - first)
            cut, at = Segments(each, 1), slice(first, last)
            forward(x[at], part, weight, bias, cut, self.eps, stats[:, segs], y[at])
            pieces.append(
                (at, Saved(x[at], part, weight, bias, stats[0, segs], stats[2, segs], cut))
            )
        if state.training:
            if running is not None:
                values = size * layout.map_size
                p, block = heuristics.finish_launch(layout.channels, ghosts)
                launch(
                    segments.average_segments, math.ceil(layout.channels / block), 4, stats[0],
                    stats[1], *running, layout.channels, ghosts, larger, values + layout.map_size,
                    values, momentum_of(state), P=p, CB=block,
                )  # fmt: skip
            state.step += 1
        return y, GhostSaved(layout, weight, bias, pieces)

    def _infer(
        self, x: Tensor, layout: Layout, weight: Tensor | None, bias: Tensor | None,
        running: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Any]:  # fmt: skip
        stats, scale, shift = box_launch.given_statistics(
            x, layout, weight, bias, running, self.eps
        )
        y = box_launch.affine_pass(x, layout, scale, shift)
        return y, Given(x, x, None, weight, bias, stats.mean, stats.rstd)

    def backward(self, dy: Tensor, saved: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if isinstance(saved, Given):
            return constants_backward(dy, saved)
        dy = like(dy, saved.layout)
        return gradients(dy, saved.pieces, saved.weight, saved.bias)


def constants_backward(dy: Tensor, saved: Given) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The backward of inference: statistics are constants."""
    from sbnbench_kernels.triton import box_backward

    x, layout = dense(saved.x)
    given = saved._replace(x=x, dy=like(dy, layout))
    return box_backward.backward(given, layout, (), "detached", Fusion())[:3]
