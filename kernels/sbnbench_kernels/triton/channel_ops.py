"""brn, ebn, l1bn and rbn on Triton: BatchNorm's passes with other statistics a channel.

Formulas, parameters and errors are the reference's (eager/renorm.py, ebn.py, l1bn.py, rbn.py).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sbnbench_kernels.contract import State
from sbnbench_kernels.eager import ebn, l1bn, rbn, renorm
from sbnbench_kernels.eager.peer import BatchPeer, bessel, require_running, require_values
from sbnbench_kernels.running import momentum_of
from sbnbench_kernels.samplers import Everything
from sbnbench_kernels.triton import box_launch, heuristics
from sbnbench_kernels.triton.box_backward import (
    Given,
    Gradients,
    dx_pass,
    gradient_tables,
)
from sbnbench_kernels.triton.box_launch import everything, order, part_tables
from sbnbench_kernels.triton.box_ops import running_pair
from sbnbench_kernels.triton.kernels import finish, peers
from sbnbench_kernels.triton.launching import launch
from sbnbench_kernels.triton.layout import Layout, check, dense, like
from sbnbench_kernels.triton.segment_ops import constants_backward


class Saved(NamedTuple):
    """What backward reads. `stats` (k, C): μ, 1/σ and what each op adds."""

    x: Tensor
    layout: Layout
    weight: Tensor | None
    bias: Tensor | None
    stats: Tensor
    more: tuple[Tensor, ...] = ()


class Call(NamedTuple):
    """One training forward."""

    x: Tensor
    layout: Layout
    weight: Tensor | None
    bias: Tensor | None
    state: State
    running: tuple[Tensor, Tensor] | None

    @property
    def values(self) -> int:
        """n: values of a channel."""
        return self.layout.rows * self.layout.map_size

    def averages(self) -> tuple[Tensor | None, Tensor | None]:
        """Running statistics to update."""
        return self.running if self.running and self.state.training else (None, None)

    def factor(self) -> float:
        return momentum_of(self.state) if self.state.training else 0.0

    def rows(self, count: int) -> Tensor:
        """Room for `count` numbers a channel."""
        shape = (count, self.layout.channels)
        return torch.empty(shape, dtype=torch.float32, device=self.x.device)


def finish_grid(channels: int, parts: int) -> tuple[int, int, int, int]:
    """Programs, warps, and the tile of a kernel that merges parts."""
    rows, block = heuristics.finish_launch(channels, parts)
    return math.ceil(channels / block), heuristics.warps(rows * block, 8), rows, block


class ChannelOp(BatchPeer):
    """Inference is BatchNorm's; training is the op's."""

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, Any]:
        check(x)
        x, layout = dense(x)
        running = running_pair(state)
        if not state.training and running is not None:
            stats, scale, shift = box_launch.given_statistics(
                x, layout, weight, bias, running, self.eps
            )
            y = box_launch.affine_pass(x, layout, scale, shift)
            return y, Given(x, x, None, weight, bias, stats.mean, stats.rstd)
        require_values(x)
        result = self._normalize(Call(x, layout, weight, bias, state, running))
        state.step += state.training
        return result

    def backward(self, dy: Tensor, saved: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if isinstance(saved, Given):
            return constants_backward(dy, saved)
        given = Given(
            saved.x, like(dy, saved.layout), None, saved.weight, saved.bias, saved.stats[0],
            saved.stats[1],
        )  # fmt: skip
        out = Gradients(
            torch.empty_like(saved.x),
            None if saved.weight is None else torch.empty_like(saved.weight),
            None if saved.bias is None else torch.empty_like(saved.bias),
            None,
        )
        table, _ = gradient_tables(given, saved.layout, everything(saved.layout))
        self._differentiate(given, saved, table, out)
        return out[:3]

    @abstractmethod
    def _normalize(self, call: Call) -> tuple[Tensor, Saved]: ...

    @abstractmethod
    def _differentiate(self, given: Given, saved: Saved, table: Tensor, out: Gradients) -> None: ...


class BatchRenorm(ChannelOp, renorm.BatchRenorm):
    """`brn`. stats: μ, 1/σ, r, d."""

    def _normalize(self, call: Call) -> tuple[Tensor, Saved]:
        x, layout, weight, bias, state, _ = call
        running = require_running(state, "brn")
        rmax, dmax = renorm.limits(state.step, self.steps, self.rmax, self.dmax)
        table, cut = part_tables(x, layout, everything(layout))
        stats, scales = call.rows(4), call.rows(2)
        programs, num_warps, p, block = finish_grid(layout.channels, table.shape[1])
        launch(
            peers.finish_renorm, programs, num_warps, table[0], table[1], weight, bias, *running,
            *stats, *scales, layout.channels, table.shape[1], call.values, cut.sub_len, self.eps,
            call.factor(), rmax, dmax, WEIGHT=weight is not None, BIAS=bias is not None,
            TRAINING=state.training, P=p, CB=block,
        )  # fmt: skip
        y = box_launch.affine_pass(x, layout, scales[0], scales[1])
        return y, Saved(x, layout, weight, bias, stats)

    def _differentiate(self, given: Given, saved: Saved, table: Tensor, out: Gradients) -> None:
        layout, (mean, rstd, r, d) = saved.layout, saved.stats
        coefficients = torch.empty((4, layout.channels), dtype=torch.float32, device=mean.device)
        programs, num_warps, p, block = finish_grid(layout.channels, table.shape[1])
        values = layout.rows * layout.map_size
        launch(
            finish.finish_gradients, programs, num_warps, table[0], table[1], table[0], table[1],
            mean, rstd, given.weight, given.bias, out.dweight, out.dbias, *coefficients,
            layout.channels, table.shape[1], table.shape[1], 1 / values, 0.0, 1.0, 0.0, r, d,
            MODE=0, MIXED=False, WHOLE_BOX=True, RENORM=True, WEIGHT=given.weight is not None,
            BIAS=given.bias is not None, P=p, CB=block,
        )  # fmt: skip
        dx_pass(given, layout, tuple(coefficients), out)


class ExtendedBatchNorm(ChannelOp, ebn.ExtendedBatchNorm):
    """`ebn`."""

    def _normalize(self, call: Call) -> tuple[Tensor, Saved]:
        x, layout, weight, bias, *_ = call
        table, cut = part_tables(x, layout, everything(layout))
        stats, scales = call.rows(2), call.rows(2)
        _, num_warps, p, block = finish_grid(layout.channels, table.shape[1])
        averages = call.averages()
        launch(
            peers.finish_extended, 1, num_warps, table[0], table[1], weight, bias, *averages,
            *stats, *scales, layout.channels, table.shape[1], call.values, cut.sub_len, self.eps,
            call.factor(), bessel(x), WEIGHT=weight is not None, BIAS=bias is not None,
            RUNNING=averages[0] is not None, P=p, CB=block,
        )  # fmt: skip
        y = box_launch.affine_pass(x, layout, scales[0], scales[1])
        return y, Saved(x, layout, weight, bias, stats)

    def _differentiate(self, given: Given, saved: Saved, table: Tensor, out: Gradients) -> None:
        layout = saved.layout
        coefficients = torch.empty((3, layout.channels), dtype=torch.float32, device=table.device)
        _, num_warps, p, block = finish_grid(layout.channels, table.shape[1])
        launch(
            peers.finish_extended_gradients, 1, num_warps, table[0], table[1], given.mean,
            given.rstd, given.weight, out.dweight, out.dbias, *coefficients, layout.channels,
            table.shape[1], layout.rows * layout.map_size, WEIGHT=given.weight is not None,
            BIAS=given.bias is not None, P=p, CB=block,
        )  # fmt: skip
        dx_pass(given, layout, (*coefficients, None), out)


def _deviation_gradients(
    given: Given, saved: Saved, table: Tensor, out: Gradients, factor: float, signs: bool
) -> Tensor:
    """slope, lift, constant, twist (4, C)."""
    layout = saved.layout
    coefficients = torch.empty((4, layout.channels), dtype=torch.float32, device=table.device)
    programs, num_warps, p, block = finish_grid(layout.channels, table.shape[1])
    launch(
        peers.finish_deviation_gradients, programs, num_warps, table[0], table[1], given.rstd,
        saved.stats[2], saved.stats[3] if signs else None, given.weight, out.dweight, out.dbias,
        *coefficients, layout.channels, table.shape[1], layout.rows * layout.map_size, factor,
        WEIGHT=given.weight is not None, BIAS=given.bias is not None, SIGNS=signs, P=p, CB=block,
    )  # fmt: skip
    return coefficients


class L1BatchNorm(ChannelOp, l1bn.L1BatchNorm):
    """`l1bn`. stats: μ, 1/σ, σ₁, mean sgn(x−μ)."""

    def statistics(self, x: Tensor, state: State) -> tuple[Tensor, Tensor]:
        check(x)
        state.step += 1
        x, layout = dense(x)
        quiet = State(training=False)
        _, saved = self._normalize(Call(x, layout, None, None, quiet, None))
        return saved.stats[0], saved.stats[2].square()

    def _normalize(self, call: Call) -> tuple[Tensor, Saved]:
        x, layout, weight, bias, *_ = call
        sample = Everything().draw(x.shape, 0, 0, x.device)
        moments, _, _ = box_launch.sample_statistics(x, layout, sample, self.eps)
        stats, scales = call.rows(4), call.rows(2)
        stats[0].copy_(moments.mean)
        cut = heuristics.reduce_launch(layout, call.values)
        table = torch.empty((2, cut.subs, layout.channels), dtype=torch.float32, device=x.device)
        launch(
            peers.box_absolute, cut.subs * math.ceil(layout.channels / cut.channels), cut.num_warps,
            x, stats[0], table[0], table[1], total=call.values, subs=cut.subs, sub_len=cut.sub_len,
            **order(layout), E=cut.values, CB=cut.channels,
        )  # fmt: skip
        programs, num_warps, p, block = finish_grid(layout.channels, cut.subs)
        averages = call.averages()
        launch(
            peers.finish_absolute, programs, num_warps, table[0], table[1], weight, bias, *averages,
            *stats, *scales, layout.channels, cut.subs, call.values, self.eps, call.factor(),
            bessel(x), l1bn.GAUSSIAN, WEIGHT=weight is not None, BIAS=bias is not None,
            RUNNING=averages[0] is not None, P=p, CB=block,
        )  # fmt: skip
        y = box_launch.affine_pass(x, layout, scales[0], scales[1])
        return y, Saved(x, layout, weight, bias, stats)

    def _differentiate(self, given: Given, saved: Saved, table: Tensor, out: Gradients) -> None:
        factor = l1bn.GAUSSIAN / (saved.layout.rows * saved.layout.map_size)
        slope, lift, constant, twist = _deviation_gradients(
            given, saved, table, out, factor, signs=True
        )
        coefficients = slope, lift, constant, None
        dx_pass(given, saved.layout, coefficients, out, twist=(twist, given.mean))


class RangeBatchNorm(ChannelOp, rbn.RangeBatchNorm):
    """`rbn`. stats: μ, 1/σ, σ_R; more: where each chunk's maximum and minimum lie."""

    def _normalize(self, call: Call) -> tuple[Tensor, Saved]:
        x, layout, weight, bias, *_ = call
        chunks = self._count(x)
        chunk = call.values // chunks
        cut = heuristics.reduce_launch(layout, chunk, chunks, sums=6)
        table = torch.empty((4, chunks, layout.channels), dtype=torch.float32, device=x.device)
        at = torch.empty((2, chunks, layout.channels), dtype=torch.int32, device=x.device)
        blocks = math.ceil(layout.channels / cut.channels)
        launch(
            peers.box_extremes, chunks * blocks, cut.num_warps, x, *table, *at, chunk=chunk,
            **order(layout), CHUNK_UNIT=1 if layout.channels_last else math.gcd(chunk, layout.unit),
            E=cut.values, CB=cut.channels,
        )  # fmt: skip
        stats, scales = call.rows(3), call.rows(2)
        programs, num_warps, p, block = finish_grid(layout.channels, chunks)
        averages = call.averages()
        launch(
            peers.finish_range, programs, num_warps, *table, weight, bias, *averages, *stats,
            *scales, layout.channels, chunks, chunk, call.values, self.eps, call.factor(),
            bessel(x), self._constant(x), WEIGHT=weight is not None, BIAS=bias is not None,
            RUNNING=averages[0] is not None, P=p, CB=block,
        )  # fmt: skip
        y = box_launch.affine_pass(x, layout, scales[0], scales[1])
        return y, Saved(x, layout, weight, bias, stats, (at,))

    def _differentiate(self, given: Given, saved: Saved, table: Tensor, out: Gradients) -> None:
        layout, (at,) = saved.layout, saved.more
        chunks = at.shape[1]
        factor = self._constant(saved.x) / chunks
        slope, lift, constant, twist = _deviation_gradients(
            given, saved, table, out, factor, signs=False
        )
        dx_pass(given, layout, (slope, lift, constant, None), out)
        block = min(heuristics.power_of_two(layout.channels), 128)
        launch(
            peers.scatter_extremes, chunks * math.ceil(layout.channels / block), 1, given.dy,
            out.dx, at[0], at[1], slope, constant, twist, layout.outer, layout.inner_units,
            layout.rows * layout.map_size // chunks, chunks, CHANNELS_LAST=layout.channels_last,
            UNIT=layout.unit, CB=block,
        )  # fmt: skip
