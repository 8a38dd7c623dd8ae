"""Online Normalization: statistics that stream from sample to sample, forward and backward.

For each sample t of the batch in turn, with the mean m_t and biased variance s_t of its map:
x̂_t = (x_t−μ_{t−1})/√(σ²_{t−1}+ε)
σ²_t = α_f σ²_{t−1} + (1−α_f) s_t + α_f(1−α_f)(m_t−μ_{t−1})²,   μ_t = α_f μ_{t−1} + (1−α_f) m_t
z = γx̂ + b, and y = z held in bounds: clamped to ±`bound` (clamp), divided by √(E_{C,H,W} z² + ε) of
its sample (scale), or as it is (none)

V. Chiley et al., Online Normalization for Training Neural Networks, NeurIPS 2019, arXiv 1905.05894.
Decays, the order (after γ, b) and the default, clamping at 5, are those of the authors'
released code.

Backward, the paper's control process in place of the derivative, g = γ·∂L/∂z and E over the map:
g̃_t = g_t − (1−α_b) v_{t−1} x̂_t,             v_t = v_{t−1} + E[g̃_t x̂_t]
dx_t = g̃_t/√(σ²_{t−1}+ε) − (1−α_b) u_{t−1},  u_t = u_{t−1} + E[dx_t]
dγ = Σ ∂L/∂z·x̂,  db = Σ ∂L/∂z. ∂L/∂z is zero where z is clamped.

No statistic looks at the batch, so a batch of one and maps of one value are welcome. State:
`running_mean` and `running_var` are the streams μ, σ² (the layer's momentum is not used: α_f is a
parameter); `u` and `v` (C,) in `State.extra` start at zero and move with each backward, from where
they stood at its forward. eval(): x̂ with the streams as they are; y is held in bounds there too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.arithmetic import accumulator, check_input, column, combine
from sbnbench_kernels.eager.peer import (
    ExtendedPeer,
    Gradients,
    Live,
    Scales,
    map_size,
    require_running,
    sample_moments,
    sample_sums,
)


class _Saved(NamedTuple):
    x: Tensor
    scales: Scales
    mean: Tensor
    rstd: Tensor
    maps: tuple[Tensor, Tensor] | None
    """Mean and variance of each map; None in inference, where nothing streams."""
    u: Tensor
    v: Tensor
    live: Live


class OnlineNorm(ExtendedPeer):
    """`online`. forward_decay α_f, backward_decay α_b; control: clamp, scale or none."""

    exact_gradient = False

    def __init__(
        self,
        eps: float = 1e-5,
        forward_decay: float = 0.999,
        backward_decay: float = 0.99,
        control: str = "clamp",
        bound: float = 5.0,
    ) -> None:
        self.eps, self.control, self.bound = eps, control, bound
        self.forward_decay, self.backward_decay = forward_decay, backward_decay

    def buffers(self, channels: int) -> dict[str, Tensor]:
        return {"u": torch.zeros(channels), "v": torch.zeros(channels)}

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, _Saved]:
        check_input(x)
        extra, dtype = self._extra(x, state), accumulator(x)
        running_mean, running_var = require_running(state, "online")
        mean, var = running_mean.to(dtype, copy=True), running_var.to(dtype)
        maps = None
        if state.training:
            maps, decay = sample_moments(x), self.forward_decay
            means = _stream(decay, mean, (1 - decay) * maps[0])
            gap = (maps[0] - means[:-1]).square()
            variances = _stream(decay, var, (1 - decay) * (maps[1] + decay * gap))
            running_mean.copy_(means[-1].detach())
            running_var.copy_(variances[-1].detach())
            mean, var = means[:-1], variances[:-1]
            state.step += 1
        rstd = (var + self.eps).rsqrt()
        u, v = extra["u"].to(dtype, copy=True), extra["v"].to(dtype, copy=True)
        saved = _Saved(x, Scales(weight, bias), mean, rstd, maps, u, v, Live(extra))
        return self._hold(self._linear(saved)).to(x.dtype), saved

    def backward(self, dy: Tensor, saved: _Saved) -> Gradients:
        x, scales, mean, rstd, maps, _, _, _ = saved
        dz = self._release(dy, self._linear(saved))
        sum_dz, sum_dzd = sample_sums(dz, x, mean)
        affine = scales.gradients((sum_dzd * rstd).sum(0), sum_dz.sum(0))
        a = scales.times(rstd).expand(x.shape[:2])
        b = c = torch.zeros_like(a)
        if maps is not None:
            b, c = self._control(saved, maps, a * sum_dz, a * sum_dzd)
        return combine(dz, a, x, b, c).to(x.dtype), *affine

    def _control(
        self, saved: _Saved, maps: tuple[Tensor, Tensor], sum_g: Tensor, sum_gd: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Slope and shift of dx in x, from Σ g/σ and Σ g(x−μ)/σ of each map; moves u and v."""
        x, _, mean, rstd, _, u, v, live = saved
        leak, p = 1 - self.backward_decay, map_size(x)
        offset = maps[0] - mean
        power = (maps[1] + offset.square()) * rstd.square()  # E[x̂²]
        before = []
        for along, square in zip(sum_gd / p, power, strict=True):
            before.append(v)
            v = v + along - leak * v * square
        slope = -leak * torch.stack(before) * rstd.square()
        level = sum_g / p + slope * offset  # E[g̃]/σ
        us = _stream(self.backward_decay, u, level)
        live.extra["u"].copy_(us[-1])
        live.extra["v"].copy_(v)
        return slope, -slope * mean - leak * us[:-1]

    def _linear(self, saved: _Saved) -> Tensor:
        """z in the dtype of statistics."""
        x = saved.x
        return saved.scales.outer((x - column(saved.mean, x)) * column(saved.rstd, x))

    def _hold(self, z: Tensor) -> Tensor:
        if self.control == "clamp":
            return z.clamp(-self.bound, self.bound)
        return z * self._inverse_rms(z) if self.control == "scale" else z

    def _release(self, dy: Tensor, z: Tensor) -> Tensor:
        """∂L/∂z from ∂L/∂y."""
        if self.control == "clamp":
            return dy * (z.abs() < self.bound)
        if self.control == "none":
            return dy
        inverse = self._inverse_rms(z)
        y = z * inverse
        return (dy - y * (dy * y).mean(tuple(range(1, z.dim())), keepdim=True)) * inverse

    def _inverse_rms(self, z: Tensor) -> Tensor:
        return (z.square().mean(tuple(range(1, z.dim())), keepdim=True) + self.eps).rsqrt()


def _stream(decay: float, start: Tensor, given: Tensor) -> Tensor:
    """s_t = decay·s_{t−1} + given_t from s_0 = start: all of s_0 … s_N, (N+1, C).

    In float64, so that a matrix product takes the place of N steps without losing digits.
    """
    powers = _powers(len(given), decay, given.device)
    every = torch.cat((start[None], given)).double()
    return (powers @ every).to(given.dtype)


@lru_cache(maxsize=64)
def _powers(count: int, decay: float, device: torch.device) -> Tensor:
    """decay^(t−s) for s ≤ t, else 0."""
    lag = torch.arange(count + 1)[:, None] - torch.arange(count + 1)
    return (torch.tensor(decay, dtype=torch.float64) ** lag.clamp_min(0)).tril().to(device)
