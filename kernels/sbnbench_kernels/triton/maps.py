"""Moments of every map (N, C): what normalizers start from that mix statistics of several kinds.

Between the passes over the tensor, tables of (N, C) are worked on by small PyTorch operators: a
fixed cost of some tens of microseconds on a GPU, which shows in micro-batches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sbnbench_kernels.triton import heuristics
from sbnbench_kernels.triton.box_launch import everything, order, part_tables
from sbnbench_kernels.triton.kernels import activated, segments
from sbnbench_kernels.triton.launching import launch
from sbnbench_kernels.triton.layout import Layout

FRN, S0, B0 = 0, 1, 2
"""The kinds of kernels/activated.py."""


def map_moments(x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (N, C) of every map, in float32."""
    b = everything(layout)
    table, cut = part_tables(x, layout, b, layout.map_size)
    out = torch.empty((5, layout.rows, layout.channels), dtype=torch.float32, device=x.device)
    rows, block = heuristics.finish_launch(layout.channels, cut.subs)
    launch(
        segments.finish_segments, layout.rows * math.ceil(layout.channels / block),
        heuristics.warps(rows * block, 8), table[0], table[1], None, None, *out, layout.channels, 1,
        b.total, layout.map_size, cut.subs, cut.sub_len, 1.0, GROUPED=False, WEIGHT=False,
        BIAS=False, P=rows, CB=block,
    )  # fmt: skip
    return out[0], out[1]


class Activation:
    """The tables of an activated normalizer, and its three passes; see kernels/activated.py."""

    def __init__(
        self, kind: int, each: Tensor, bias: Tensor, knee: Tensor, gamma: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.kind = kind
        self.tables = each.contiguous(), bias, knee, gamma, batch

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """y."""
        y, p = torch.empty_like(x), heuristics.pass_launch(layout)
        launch(
            activated.activated_forward, p.programs(layout), p.num_warps, x, y, *self.tables,
            layout.numel, **order(layout), KIND=self.kind, MODE=p.mode, EVEN=p.even, R=p.vectors,
            V=p.width,
        )  # fmt: skip
        return y

    def sums(self, x: Tensor, dy: Tensor, layout: Layout) -> Tensor:
        """(5, N, C)."""
        size, rows, channels = layout.map_size, layout.rows, layout.channels
        cut = heuristics.reduce_launch(layout, size, rows, sums=5)
        parts = rows * cut.subs
        table = torch.empty((5, parts, channels), dtype=torch.float32, device=x.device)
        launch(
            activated.activated_sums, parts * math.ceil(channels / cut.channels), cut.num_warps, x,
            dy, *self.tables, table, total=rows * size, seg_len=size, subs=cut.subs,
            sub_len=cut.sub_len, table=parts * channels, **order(layout), KIND=self.kind,
            E=cut.values, CB=cut.channels,
        )  # fmt: skip
        return table.view(5, rows, cut.subs, channels).sum(2)

    def gradient(
        self, x: Tensor, dy: Tensor, lift: Tensor, constant: Tensor, layout: Layout
    ) -> Tensor:
        """dx."""
        dx, p = torch.empty_like(x), heuristics.pass_launch(layout)
        launch(
            activated.activated_gradient, p.programs(layout), p.num_warps, x, dy, dx, *self.tables,
            lift.contiguous(), constant.contiguous(), layout.numel, **order(layout), KIND=self.kind,
            MODE=p.mode, EVEN=p.even, R=p.vectors, V=p.width,
        )  # fmt: skip
        return dx
