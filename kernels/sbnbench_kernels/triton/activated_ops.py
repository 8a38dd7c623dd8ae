"""frn, evonorm-s0 and evonorm-b0 on Triton.

Formulas, parameters and errors are the reference's (eager/frn.py, eager/evonorm.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager import evonorm, frn
from sbnbench_kernels.eager.grouped import check_groups, check_spatial
from sbnbench_kernels.eager.peer import ExtendedGradients, bessel, map_size, merge, values
from sbnbench_kernels.running import update_running
from sbnbench_kernels.triton.layout import Layout, check, dense, like
from sbnbench_kernels.triton.maps import B0, FRN, S0, Activation, map_moments


class Saved(NamedTuple):
    """What backward reads: the passes' tables, and the op's own."""

    x: Tensor
    layout: Layout
    weight: Tensor | None
    bias: Tensor | None
    activation: Activation
    tables: tuple[Any, ...]


def filled(t: Tensor | None, x: Tensor, value: float) -> Tensor:
    """γ or b (C,) in float32; where there is none, `value`."""
    if t is None:
        return torch.full((x.shape[1],), value, dtype=torch.float32, device=x.device)
    return t.float()


def affine_gradients(saved: Saved, dweight: Tensor, dbias: Tensor) -> tuple[Any, Any]:
    """dγ and db in the dtypes of γ and b."""
    return (
        None if saved.weight is None else dweight.to(saved.weight.dtype),
        None if saved.bias is None else dbias.to(saved.bias.dtype),
    )


class FilterResponseNorm(frn.FilterResponseNorm):
    """`frn`. tables: ρ = 1/√(mean x²+ε) (N, C), ε_l."""

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, Any]:
        check(x)
        if map_size(x) < 2 and not self.learned_eps:
            raise NotApplicable(
                f"frn: a map of one value becomes its sign in input size {x.shape}; "
                "set learned_eps=true"
            )
        x, layout = dense(x)
        extra = self._extra(x, state)
        mean, var = map_moments(x, layout)
        eps = extra["eps"].float().clone() if self.learned_eps else None
        added = self.eps if eps is None else self.eps + eps.abs()
        rms = (var + mean.square() + added).rsqrt()
        activation = Activation(
            FRN, rms * filled(weight, x, 1.0), filled(bias, x, 0.0), extra["tau"].float().clone()
        )
        state.step += state.training
        return activation.forward(x, layout), Saved(x, layout, weight, bias, activation, (rms, eps))

    def backward(self, dy: Tensor, saved: Any) -> ExtendedGradients:
        x, layout, _, _, activation, (rms, eps) = saved
        dy = like(dy, layout)
        sum_dz, sum_dzx, below, *_ = activation.sums(x, dy, layout)
        tilt = -activation.tables[0] * rms.square() * sum_dzx
        lift = tilt / layout.map_size
        dx = activation.gradient(x, dy, lift, torch.zeros_like(lift), layout)
        own = {"tau": below.sum(0)}
        if eps is not None:
            own["eps"] = tilt.sum() / 2 * eps.sign()
        return dx, *affine_gradients(saved, (sum_dzx * rms).sum(0), sum_dz.sum(0)), own


class EvoNormS0(evonorm.EvoNormS0):
    """`evonorm-s0`. tables: mean and 1/σ of the group, spread to (N, C)."""

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, Any]:
        check(x)
        check_groups(x.shape[1], self.groups)
        if x[0].numel() // self.groups < 2:
            raise NotApplicable(
                f"evonorm-s0: groups={self.groups} of input size {x.shape} hold one value each"
            )
        x, layout = dense(x)
        v = self._extra(x, state)["v"].float().clone()
        mean, var = map_moments(x, layout)
        mean, var = merge(self._grouped(mean), self._grouped(var), 2)
        rstd = self._spread((var + self.eps).rsqrt(), x)
        activation = Activation(S0, rstd * filled(weight, x, 1.0), filled(bias, x, 0.0), v)
        state.step += state.training
        saved = Saved(x, layout, weight, bias, activation, (self._spread(mean, x), rstd))
        return activation.forward(x, layout), saved

    def backward(self, dy: Tensor, saved: Any) -> ExtendedGradients:
        x, layout, _, _, activation, (mean, rstd) = saved
        dy = like(dy, layout)
        sum_dy, sum_dyh, bend, *_ = activation.sums(x, dy, layout)
        a = activation.tables[0]
        inside = self._grouped(a * rstd.square() * sum_dyh).sum(2, keepdim=True)
        lift = -self._spread(inside, x) * (self.groups / x[0].numel())
        dx = activation.gradient(x, dy, lift, -lift * mean, layout)
        own = {"v": (a * bend).sum(0)}
        return dx, *affine_gradients(saved, (sum_dyh * rstd).sum(0), sum_dy.sum(0)), own


class EvoNormB0(evonorm.EvoNormB0):
    """`evonorm-b0`. tables: mean and σ of the batch (C,), of the maps (N, C), fixed or not."""

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, Any]:
        check(x)
        check_spatial(x.shape)
        x, layout = dense(x)
        v = self._extra(x, state)["v"].float().clone()
        mean, var = map_moments(x, layout)
        batch_mean, batch_var = (t[0] for t in merge(mean, var, 0))
        fixed = not state.training and state.running_var is not None
        if fixed and state.running_var is not None:
            batch_var = state.running_var.float()
        if state.training:
            only_var = State(None, state.running_var, state.momentum, step=state.step)
            update_running(only_var, batch_mean, batch_var, bessel(x))
            state.step += 1
        std, batch_std = (var + self.eps).sqrt(), (batch_var + self.eps).sqrt()
        activation = Activation(B0, std, filled(bias, x, 0.0), v, filled(weight, x, 1.0), batch_std)
        tables = batch_mean, batch_std, mean, std, fixed
        return activation.forward(x, layout), Saved(x, layout, weight, bias, activation, tables)

    def backward(self, dy: Tensor, saved: Any) -> ExtendedGradients:
        x, layout, _, _, activation, (batch_mean, batch_std, mean, std, fixed) = saved
        dy = like(dy, layout)
        sum_dy, sum_dyx, of_map, of_map_x, of_batch = activation.sums(x, dy, layout)
        lift = of_map / (layout.map_size * std)
        constant = -lift * mean
        if not fixed:
            tilt = of_batch.sum(0) / (values(x) * batch_std)
            lift, constant = lift + tilt, constant - tilt * batch_mean
        dx = activation.gradient(x, dy, lift, constant, layout)
        own = {"v": of_map_x.sum(0)}
        return dx, *affine_gradients(saved, sum_dyx.sum(0), sum_dy.sum(0)), own
