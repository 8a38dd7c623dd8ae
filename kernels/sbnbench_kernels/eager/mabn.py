"""Moving Average Batch Normalization: statistics over iterations, forward and backward.

x̂ = r·x/√(χ²+ε),   y = γx̂ + b,   no mean is subtracted: the weights before it are centralized
χ² = mean of E[x²] over the last `buffer` iterations, this one with them
r = clip(√(χ²+ε)/√(running_var+ε), 1/r_max, r_max), without gradient
running_var ← (1−α)·running_var + α·χ²

J. Yan, R. Wan, X. Zhang, W. Zhang, Y. Wei, J. Sun, Towards Stabilizing Batch Statistics in Backward
Propagation of Batch Normalization, ICLR 2020, arXiv 2001.06838, Algorithms 1 and 2. Needs
`weight_standardization.centralize` on the weights before it (kind C).

Backward, the paper's own, not the derivative of the forward: with g = r·γ·dy and z = x/√(χ²+ε)
dx = (1/√(χ²+ε))·(g − z·Ψ),   Ψ = mean of E[g z] over the last `buffer` iterations,
dγ = Σ dy·r z,  db = Σ dy.

Choices, from the authors' released code: up to iteration `buffer`, and before iteration `warmup`,
χ² and Ψ are those of the batch alone; r = 1 up to iteration `renorm_after` (and `warmup`); α is the
layer's momentum, 0.02 there. A slot of a buffer that was never filled is left out of the mean.

eval(): y = γx/√(running_var+ε) + b; running_mean stays as it is. State: `running_var`, the buffers
`square` and `slope` (buffer, C), with NaN where a slot is empty. backward writes this iteration's
E[g z] into its slot, so calling it twice changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.arithmetic import accumulator, check_input, combine
from sbnbench_kernels.eager.peer import (
    Constants,
    ExtendedPeer,
    Gradients,
    Live,
    Scales,
    channel_sums,
    require_running,
    values,
)
from sbnbench_kernels.running import momentum_of


class _Saved(NamedTuple):
    x: Tensor
    scales: Scales
    rstd: Tensor
    r: Tensor
    live: Live
    slot: int
    alone: bool


class MovingAverageBatchNorm(ExtendedPeer):
    """`mabn`. buffer, warmup, renorm_after: in training iterations; rmax bounds r."""

    exact_gradient = False

    def __init__(
        self,
        eps: float = 1e-5,
        buffer: int = 16,
        warmup: int = 100,
        renorm_after: int = 1000,
        rmax: float = 5.0,
    ) -> None:
        self.eps, self.buffer, self.warmup = eps, buffer, warmup
        self.renorm_after, self.rmax = renorm_after, rmax

    def buffers(self, channels: int) -> dict[str, Tensor]:
        return {
            name: torch.full((self.buffer, channels), torch.nan) for name in ("square", "slope")
        }

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, Constants | _Saved]:
        check_input(x)
        scales, dtype = Scales(weight, bias), accumulator(x)
        _, running_var = require_running(state, "mabn")
        if not state.training:
            return Constants.infer(x, scales, torch.zeros_like(running_var), running_var, self.eps)

        extra, iteration = self._extra(x, state), state.step + 1
        square = x.to(dtype).square().mean((0, *range(2, x.dim())))
        slot = iteration % self.buffer
        extra["square"][slot] = square.detach()
        alone = iteration <= self.buffer or iteration < self.warmup
        chi = square if alone else extra["square"].nanmean(0)
        std = (chi + self.eps).sqrt()
        r = torch.ones_like(std)
        if iteration > max(self.renorm_after, self.warmup):
            r = std / (running_var.to(dtype) + self.eps).sqrt()
            r = r.clamp(1 / self.rmax, self.rmax)
        running_var.lerp_(chi.detach().to(running_var.dtype), momentum_of(state))
        state.step += 1
        saved = _Saved(x, scales, 1 / std, r, Live(extra), slot, alone)
        return scales.apply(x, torch.zeros_like(std), r / std), saved

    def backward(self, dy: Tensor, saved: Constants | _Saved) -> Gradients:
        if isinstance(saved, Constants):
            return saved.backward(dy)
        x, scales, rstd, r, live, slot, alone = saved
        sum_dy, sum_dyx = channel_sums(dy, x, torch.zeros_like(rstd))
        a, slopes = scales.times(rstd * r), live.extra["slope"]
        slopes[slot] = a * sum_dyx / values(x)
        psi = slopes[slot] if alone else slopes.nanmean(0)
        dx = combine(dy, a, x, -rstd.square() * psi, torch.zeros_like(a))
        return dx, *scales.gradients(sum_dyx * rstd * r, sum_dy)
