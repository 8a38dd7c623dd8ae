"""EvoNorm-S0 and EvoNorm-B0: normalization and activation found together by search.

S0:  y = γ·x·sigmoid(v x)/√(s²_{H,W,C/G}(x)+ε) + b
B0:  y = γ·x/max(√(s²_{N,H,W}(x)+ε), v x + √(s²_{H,W}(x)+ε)) + b

s² is the biased variance over the named dimensions, S0's per sample and group of channels, B0's per
channel and per map. H. Liu, A. Brock, K. Simonyan, Q. Le, Evolving Normalization-Activation Layers,
NeurIPS 2020, arXiv 2004.02967; settings as in the code of its appendix (groups 32, v from one).

v (C,) stands in `State.extra` as `v`. S0 keeps no running state: eval() is training. B0 in eval()
takes s²_{N,H,W} from `running_var` (Bessel-corrected like BatchNorm's; `running_mean` is left
alone) and s²_{H,W} still from the map. A map of one value has no s²_{H,W}: NotApplicable to B0, and
to S0 where a group is no more than that.

Backward. S0, h = x·sigmoid(v x), ρ = 1/√(s²+ε), m values and mean μ in a group:
dx = γρ·dy·h′(x) − (x−μ)·(1/m)Σ_group γρ³·dy·h,  h′ = σ(1 + v x(1−σ)), dv = Σ γρ·dy·x²σ(1−σ).
B0, D the denominator, q = −γ·dy·x/D², Q the sum of q where the batch's deviation is the larger, R
of q where the map's term is, per channel and per map:
dx = γ·dy/D + v·q[map] + (x−μ_c)·Q/(n·√(s²_c+ε)) + (x−μ_nc)·R/(P·√(s²_nc+ε)), dv = Σ q[map]·x.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.arithmetic import accumulator, check_input, column
from sbnbench_kernels.eager.grouped import check_groups, check_spatial
from sbnbench_kernels.eager.peer import (
    ExtendedGradients,
    ExtendedPeer,
    Scales,
    bessel,
    map_size,
    map_sums,
    merge,
    sample_moments,
    sample_sums,
    values,
)
from sbnbench_kernels.running import update_running


class _SavedS(NamedTuple):
    x: Tensor
    scales: Scales
    v: Tensor
    mean: Tensor
    rstd: Tensor


class _SavedB(NamedTuple):
    x: Tensor
    scales: Scales
    v: Tensor
    batch: tuple[Tensor, Tensor]
    """Mean and deviation of a channel, (C,)."""
    maps: tuple[Tensor, Tensor]
    """Mean and deviation of a map, (N, C)."""
    fixed: bool


class _EvoNorm(ExtendedPeer):
    def __init__(self, eps: float) -> None:
        self.eps = eps

    def parameters(self, channels: int) -> dict[str, Tensor]:
        return {"v": torch.ones(channels)}


class EvoNormS0(_EvoNorm):
    """`evonorm-s0`. groups: of channels, must divide C."""

    def __init__(self, eps: float = 1e-5, groups: int = 32) -> None:
        super().__init__(eps)
        self.groups = groups

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, _SavedS]:
        check_input(x)
        check_groups(x.shape[1], self.groups)
        if x.shape[1:].numel() // self.groups < 2:
            raise NotApplicable(
                f"evonorm-s0: groups={self.groups} of input size {x.shape} hold one value each"
            )
        v = self._extra(x, state)["v"].to(accumulator(x))
        mean, var = (self._grouped(t) for t in sample_moments(x))
        mean, var = merge(mean, var, 2)
        rstd = self._spread((var + self.eps).rsqrt(), x)
        saved = _SavedS(x, Scales(weight, bias), v, self._spread(mean, x), rstd)
        state.step += state.training
        h = x * torch.sigmoid(x * column(v, x))
        return saved.scales.outer(h * column(rstd, x)).to(x.dtype), saved

    def backward(self, dy: Tensor, saved: _SavedS) -> ExtendedGradients:
        x, scales, v, mean, rstd = saved
        vx = x * column(v, x)
        gate = torch.sigmoid(vx)
        h, bend = x * gate, gate * (1 - gate)
        sum_dy, sum_dyh = sample_sums(dy, h, torch.zeros_like(v))
        a = scales.times(rstd)
        inside = self._grouped(a * rstd.square() * sum_dyh).sum(2, keepdim=True)
        tilt = self._spread(inside, x) * (self.groups / x.shape[1:].numel())
        g = dy * column(a, x)
        dx = g * (gate + vx * bend) - (x - column(mean, x)) * column(tilt, x)
        own = {"v": map_sums(g * x.to(g.dtype).square() * bend, g.dtype).sum(0)}
        affine = scales.gradients((sum_dyh * rstd).sum(0), sum_dy.sum(0))
        return dx.to(x.dtype), *affine, own

    def _grouped(self, t: Tensor) -> Tensor:
        return t.reshape(t.shape[0], self.groups, t.shape[1] // self.groups)

    def _spread(self, t: Tensor, x: Tensor) -> Tensor:
        return t.expand(-1, -1, x.shape[1] // self.groups).reshape(x.shape[:2])


class EvoNormB0(_EvoNorm):
    """`evonorm-b0`."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__(eps)

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, _SavedB]:
        check_input(x)
        check_spatial(x.shape)
        v = self._extra(x, state)["v"].to(accumulator(x))
        mean, var = sample_moments(x)
        batch_mean, batch_var = (t[0] for t in merge(mean, var, 0))
        fixed = not state.training and state.running_var is not None
        if fixed and state.running_var is not None:
            batch_var = state.running_var.to(v.dtype)
        if state.training:
            only_var = State(None, state.running_var, state.momentum, step=state.step)
            update_running(only_var, batch_mean, batch_var, bessel(x))
            state.step += 1
        batch = batch_mean, (batch_var + self.eps).sqrt()
        saved = _SavedB(x, Scales(weight, bias), v, batch, (mean, (var + self.eps).sqrt()), fixed)
        return saved.scales.outer(x / torch.maximum(*_denominators(saved))).to(x.dtype), saved

    def backward(self, dy: Tensor, saved: _SavedB) -> ExtendedGradients:
        x, scales, v, (batch_mean, batch_std), (mean, std), fixed = saved
        of_batch, of_map = _denominators(saved)
        denominator = torch.maximum(of_batch, of_map)
        xhat = x / denominator
        sum_dy, sum_dyx = sample_sums(dy, xhat, torch.zeros_like(v))
        g = dy if scales.weight is None else dy * column(scales.weight.to(v.dtype), x)
        g = g / denominator
        q = -g * xhat
        from_map = q * (of_map > of_batch)
        dx = g + from_map * column(v, x)
        tilt = map_sums(from_map, g.dtype) / (map_size(x) * std)
        dx = dx + (x - column(mean, x)) * column(tilt, x)
        if not fixed:
            tilt = map_sums(q - from_map, g.dtype).sum(0) / (values(x) * batch_std)
            dx = dx + (x - column(batch_mean, x)) * column(tilt, x)
        own = {"v": map_sums(from_map * x, g.dtype).sum(0)}
        return dx.to(x.dtype), *scales.gradients(sum_dyx.sum(0), sum_dy.sum(0)), own


def _denominators(saved: _SavedB) -> tuple[Tensor, Tensor]:
    """The batch's term and the map's, to broadcast over x."""
    of_map = saved.x * column(saved.v, saved.x) + column(saved.maps[1], saved.x)
    return column(saved.batch[1], saved.x).expand_as(of_map), of_map
