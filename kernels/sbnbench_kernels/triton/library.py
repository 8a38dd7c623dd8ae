"""The box family as PyTorch operators, which torch.compile keeps in its graph.

`sbnbench::box_forward` and `sbnbench::box_backward` are opaque to the compiler; they have shapes
(fake implementations) and a gradient of their own. A sample travels as tensors and numbers. Ops
launch their kernels directly and do not come through here: this is for modules and for graphs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sbnbench_kernels.samplers import Elements, Sample, Share
from sbnbench_kernels.sampling import Box
from sbnbench_kernels.triton import box_backward, box_launch
from sbnbench_kernels.triton.box_launch import Fusion
from sbnbench_kernels.triton.layout import check, dense, like

Packed = tuple[list[Tensor], list[int], list[float]]


def pack(sample: Sample) -> Packed:
    """A sample as tensors (positions or corners), integers and weights, one set a share."""
    tensors: list[Tensor] = []
    numbers: list[int] = []
    for share in sample:
        part = share.part
        patch: tuple[int, ...] = ()
        if isinstance(part, Elements):
            kind, start, count = 2, 0, 0
            tensors.append(part.positions)
        else:
            kind, start, count = 0, part.start, part.count
            patch = part.patch
            if part.corners is not None:
                kind = 1
                tensors.append(part.corners)
        numbers += [kind, start, count, share.size, share.stands_for, len(patch), *patch]
    return tensors, numbers, [share.weight for share in sample]


def unpack(tensors: list[Tensor], numbers: list[int], weights: list[float]) -> Sample:
    """The sample that was packed."""
    shares = []
    given, rest = iter(tensors), list(numbers)
    for weight in weights:
        kind, start, count, size, stands_for, dims = rest[:6]
        patch, rest = tuple(rest[6 : 6 + dims]), rest[6 + dims :]
        part: Box | Elements
        if kind == 2:
            part = Elements(next(given))
        else:
            part = Box(start, count, next(given) if kind == 1 else None, patch)
        shares.append(Share(part, weight, size, stands_for))
    return tuple(shares)


@torch.library.custom_op("sbnbench::box_forward", mutates_args=())
def box_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    tensors: list[Tensor],
    numbers: list[int],
    weights: list[float],
    eps: float,
    mode: str,
) -> tuple[Tensor, Tensor]:
    """y, and mean, biased variance and 1/σ (3, C) of a training forward. `mode` is its backward's.

    Running statistics are the caller's to update: an operator with a gradient may change nothing.
    """
    check(x)
    given, layout = dense(x)
    y, stats = box_launch.forward(
        given, layout, weight, bias, None, unpack(tensors, numbers, weights), eps, 0.0, 1.0,
        Fusion(), None,
    )  # fmt: skip
    return y, torch.stack(stats)


@box_forward.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _like_dense(x), x.new_empty((3, x.shape[1]), dtype=torch.float32)


@torch.library.custom_op("sbnbench::box_backward", mutates_args=())
def box_backward_(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    tensors: list[Tensor],
    numbers: list[int],
    weights: list[float],
    mode: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dγ, db; the latter two empty where there is no γ or b."""
    given, layout = dense(x)
    out = box_backward.backward(
        box_backward.Given(given, like(dy, layout), None, weight, bias, mean, rstd),
        layout, unpack(tensors, numbers, weights), mode, Fusion(),
    )  # fmt: skip
    return (
        out.dx,
        mean.new_empty(0) if out.dweight is None else out.dweight,
        mean.new_empty(0) if out.dbias is None else out.dbias,
    )


@box_backward_.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _like_dense(x),
        mean.new_empty(0) if weight is None else torch.empty_like(weight),
        mean.new_empty(0) if bias is None else torch.empty_like(bias),
    )


def _like_dense(x: Tensor) -> Tensor:
    """What `dense` would make of x, without its values."""
    return torch.empty_like(dense(x)[0])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, tensors, numbers, weights, _, mode = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, bias, output[1], *tensors)
    ctx.numbers, ctx.weights, ctx.mode = numbers, weights, mode


def _gradient(ctx: Any, dy: Tensor, *_: Tensor | None) -> tuple[Any, ...]:
    x, weight, bias, stats, *tensors = ctx.saved_tensors
    dx, dweight, dbias = torch.ops.sbnbench.box_backward(
        dy, x, weight, bias, stats[0], stats[2], tensors, ctx.numbers, ctx.weights, ctx.mode
    )
    return (
        dx, None if weight is None else dweight, None if bias is None else dbias,
        [None] * len(tensors), *[None] * 4,
    )  # fmt: skip


box_forward.register_autograd(_gradient, setup_context=_setup)


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    sample: Sample,
    *,
    eps: float,
    mode: str,
    running: tuple[Tensor, Tensor] | None = None,
    factor: float = 0.0,
    correction: float = 1.0,
) -> Tensor:
    """y with the statistics of `sample`, differentiable by its backward `mode`, for use inside
    torch.compile; moves the running statistics by `factor`, the variance times `correction`."""
    y, stats = torch.ops.sbnbench.box_forward(x, weight, bias, *pack(sample), eps, mode)
    if running is not None:
        running[0].lerp_(stats[0].to(running[0].dtype), factor)
        running[1].lerp_((stats[1] * correction).to(running[1].dtype), factor)
    result: Tensor = y
    return result
