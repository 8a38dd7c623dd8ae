"""sn and bcn on Triton: y = a·x + b with a and b of every map from moments of every map.

y = a(x−m) + β, where m and v are a map's mean and variance and a, β (N, C) are a differentiable
function of them, of γ, b and of the op's own parameters. With ∂L/∂a = Σ dy·(x−m) and ∂L/∂β = Σ dy
over the map of P values, autograd goes through that function on the tables alone, and

    dx = a·dy + (∂L/∂m)/P + 2·(∂L/∂v)·(x−m)/P,   ∂L/∂m counting −a·Σ dy for the m in x−m.

Formulas, parameters and errors are the reference's (eager/switchable.py, eager/bcn.py).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager import bcn, switchable
from sbnbench_kernels.eager.grouped import check_groups, check_spatial
from sbnbench_kernels.eager.peer import ExtendedGradients, ExtendedPeer, bessel, merge
from sbnbench_kernels.running import update_running
from sbnbench_kernels.triton.box_backward import Given, Gradients, dx_pass, gradient_tables
from sbnbench_kernels.triton.box_launch import affine_pass, everything
from sbnbench_kernels.triton.layout import Layout, check, dense, like
from sbnbench_kernels.triton.maps import map_moments

Pair = tuple[Tensor, Tensor]


class Tables(NamedTuple):
    """What a and β are a function of; any of γ, b may be missing. `fixed` are statistics of the
    batch that are constants."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    own: tuple[Tensor, ...]
    fixed: Pair | None


class Saved(NamedTuple):
    """What backward reads."""

    x: Tensor
    layout: Layout
    tables: Tables


class TableOp(ExtendedPeer):
    """An op made of `_prepare` and `_coefficients`."""

    own: tuple[str, ...]
    """Names of its parameters, in the order of Tables.own."""

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, Any]:
        check(x)
        x, layout = dense(x)
        maps = map_moments(x, layout)
        fixed = self._prepare(x, maps, state)
        state.step += state.training
        extra = self._extra(x, state)
        tables = Tables(*maps, weight, bias, tuple(extra[k].clone() for k in self.own), fixed)
        a, level = self._coefficients(tables)
        shift = level - a * maps[0]
        y = affine_pass(x, layout, a.contiguous(), shift.contiguous(), seg_rows=1)
        return y, Saved(x, layout, tables)

    def backward(self, dy: Tensor, saved: Any) -> ExtendedGradients:
        x, layout, tables = saved
        dy = like(dy, layout)
        values = layout.map_size
        given = Given(x, dy, None, None, None, tables.mean, torch.ones_like(tables.mean))
        table, cut = gradient_tables(given, layout, everything(layout), seg_len=values)
        of_level, of_slope = table.view(2, layout.rows, cut.subs, layout.channels).sum(2)
        leaves = [
            t.detach().float().requires_grad_()
            for t in (tables.mean, tables.var, tables.weight, tables.bias, *tables.own)
            if t is not None
        ]
        with torch.enable_grad():
            rest = iter(leaves[2:])
            copies = Tables(
                leaves[0],
                leaves[1],
                None if tables.weight is None else next(rest),
                None if tables.bias is None else next(rest),
                tuple(rest),
                tables.fixed,
            )
            a, level = self._coefficients(copies)
        of_mean, of_var, *more = torch.autograd.grad(
            (a, level), leaves, (of_slope, of_level), materialize_grads=True
        )
        a = a.detach().contiguous()
        of_mean = of_mean - a * of_level
        lift = 2 * of_var / values
        out = Gradients(torch.empty_like(x), None, None, None)
        coefficients = a, lift, (of_mean / values - lift * tables.mean).contiguous(), None
        dx_pass(given, layout, coefficients, out, seg_rows=1)
        found = iter(more)
        dweight = None if tables.weight is None else next(found).to(tables.weight.dtype)
        dbias = None if tables.bias is None else next(found).to(tables.bias.dtype)
        own = {k: g.to(t.dtype) for k, t, g in zip(self.own, tables.own, found, strict=True)}
        return out.dx, dweight, dbias, own

    @abstractmethod
    def _prepare(self, x: Tensor, maps: Pair, state: State) -> Pair | None:
        """Checks, running statistics; the statistics of the batch where they are constants."""

    @abstractmethod
    def _coefficients(self, t: Tables) -> Pair:
        """a and β (N, C)."""


class SwitchableNorm(TableOp, switchable.SwitchableNorm):
    """`sn`."""

    own = ("mean_logits", "var_logits")

    def _prepare(self, x: Tensor, maps: Pair, state: State) -> Pair | None:
        check_spatial(x.shape)
        if state.training:
            mean, var = merge(*maps, 0)
            update_running(state, mean[0], var[0], bessel(x))
            return None
        if state.running_mean is None or state.running_var is None:
            return None
        dtype = maps[0].dtype
        kept = state.running_mean.to(dtype, copy=True), state.running_var.to(dtype, copy=True)
        return kept[0][None], kept[1][None]

    def _coefficients(self, t: Tables) -> Pair:
        layer = merge(t.mean, t.var, 1)
        batch = t.fixed or merge(t.mean, t.var, 0)
        w, w_var = (logits.softmax(0) for logits in t.own)
        mean = w[0] * t.mean + w[1] * layer[0] + w[2] * batch[0]
        var = w_var[0] * t.var + w_var[1] * layer[1] + w_var[2] * batch[1]
        a = (var + self.eps).rsqrt()
        a = a if t.weight is None else a * t.weight
        level = a * (t.mean - mean)
        return a, level if t.bias is None else level + t.bias


class BatchChannelNorm(TableOp, bcn.BatchChannelNorm):
    """`bcn`."""

    own = ("group_weight", "group_bias")

    def _prepare(self, x: Tensor, maps: Pair, state: State) -> Pair | None:
        check_groups(x.shape[1], self.groups)
        if x[0].numel() // self.groups < 2:
            raise NotApplicable(
                f"Expected more than 1 value per channel when training: groups={self.groups} of "
                f"input size {x.shape} hold one value each"
            )
        mean, var, fixed = self._batch(x, maps, state)
        return (mean, var) if fixed else None

    def _coefficients(self, t: Tables) -> Pair:
        mean, var = t.fixed or merge(t.mean, t.var, 0)
        slope = (var + self.eps).rsqrt()
        slope = slope if t.weight is None else slope * t.weight
        level = slope * (t.mean - mean)
        level = level if t.bias is None else level + t.bias
        spread = (slope.square() * t.var).expand_as(level)
        rows, channels = level.shape
        group = channels // self.groups
        group_mean, group_var = merge(
            level.reshape(rows, self.groups, group), spread.reshape(rows, self.groups, group), 2
        )
        gain, offset = (own.repeat_interleave(group) for own in t.own)
        rstd = (group_var + self.eps).rsqrt().expand(-1, -1, group).reshape(rows, channels)
        centre = group_mean.expand(-1, -1, group).reshape(rows, channels)
        return gain * rstd * slope, gain * rstd * (level - centre) + offset
