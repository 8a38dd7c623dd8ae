"""Kalman Normalization: the statistics of the layer before predict those of this one.

μ̂ = p·μ̂_before + (1−p)·μ,   σ̂² = p·σ̂²_before + (1−p)·σ² + p(1−p)·(μ−μ̂_before)²
x̂ = (x−μ̂)/√(σ̂²+ε),   y = γx̂ + b;   μ, σ² (biased) of the batch

G. Wang, J. Peng, P. Luo, X. Wang, L. Lin, Kalman Normalization: Normalizing Internal
Representations Across Network Layers, NeurIPS 2018, arXiv 1802.03133.

Choices, from the authors' released code: the transition between layers is the identity (the paper
has a matrix A and noise R for it), so both layers have the same channels; p, one minus the Kalman
gain, is a number; where the mean over channels of σ̂²_before/σ² is 100 or more the batch's own
statistics are used; `running_mean` and `running_var` average μ̂ and σ̂² as they are (no Bessel
correction). eval() is BatchNorm's.

`State.extra` takes `before_mean` and `before_var` (C,) from the layer before (kind C), and forward
leaves its own estimates there as `mean` and `var`, for the layer after; `chain` joins modules so.
Without them the layer is
the first of its chain and p counts as zero: BatchNorm. The op takes the prediction as a constant,
so that its backward can be timed alone; `predict`, in plain PyTorch operators, is for networks that
learn through the chain, where autograd gives the rest.

Backward, D_μ = −Σ g/σ̂, D_v = −½·Σ g x̂/σ̂², n values a channel:
dx = g/σ̂ + (1−p)/n·(D_μ + 2·D_v·(x−μ + p(μ−μ̂_before))).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.arithmetic import combine
from sbnbench_kernels.eager.peer import (
    BatchPeer,
    Gradients,
    Scales,
    channel_moments,
    channel_sums,
    values,
)
from sbnbench_kernels.running import update_running

UNLIKE = 100.0
"""Mean ratio of variances from which two layers are too different for one to predict the other."""


def predict(
    mean: Tensor, var: Tensor, before_mean: Tensor, before_var: Tensor, p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """μ̂, σ̂² (C,) and the p in force, zero where the layers are too unlike. Differentiable."""
    ratio = (before_var / var.clamp_min(torch.finfo(var.dtype).tiny)).mean().detach()
    p_used = p * (ratio < UNLIKE).to(mean.dtype)
    spread = p_used * (1 - p_used) * (mean - before_mean).square()
    new_mean = p_used * before_mean + (1 - p_used) * mean
    return new_mean, p_used * before_var + (1 - p_used) * var + spread, p_used


class _Saved(NamedTuple):
    x: Tensor
    scales: Scales
    mean: Tensor
    """μ̂."""
    rstd: Tensor
    own: Tensor
    """μ of the batch."""
    before: Tensor
    p: Tensor


class KalmanNorm(BatchPeer):
    """`kn`. p: weight of the prediction."""

    def __init__(self, eps: float = 1e-5, p: float = 0.1) -> None:
        super().__init__(eps)
        self.p = p

    def _train(self, x: Tensor, scales: Scales, state: State) -> tuple[Tensor, _Saved]:
        own, var = channel_moments(x)
        given = (state.extra.get("before_mean"), state.extra.get("before_var"))
        before_mean, before_var = (
            own_part if part is None else part.detach().to(own.dtype)
            for part, own_part in zip(given, (own, var), strict=True)
        )
        p = self.p if given[0] is not None else 0.0
        mean, spread, used = predict(own, var, before_mean, before_var, p)
        state.extra["mean"], state.extra["var"] = mean.detach(), spread.detach()
        if state.training:
            update_running(state, mean, spread, 1.0)
        rstd = (spread + self.eps).rsqrt()
        saved = _Saved(x, scales, mean, rstd, own, before_mean, used)
        return scales.apply(x, mean, rstd), saved

    def _gradients(self, dy: Tensor, saved: _Saved) -> Gradients:
        x, scales, mean, rstd, own, before, p = saved
        sum_dy, sum_dyd = channel_sums(dy, x, mean)
        a = scales.times(rstd)
        b = -a * rstd.square() * sum_dyd * (1 - p) / values(x)
        c = -a * sum_dy * (1 - p) / values(x) - b * (own - p * (own - before))
        return combine(dy, a, x, b, c), *scales.gradients(sum_dyd * rstd, sum_dy)


def chain(norms: Sequence[nn.Module]) -> list[RemovableHandle]:
    """Lets each of these modules, in the order in which they run, predict the next one; remove()
    on what is returned ends that. Raises NotApplicable where channels differ."""
    channels = {int(getattr(norm, "num_features", 0)) for norm in norms}
    if len(channels) > 1:
        raise NotApplicable(f"kn: layers of {sorted(channels)} channels make no chain")

    def join(norm: nn.Module, after: nn.Module) -> RemovableHandle:
        def hook(*_: object) -> None:
            if norm.training:
                for name in ("mean", "var"):
                    after.register_buffer(f"extra_before_{name}", norm.get_buffer(f"extra_{name}"))

        return norm.register_forward_hook(hook)

    return [join(norm, after) for norm, after in pairwise(norms)]
