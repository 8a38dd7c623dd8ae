"""Weight Standardization: a convolution's weights, not its activations, are normalized.

Ŵ_o = (W_o−μ_o)/√(σ_o²+ε),   μ_o, σ_o² (biased) over the I = C_in·k·k weights of output channel o

S. Qiao, H. Wang, C. Liu, W. Shen, A. Yuille, Micro-Batch Training with Batch-Channel Normalization
and Weight Standardization, arXiv 1903.10520, ε = 1e-5 under the root. (Code the authors
released takes the variance with Bessel's correction: another 1/√(1−1/I).) It goes with a
normalization of the activations that has no batch in it: `gn` for micro-batches, or `bcn`.

Three ways to use it: `standardize(W)`; `WSConv1d/2d/3d` in place of a convolution, with its
constructor and state_dict; `torch.nn.utils.parametrize.register_parametrization(conv, "weight",
Standardized())` on one that exists. Gradients are autograd's, through Ŵ to W.

`centralize(W)` = W_o−μ_o alone is what `mabn` wants of the weights before it (Yan et al., arXiv
2001.06838); `Centralized` is its parametrization.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sbnbench.errors import NotApplicable


def centralize(weight: Tensor) -> Tensor:
    """W less the mean of each output channel (dimension 0)."""
    return weight - weight.mean(tuple(range(1, weight.dim())), keepdim=True)


def standardize(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Ŵ, with moments in float32 or better. Raises NotApplicable where a channel has one weight."""
    if weight[0].numel() < 2:
        raise NotApplicable(
            f"Expected more than 1 weight per output channel, got weight size {weight.shape}"
        )
    wide = weight if weight.dtype == torch.float64 else weight.float()
    centred = centralize(wide)
    var = centred.square().mean(tuple(range(1, weight.dim())), keepdim=True)
    return (centred * (var + eps).rsqrt()).to(weight.dtype)


class Standardized(nn.Module):
    """Parametrization of a weight by `standardize`."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, weight: Tensor) -> Tensor:
        return standardize(weight, self.eps)


class Centralized(nn.Module):
    """Parametrization of a weight by `centralize`."""

    def forward(self, weight: Tensor) -> Tensor:
        return centralize(weight)


class WSConv1d(nn.Conv1d):
    """nn.Conv1d with standardized weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        y: Tensor = self._conv_forward(input, standardize(self.weight), self.bias)
        return y


class WSConv2d(nn.Conv2d):
    """nn.Conv2d with standardized weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        y: Tensor = self._conv_forward(input, standardize(self.weight), self.bias)
        return y


class WSConv3d(nn.Conv3d):
    """nn.Conv3d with standardized weights."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        y: Tensor = self._conv_forward(input, standardize(self.weight), self.bias)
        return y
