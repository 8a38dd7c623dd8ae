"""Bytes and floating-point operations that a contender must move and make, by theory. No torch.

A pass is one read or one write of the whole tensor. With statistics over the batch, y cannot be
written before everything was read once, and what was read does not stay on the chip:

    full BatchNorm     forward 3 (read x; read x, write y)
                       backward 5 (read x, dy; read x, dy, write dx)
    sampled, share r   forward 2 + l
                       backward: sampled 3 + l + r; detached 3, as dγ and db fall out of the pass
                       that writes dx; exact 5, as its sums run over everything

l is the share of the lines of memory that the sample touches (lines.py), r where it is whole rows
or where no memory is given. Backward finds the sample of x as forward may have left it, in one
piece, so there r is enough.

The others are full BatchNorm's 3 and 5, but for l1bn's forward, which reads once more (|x−μ| needs
μ). `resident` counts what is left where a program holds all that it normalizes, as in
micro-batches: every tensor once, forward 2 and backward 3, whatever is sampled.

Left out: tables of (C,) and (N, C), γ and b, positions; the passes a fused ReLU or residual adds
are the reader's to add. Operations are counted a value: an fma is two, an exponential or a division
one, comparisons and conversions none. They place a contender on the roofline and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sbnbench.errors import NotApplicable, UnknownName
from sbnbench_kernels.lines import Memory, lines_of_elements, lines_of_patch, memory_of
from sbnbench_kernels.shares import patch_of, rows_of

MOMENTS = 5
"""Operations a value: x−μ (1), μ's step (2), the square added (2)."""
AFFINE = 2
"""a·x + b."""
SUMS = 4
"""Σ dy (1) and Σ dy·(x−μ) (3)."""
COMBINE = 4
"""a·dy + b·x + c."""


@dataclass(frozen=True)
class Passes:
    """Reads and writes of one direction as multiples of the whole tensor, operations a value."""

    reads: float
    writes: float
    flops: float

    @property
    def total(self) -> float:
        return self.reads + self.writes


@dataclass(frozen=True)
class Traffic:
    """What one call moves at least, in bytes, and its floating-point operations."""

    read: float
    written: float
    flops: float

    @property
    def moved(self) -> float:
        """Bytes in all: what a copy must move to be this contender's floor."""
        return self.read + self.written

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / self.moved


_BATCH_NORM = Passes(2, 1, MOMENTS + AFFINE), Passes(4, 1, SUMS + COMBINE)

FULL: dict[str, tuple[Passes, Passes]] = {
    **dict.fromkeys(
        ("bn", "syncbn", "gn", "ln", "in", "ghost", "brn", "ebn", "sn", "bcn"), _BATCH_NORM
    ),
    # Σx; then |x−μ| and its sign. Backward: the sign's term.
    "l1bn": (Passes(3, 1, 1 + 3 + AFFINE), Passes(4, 1, SUMS + COMBINE + 1)),
    # Σx, maximum and minimum; the range's gradient lives at the extremes.
    "rbn": (Passes(2, 1, 1 + AFFINE), Passes(4, 1, SUMS + AFFINE)),
    # Σx²; γx̂+b. Backward: z again for the threshold, Σ dz, Σ dz·x, Σ dy−dz; z, a·dz + b·x.
    "frn": (Passes(2, 1, 2 + AFFINE), Passes(4, 1, 2 + 4 + 2 + 3)),
    # Forward: moments; vx, sigmoid (3), product, affine.
    # Backward: sigmoid and its slope (6) twice, three sums (6), dx (9).
    "evonorm-s0": (Passes(2, 1, MOMENTS + 5 + AFFINE), Passes(4, 1, 12 + 6 + 9)),
    # Forward: moments; vx+σ, γx, quotient, b. Backward: denominator, x̂, q (6) twice, 5 sums, dx.
    "evonorm-b0": (Passes(2, 1, MOMENTS + 5), Passes(4, 1, 12 + 7 + 6)),
}
"""Forward and backward of what samples nothing."""

SAMPLED = ("ns", "bs", "fs", "vdn", "bs+vdn", "fs+vdn")
"""What has a sample and a backward mode."""


def sampled_share(name: str, params: Mapping[str, object], shape: Sequence[int]) -> float:
    """r = s/n of an input (N, C, *spatial) of a sampled normalizer, rounded as its draws round;
    virtual rows count in s and in n. NotApplicable where the algorithm does not take the shape."""
    return _shares(name, params, shape, None)[0]


def _shares(
    name: str, params: Mapping[str, object], shape: Sequence[int], memory: Memory | None
) -> tuple[float, float]:
    """r of the values, and l of the lines of memory that hold them."""
    batch, channels, *rest = shape
    spatial = tuple(rest)
    ratio, virtual = _number(params, "ratio", 1), int(_number(params, "num_virtual", 0))
    real = batch - virtual
    if virtual and real < 1:
        raise NotApplicable(f"num_virtual={virtual} leaves no real row of the {batch} rows given")
    if name == "ns":
        total = batch * math.prod(spatial)
        share = max(1, round(ratio * total)) / total
        return share, lines_of_elements(share, spatial, channels, memory) if memory else share
    beta = _number(params, "beta", 1.0 if name == "vdn" else 0.5)
    rows = virtual if "vdn" in name and beta > 0 else 0
    if name == "vdn" or ("vdn" in name and beta == 1):
        return rows / batch, rows / batch
    if name.startswith("bs"):
        rows += rows_of(ratio, real)
        return rows / batch, rows / batch
    patch = patch_of(ratio, spatial)
    share = math.prod(patch) / math.prod(spatial)
    lines = lines_of_patch(patch, spatial, channels, memory) if memory else share
    return (rows + real * share) / batch, (rows + real * lines) / batch


def passes(
    name: str,
    params: Mapping[str, object],
    shape: Sequence[int],
    direction: str,
    resident: bool = False,
    memory: Memory | None = None,
) -> Passes:
    """Passes of `fwd`, `bwd` or `fwd_bwd` as the tensors lie in `memory`, or value by value.
    UnknownName for a normalizer without an entry."""
    if direction == "fwd_bwd":
        first, second = (passes(name, params, shape, d, resident, memory) for d in ("fwd", "bwd"))
        return Passes(
            first.reads + second.reads, first.writes + second.writes, first.flops + second.flops
        )
    forward = direction == "fwd"
    if name in SAMPLED:
        shares = _shares(name, params, shape, memory)
        found = _forward(*shares) if forward else _backward(*shares, str(params["backward"]))
    elif name in FULL:
        found = FULL[name][0 if forward else 1]
    else:
        raise UnknownName("normalizer", name, (*FULL, *SAMPLED), where="traffic: ")
    if resident:
        return Passes(1 if forward else 2, 1, found.flops)
    return found


def _forward(share: float, lines: float) -> Passes:
    return Passes(1 + lines, 1, MOMENTS * share + AFFINE)


def _backward(share: float, lines: float, mode: str) -> Passes:
    if mode == "detached":
        return Passes(2, 1, SUMS + 1)
    if mode == "exact":
        return Passes(4, 1, SUMS + COMBINE)
    return Passes(2 + lines + share, 1, SUMS * share + COMBINE)


def traffic(
    name: str,
    params: Mapping[str, object],
    shape: Sequence[int],
    dtype: str,
    direction: str,
    resident: bool = False,
    *,
    form: str = "contiguous",
    device: str = "cpu",
) -> Traffic:
    """Bytes and operations of one call on an input (N, C, *spatial) as it is laid out on the
    device; `params` as Normalizer.resolve gives them."""
    memory = memory_of(dtype, form, device)
    p = passes(name, params, shape, direction, resident, memory)
    values = math.prod(shape)
    size = values * memory.itemsize
    return Traffic(p.reads * size, p.writes * size, p.flops * values)


def _number(params: Mapping[str, object], name: str, default: float) -> float:
    value = params.get(name, default)
    assert isinstance(value, (int, float))
    return value
