"""What the reference shares: dtypes, shapes and per-channel affine maps.

Statistics and everything computed from them are held in float32, float64 for float64 input; x, dy
and the results keep their own dtype and memory format.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sbnbench.errors import NotApplicable


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype of statistics for x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_input(x: Tensor) -> None:
    """NotApplicable unless x is floating and (N, C) with at most three spatial sizes."""
    if not 2 <= x.dim() <= 5:
        raise NotApplicable(
            f"expected (N, C) with at most three spatial sizes, got input size {tuple(x.shape)}"
        )
    if not x.is_floating_point():
        raise NotApplicable(f"expected a floating-point input, got {x.dtype}")


def column(v: Tensor, like: Tensor) -> Tensor:
    """v (C,) or (N, C) so that it broadcasts along the spatial sizes of `like`."""
    return v.reshape(*v.shape, *(1,) * (like.dim() - 2))


def scale_of(weight: Tensor | None, rstd: Tensor) -> Tensor:
    """γ/σ in σ's dtype."""
    return rstd if weight is None else weight.to(rstd.dtype) * rstd


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale·x + shift, with scale and shift (C,) or (N, C), rounded once to x's dtype."""
    scale, shift = column(scale, x), column(shift, x)
    if x.is_cuda and not torch.is_grad_enabled():
        return torch.addcmul(shift, x, scale, out=torch.empty_like(x))
    # On a CPU addcmul does not vectorise over a broadcast operand; mul and add do.
    return (x * scale).add_(shift).to(x.dtype)


def combine(dy: Tensor, a: Tensor, x: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a·dy + b·x + c, with a, b, c (C,) or (N, C), rounded once to x's dtype."""
    a, b, c = column(a, x), column(b, x), column(c, x)
    wide = torch.empty_like(x, dtype=a.dtype)
    if x.is_cuda:
        torch.addcmul(c, x, b, out=wide)
        return torch.addcmul(wide, dy, a, out=torch.empty_like(x))
    return torch.mul(x, b, out=wide).add_(c).add_(dy * a).to(x.dtype)
