"""Every kernel in every variant that an op launches, with launches that lead to it.

Nothing runs: the ops are recorded on tensors without storage.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

from sbnbench_kernels.contract import State
from sbnbench_kernels.triton import (
    activated_ops,
    box_ops,
    channel_ops,
    mixed_ops,
    segment_ops,
)
from sbnbench_kernels.triton.box_launch import Fusion
from sbnbench_kernels.triton.launching import Launch, recording

DTYPES = ("float32", "bfloat16", "float16")
FORMATS = ("contiguous", "channels_last")

ELEMENTWISE = ("affine", "affine_gradient", "activated_forward", "activated_gradient")
"""Kernels that pass over whole tensors: 16-byte accesses in all variants."""

REDUCTIONS = ("box_moments", "box_gradients", "box_absolute", "box_extremes", "activated_sums")

ANY_INPUT = ("finish_", "given_", "average_", "add_")
"""Names of kernels that see tables alone begin so: dtype and format make no difference."""

LARGE, MIDDLE, ODD = (32, 64, 56, 56), (64, 64, 28, 28), (1024, 64, 7, 7)
"""Inputs of several launches: planes of many tiles, planes under a tile, and unaligned ones."""
SMALL, LOOPED, TINY = (4, 64, 28, 28), (16, 64, 28, 28), (4, 64, 7, 7)
"""Inputs of one launch."""
THREE = (32, 3, 56, 56)
"""Channels last without vectors."""
SHAPES = (LARGE, MIDDLE, ODD, SMALL, LOOPED, TINY, THREE)


def _ops() -> Iterator[tuple[Any, tuple[tuple[int, ...], ...]]]:
    """Ops, each with the inputs to record it on."""
    eps = {"eps": 1e-5}
    sampled: dict[str, Any] = {**eps, "ratio": 1 / 16, "redraw": 1}
    patches = {**sampled, "position": "per-sample"}
    mixture = {**patches, "beta": 0.5, "num_virtual": 1}
    fused = box_ops.BatchNorm(eps=1e-5)
    fused.fusion = Fusion(relu=True, residual=True)
    yield box_ops.BatchNorm(eps=1e-5), SHAPES
    for mode in ("sampled", "exact", "detached"):
        yield box_ops.FeatureSampling(**patches, backward=mode), (LARGE, SMALL)
        yield box_ops.NaiveSampling(**sampled, backward=mode), (MIDDLE, SMALL)
        yield box_ops.BatchSampling(**sampled, backward=mode), (LARGE, SMALL)
        yield box_ops.FeatureSamplingVirtual(**mixture, backward=mode), (LARGE, SMALL)
    yield fused, (LARGE, SMALL)
    yield segment_ops.GroupNorm(eps=1e-5, groups=32), (LARGE, SMALL)
    yield segment_ops.LayerNorm(eps=1e-5), (LARGE, TINY)
    yield segment_ops.InstanceNorm(eps=1e-5), (LARGE, (4, 8, 512, 512))
    yield segment_ops.GhostBatchNorm(size=32), (LARGE,)
    yield channel_ops.BatchRenorm(), (LARGE,)
    yield channel_ops.ExtendedBatchNorm(), (LARGE,)
    yield channel_ops.L1BatchNorm(), (LARGE,)
    yield channel_ops.RangeBatchNorm(), (LARGE,)
    yield mixed_ops.SwitchableNorm(), (LARGE,)
    yield mixed_ops.BatchChannelNorm(), (LARGE,)
    yield activated_ops.FilterResponseNorm(), (LARGE, MIDDLE, ODD)
    yield activated_ops.EvoNormS0(), (LARGE, MIDDLE, ODD)
    yield activated_ops.EvoNormB0(), (LARGE, MIDDLE, ODD)


def record(
    op: Any,
    shape: tuple[int, ...],
    dtype: str,
    format: str,  # noqa: A002
    direction: str = "fwd_bwd",
    training: bool = True,
) -> list[Launch]:
    """The launches of one call of an op."""
    kind = getattr(torch, dtype)
    x = torch.empty(shape, dtype=kind, device="meta")
    if format == "channels_last":
        rows, channels, *spatial = shape
        x = torch.empty((rows, *spatial, channels), dtype=kind, device="meta").movedim(-1, 1)
    weight, bias, mean, var = (torch.empty(shape[1], device="meta") for _ in range(4))
    state = State(mean, var, training=training)
    fusion = getattr(op, "fusion", Fusion())
    residual = (torch.empty_like(x),) if fusion.residual else ()
    with recording() as launches:
        y, saved = op.forward(x, weight, bias, state, *residual)
        forward = len(launches)
        if direction != "fwd":
            op.backward(torch.empty_like(y), saved)
    return launches[forward:] if direction == "bwd" else launches


def variant(launch: Launch) -> str:
    """The kernel's name with what its constexprs make of it: `affine:plane`."""
    given = launch.arguments
    parts = []
    if launch.name in ELEMENTWISE:
        parts.append(("plane", "vector", "single")[given["MODE"]])
    if launch.name.startswith("activated"):
        parts.append(("frn", "s0", "b0")[given["KIND"]])
    elif "KIND" in given and (launch.name != "affine_gradient" or given["PARTIAL"]):
        parts.append(("whole", "patch", "gather")[given["KIND"]])
    if launch.name == "fused_backward" and given["KIND"]:
        parts.append(("exact", "sampled")[given["MODE"]])
    flags = ("RESIDENT", "GROUPED", "MIXED", "WRITE", "RELU", "TWIST", "RENORM")
    parts += [flag.lower() for flag in flags if given.get(flag)]
    return ":".join((launch.name, *parts))


@cache
def kernels(dtype: str, format: str) -> dict[str, Launch]:  # noqa: A002
    """One launch of every variant that an input of this dtype and format leads to."""
    found: dict[str, Launch] = {}
    for op, shapes in _ops():
        for shape in shapes:
            for launch in record(op, shape, dtype, format):
                found.setdefault(variant(launch), launch)
            if shape is LARGE:
                for launch in record(op, shape, dtype, format, "fwd", training=False):
                    found.setdefault(variant(launch), launch)
    return dict(sorted(found.items()))


def matrix() -> Iterator[tuple[str, str, str, Launch]]:
    """(variant, dtype, format, launch) of everything; kernels on tables once."""
    for dtype in DTYPES:
        for format in FORMATS:  # noqa: A001
            for name, launch in kernels(dtype, format).items():
                plain = dtype == DTYPES[0] and format == FORMATS[0]
                if plain or not name.startswith(ANY_INPUT):
                    yield name, dtype, format, launch
