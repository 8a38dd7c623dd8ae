"""Filter Response Normalization with its thresholded linear unit.

x̂ = x/√(ν²+ε),  ν² = mean_{H,W} x²,   z = γx̂ + b,   y = max(z, τ)

It replaces normalization and activation: no mean is subtracted, no batch is looked at, and training
and eval() are the same. S. Singh, S. Krishnan, Filter Response Normalization Layer: Eliminating
Batch Dependence in the Training of Deep Neural Networks, CVPR 2020, arXiv 1911.09737, eqs. 1–3.

τ (C,) stands in `State.extra` as `tau` and starts at zero, where y is a ReLU. A map of one value
(also (N, C)) turns into its sign with a constant ε; for it the paper learns ε = eps + |ε_l|, which
`learned_eps` does: ε_l starts at 1e-4 and stands in `State.extra` as `eps`, one number a layer
(the paper leaves open whether it is one a channel). Without `learned_eps` such input is
NotApplicable.

Backward, dz = ∂L/∂y where z > τ and 0 elsewhere, g = γdz, ρ = 1/√(ν²+ε):
dx = ρ·(g − x̂·mean_{H,W}(g x̂)),  dγ = Σ dz·x̂,  db = Σ dz,  dτ = Σ ∂L/∂y where z ≤ τ,
dε_l = −½·sgn(ε_l)·Σ g x̂ ρ².
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.arithmetic import accumulator, check_input, column, combine
from sbnbench_kernels.eager.peer import (
    ExtendedGradients,
    ExtendedPeer,
    Scales,
    map_size,
    map_sums,
    sample_sums,
)


class _Saved(NamedTuple):
    x: Tensor
    scales: Scales
    tau: Tensor
    eps: Tensor | None
    rms: Tensor


class FilterResponseNorm(ExtendedPeer):
    """`frn`. learned_eps: learn ε, for maps of one value."""

    def __init__(self, eps: float = 1e-6, learned_eps: bool = False) -> None:
        self.eps, self.learned_eps = eps, learned_eps

    def parameters(self, channels: int) -> dict[str, Tensor]:
        learned = {"eps": torch.tensor(1e-4)} if self.learned_eps else {}
        return {"tau": torch.zeros(channels), **learned}

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, _Saved]:
        check_input(x)
        if map_size(x) < 2 and not self.learned_eps:
            raise NotApplicable(
                f"frn: a map of one value becomes its sign in input size {x.shape}; "
                "set learned_eps=true"
            )
        extra, dtype = self._extra(x, state), accumulator(x)
        square = x.to(dtype).square()
        power = square.mean(tuple(range(2, x.dim()))) if x.dim() > 2 else square
        eps = extra["eps"].to(dtype) if self.learned_eps else None
        rms = (power + (self.eps if eps is None else self.eps + eps.abs())).rsqrt()
        saved = _Saved(x, Scales(weight, bias), extra["tau"].to(dtype), eps, rms)
        state.step += state.training
        return torch.maximum(_linear(saved), column(saved.tau, x)).to(x.dtype), saved

    def backward(self, dy: Tensor, saved: _Saved) -> ExtendedGradients:
        x, scales, tau, eps, rms = saved
        above = _linear(saved) > column(tau, x)
        dz = dy * above
        sum_dz, sum_dzx = sample_sums(dz, x, torch.zeros_like(tau))
        a = scales.times(rms)
        tilt = -a * rms.square() * sum_dzx
        dx = combine(dz, a, x, tilt / map_size(x), torch.zeros_like(a))
        own = {"tau": map_sums(dy * ~above, tau.dtype).sum(0)}
        if eps is not None:
            own["eps"] = tilt.sum() / 2 * eps.sign()
        return dx, *scales.gradients((sum_dzx * rms).sum(0), sum_dz.sum(0)), own


def _linear(saved: _Saved) -> Tensor:
    """z in the dtype of statistics, so that rounding does not decide what passes the threshold."""
    return saved.scales.outer(saved.x * column(saved.rms, saved.x))
