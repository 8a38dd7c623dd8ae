"""Which values estimate a channel's statistics, and with what weight.

A sampler turns (shape, seed, step) into a sample: one or more shares, each a part of x, the weight
its moments carry, and how many values it stands for. Every backend of the sampled family
normalizes with

    μ = Σ_k w_k·mean_k,    σ² = Σ_k w_k·(var_k + (mean_k − μ)²),    Σ_k w_k = 1,

which for one share is its mean and biased variance, and for a virtual and a real share the moments
of their mixture, σ² = βσ_v² + (1−β)σ_s² + β(1−β)(μ_v−μ_s)². A value i of share k carries
ω_i = w_k/s_k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sbnbench.errors import NotApplicable
from sbnbench.model import format_param
from sbnbench_kernels.sampling import (
    Box,
    draw_elements,
    draw_patches,
    draw_rows,
    drawn_step,
    patch_of,
    rows_of,
)

Description = tuple[float, tuple[str, ...]]
"""The share s/n of the values that is sampled, and what a reader of a result must know."""


class Elements(NamedTuple):
    """Single positions, the same for every channel: (s,) int64, flat over (N, *spatial)."""

    positions: Tensor


class Share(NamedTuple):
    """A part of x. `size` s_k counts its values a channel, `stands_for` those it is scaled up to
    where a sum over everything is estimated from it."""

    part: Box | Elements
    weight: float
    size: int
    stands_for: int

    def is_whole(self, batch: int) -> bool:
        """Whether it is all of an input of `batch` rows."""
        return isinstance(self.part, Box) and self.part.corners is None and self.part.count == batch


Sample = tuple[Share, ...]


class Sampler(Protocol):
    """`draw` depends on its arguments alone: the same (seed, step) gives the same sample."""

    def draw(self, shape: Sequence[int], seed: int, step: int, device: torch.device) -> Sample: ...

    def describe(self, shape: Sequence[int]) -> Description: ...


def require_variance(sample: Sample, shape: Sequence[int]) -> None:
    """Raises NotApplicable, in torch's words, where the sample has one value a channel."""
    if sum(share.size for share in sample) < 2:
        size = torch.Size(shape)
        raise NotApplicable(
            f"Expected more than 1 value per channel when training, got input size {size}"
        )


def bessel(sample: Sample) -> float:
    """1/(1−Σω²), which makes a sample's biased variance an unbiased one: s/(s−1) for one share."""
    return 1 / (1 - sum(share.weight**2 / share.size for share in sample))


@dataclass(frozen=True)
class Everything:
    """`bn`: all values."""

    def draw(self, shape: Sequence[int], seed: int, step: int, device: torch.device) -> Sample:
        return _rows(shape, 0, shape[0])

    def describe(self, shape: Sequence[int]) -> Description:
        return 1.0, ()


@dataclass(frozen=True)
class RandomElements:
    """`ns`: a share `ratio` of the positions, without replacement."""

    ratio: float
    redraw: int

    def draw(self, shape: Sequence[int], seed: int, step: int, device: torch.device) -> Sample:
        total = _values(shape)
        if self._count(total) == total:
            return _rows(shape, 0, shape[0])
        step = drawn_step(step, self.redraw)
        positions = draw_elements(total, self.ratio, seed, step, device)
        return (Share(Elements(positions), 1.0, positions.numel(), total),)

    def describe(self, shape: Sequence[int]) -> Description:
        total = _values(shape)
        return _described(self.ratio, self._count(total), total, f"{total} values", "everything")

    def _count(self, total: int) -> int:
        return max(1, round(self.ratio * total))


@dataclass(frozen=True)
class RandomRows:
    """`bs`: a random run of whole samples of the batch."""

    ratio: float
    redraw: int

    def draw(self, shape: Sequence[int], seed: int, step: int, device: torch.device) -> Sample:
        box = draw_rows(shape[0], self.ratio, seed, drawn_step(step, self.redraw))
        return _rows(shape, box.start, box.count)

    def describe(self, shape: Sequence[int]) -> Description:
        batch = shape[0]
        count = rows_of(self.ratio, batch)
        return _described(self.ratio, count, batch, f"batch {batch}", "the whole batch")


@dataclass(frozen=True)
class RandomPatches:
    """`fs`: a small patch of each feature map of every sample."""

    ratio: float
    redraw: int
    position: str

    def draw(self, shape: Sequence[int], seed: int, step: int, device: torch.device) -> Sample:
        batch, spatial = shape[0], tuple(shape[2:])
        if patch_of(self.ratio, spatial) == spatial:
            return _rows(shape, 0, batch)
        step = drawn_step(step, self.redraw)
        box = draw_patches(batch, spatial, self.ratio, self.position, seed, step, device)
        return (Share(box, 1.0, box.size, _values(shape)),)

    def describe(self, shape: Sequence[int]) -> Description:
        spatial = tuple(shape[2:])
        count, total = math.prod(patch_of(self.ratio, spatial)), math.prod(spatial)
        size = "×".join(map(str, spatial))
        return _described(self.ratio, count, total, f"a {size} map", "the whole map")


@dataclass(frozen=True)
class VirtualRows:
    """`vdn`: the last `num_virtual` rows, which the caller has appended."""

    num_virtual: int

    def draw(self, shape: Sequence[int], seed: int, step: int, device: torch.device) -> Sample:
        real = _real(shape, self.num_virtual)
        (share,) = _rows(shape, real[0], self.num_virtual)
        return (share._replace(stands_for=_values(shape)),)

    def describe(self, shape: Sequence[int]) -> Description:
        _real(shape, self.num_virtual)
        return self.num_virtual / shape[0], ()


@dataclass(frozen=True)
class Mixture:
    """`bs+vdn`, `fs+vdn`: weight `beta` on the virtual rows, the rest on a sample of the real."""

    real: Sampler
    beta: float
    num_virtual: int

    def draw(self, shape: Sequence[int], seed: int, step: int, device: torch.device) -> Sample:
        real = _real(shape, self.num_virtual)
        if self.beta == 1:
            return VirtualRows(self.num_virtual).draw(shape, seed, step, device)
        shares = tuple(
            share._replace(weight=(1 - self.beta) * share.weight)
            for share in self.real.draw(real, seed, step, device)
        )
        if self.beta == 0:
            return shares
        (virtual,) = _rows(shape, real[0], self.num_virtual)
        return (*shares, virtual._replace(weight=self.beta))

    def describe(self, shape: Sequence[int]) -> Description:
        real = _real(shape, self.num_virtual)
        share, notes = self.real.describe(real)
        return (share * real[0] + self.num_virtual) / shape[0], notes


def _values(shape: Sequence[int]) -> int:
    return shape[0] * math.prod(shape[2:])


def _rows(shape: Sequence[int], start: int, count: int) -> Sample:
    size = count * math.prod(shape[2:])
    return (Share(Box(start, count, None, ()), 1.0, size, _values(shape)),)


def _real(shape: Sequence[int], num_virtual: int) -> tuple[int, ...]:
    if shape[0] <= num_virtual:
        raise NotApplicable(
            f"num_virtual={num_virtual} leaves no real row of the {shape[0]} rows given"
        )
    return (shape[0] - num_virtual, *shape[1:])


def _described(ratio: float, taken: int, total: int, of: str, whole: str) -> Description:
    share = taken / total
    asked = f"ratio {format_param(ratio)} of {of}"
    if share == 1 and ratio < 1:
        return share, (f"{asked} takes {whole}: no sampling",)
    if not 0.8 < share / ratio < 1.25:
        return share, (f"{asked} becomes {share:.3g}: {taken} of {total}",)
    return share, ()
