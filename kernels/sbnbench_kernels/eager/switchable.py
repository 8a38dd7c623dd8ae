"""Switchable Normalization: learned mixtures of the means and variances of IN, LN and BN.

x̂ = (x − Σ_k w_k μ_k)/√(Σ_k w′_k σ_k² + ε),  k = in, ln, bn,  y = γx̂ + b
w = softmax(λ), w′ = softmax(λ′): six control parameters a layer, which start equal

P. Luo, J. Ren, Z. Peng, R. Zhang, J. Li, Differentiable Learning-to-Normalize via Switchable
Normalization, ICLR 2019, arXiv 1806.10779, eqs. 3–5. All variances are biased, as in the paper.

eval(): IN and LN as in training, BN from the running statistics. The paper averages BN's statistics
over a number of batches after training ("batch average") and compares with moving averages; here
they are moving averages, as BatchNorm2d's (momentum None gives the plain average of all batches),
the variance with Bessel's correction. λ and λ′ start at one and stand in `State.extra` as
`mean_logits` and `var_logits`, in the order in, ln, bn. Without a map (N, C) there is no IN:
NotApplicable.

Backward, per map of P values, a = γ/σ, M and V the mixed mean and variance:
∂L/∂M = −a·Σ dy,  ∂L/∂V = −½·a/σ²·Σ dy(x−M), and with ⟨·⟩_k the mean over the maps that k unites
dx = a·dy + (1/P)·Σ_k w_k⟨∂L/∂M⟩_k + (2/P)·Σ_k w′_k⟨∂L/∂V⟩_k(x−μ_k)
∂L/∂w_k = Σ ∂L/∂M·μ_k,  ∂L/∂λ_k = w_k(∂L/∂w_k − Σ_j w_j ∂L/∂w_j), and so for λ′ with V, σ_k².
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.arithmetic import accumulator, check_input, combine
from sbnbench_kernels.eager.grouped import check_spatial
from sbnbench_kernels.eager.peer import (
    ExtendedGradients,
    ExtendedPeer,
    Scales,
    bessel,
    map_size,
    merge,
    sample_moments,
    sample_sums,
)
from sbnbench_kernels.running import update_running


class _Saved(NamedTuple):
    x: Tensor
    scales: Scales
    means: tuple[Tensor, Tensor, Tensor]
    variances: tuple[Tensor, Tensor, Tensor]
    w: Tensor
    w_var: Tensor
    fixed: bool


class SwitchableNorm(ExtendedPeer):
    """`sn`."""

    def __init__(self, eps: float = 1e-5) -> None:
        self.eps = eps

    def parameters(self, channels: int) -> dict[str, Tensor]:
        return {"mean_logits": torch.ones(3), "var_logits": torch.ones(3)}

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, _Saved]:
        check_input(x)
        check_spatial(x.shape)
        extra, dtype = self._extra(x, state), accumulator(x)
        mean, var = sample_moments(x)
        layer, batch = merge(mean, var, 1), merge(mean, var, 0)
        fixed = False
        if not state.training and state.running_mean is not None and state.running_var is not None:
            running_mean, running_var = state.running_mean, state.running_var
            batch = running_mean.to(dtype, copy=True)[None], running_var.to(dtype, copy=True)[None]
            fixed = True
        if state.training:
            update_running(state, batch[0][0], batch[1][0], bessel(x))
            state.step += 1
        w, w_var = (extra[k].to(dtype).softmax(0) for k in ("mean_logits", "var_logits"))
        saved = _Saved(
            x,
            Scales(weight, bias),
            (mean, layer[0], batch[0]),
            (var, layer[1], batch[1]),
            w,
            w_var,
            fixed,
        )
        return saved.scales.apply(x, *self._mixed(saved)), saved

    def backward(self, dy: Tensor, saved: _Saved) -> ExtendedGradients:
        x, scales, means, variances, w, w_var, fixed = saved
        mean, rstd = self._mixed(saved)
        sum_dy, sum_dyd = sample_sums(dy, x, mean)
        a = scales.times(rstd)
        d_mean, d_var = -a * sum_dy, -a * rstd.square() * sum_dyd / 2

        p, b, c = map_size(x), torch.zeros_like(a), torch.zeros_like(a)
        for k, dim in enumerate((None, 1, 0)):
            if dim == 0 and fixed:
                continue
            of_mean, of_var = (
                t if dim is None else t.mean(dim, keepdim=True) for t in (d_mean, d_var)
            )
            slope = w_var[k] * of_var * (2 / p)
            b = b + slope
            c = c + w[k] * of_mean / p - slope * means[k]
        dx = combine(dy, a, x, b, c)
        logits = {
            "mean_logits": _through_softmax(w, d_mean, means),
            "var_logits": _through_softmax(w_var, d_var, variances),
        }
        affine = scales.gradients((sum_dyd * rstd).sum(0), sum_dy.sum(0))
        return dx, *affine, logits

    def _mixed(self, saved: _Saved) -> tuple[Tensor, Tensor]:
        """Mixed mean and 1/σ (N, C)."""
        mean = sum(w * m for w, m in zip(saved.w, saved.means, strict=True))
        var = sum(w * v for w, v in zip(saved.w_var, saved.variances, strict=True))
        return torch.as_tensor(mean), (torch.as_tensor(var) + self.eps).rsqrt()


def _through_softmax(w: Tensor, gradient: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
    of_w = torch.stack([(gradient * part).sum() for part in parts])
    return w * (of_w - (w * of_w).sum())
