"""Synthetic activations that are as awkward as real ones.

Independent standard normal inputs flatter a sampled normalizer: with γ=1 and b=0 a layer that
does nothing passes for BatchNorm, and every sample of them is as good as any other. Here, for
channel c of row n at position p:

    x = offset_c + scale_c · f_c( √ρ_c · r_nc + √(1−ρ_c) · z_ncp )

r is standard normal, one value a row and channel: ρ_c is the intraclass correlation. z is standard
normal at every position and correlated over about `length_c` positions. f_c gives heavy tails
(kurtosis 6.6) or, in one channel of eight, is nearly dead: a rectifier that opens for one value in
fifteen, with a leak of 1 % so that no channel is constant. Offsets reach several deviations.

Everything is a function of integers and of the channel count and sizes; numbers are made on the
CPU by element-wise operations only, so that they do not depend on the number of threads.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_CUBIC = 0.1
_OPENS_AT, _LEAK, _DEAD_SHARE = 1.5, 0.01, 8
_LENGTHS = (1, 2, 4, 8)
_CHUNK = 1 << 22
"""Values made at a time: bounds the memory that intermediate results take."""


def generator(*key: object) -> torch.Generator:
    """A CPU generator that depends on `key` alone."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


@cache
def code_hash() -> str:
    """Changes with this file: rows kept on disk were made by this very recipe."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Channels:
    """The distribution of each channel, itself drawn from `seed`."""

    channels: int
    spatial: tuple[int, ...]
    seed: int

    @cached_property
    def _draws(self) -> Tensor:
        return torch.rand(5, self.channels, generator=generator("channels", self.seed))

    @cached_property
    def scale(self) -> Tensor:
        """(C,) log-normal, 90 % between 0.27 and 3.7."""
        return torch.exp(0.8 * _normal(self._draws[0]))

    @cached_property
    def offset(self) -> Tensor:
        """(C,) normal, two scales wide."""
        return 2.0 * self.scale * _normal(self._draws[1])

    @cached_property
    def correlation(self) -> Tensor:
        """ρ, (C,) in 0.05 … 0.4, about what a trained network shows."""
        return 0.05 + 0.35 * self._draws[2]

    @cached_property
    def length(self) -> Tensor:
        """(C,) int: correlation length in positions, at most half of the smallest size."""
        limit = max(1, min(self.spatial, default=1) // 2)
        choices = torch.tensor(_LENGTHS).clamp(max=limit)
        return choices[(self._draws[3] * len(_LENGTHS)).long()]

    @cached_property
    def nearly_dead(self) -> Tensor:
        """(C,) bool, true for ⌊C/8⌋ channels."""
        return self._draws[4].argsort().argsort() < self.channels // _DEAD_SHARE

    @cached_property
    def mean(self) -> Tensor:
        """E x, (C,)."""
        return self.offset + self.scale * torch.where(self.nearly_dead, *_expected(1))

    @cached_property
    def deviation(self) -> Tensor:
        """√Var x, (C,)."""
        dead, heavy = (
            math.sqrt(second - first**2)
            for first, second in zip(_expected(1), _expected(2), strict=True)
        )
        return self.scale * torch.where(self.nearly_dead, dead, heavy)

    def rows(self, count: int, *key: object) -> Tensor:
        """(count, C, *spatial) float32, a function of `key`."""
        size = self.channels * math.prod(self.spatial)
        step = max(1, _CHUNK // size)
        out = torch.empty(count, self.channels, *self.spatial)
        for start in range(0, count, step):
            self._fill(out[start : start + step], generator("rows", self.seed, *key, start))
        return out

    def virtual(self, count: int, *key: object) -> Tensor:
        """(count, C, *spatial): Gaussian with the channel's mean and deviation, position by
        position independent. The first rows of a larger count are those of a smaller one."""
        out = torch.empty(count, self.channels, *self.spatial)
        for index, row in enumerate(out):
            row.normal_(generator=generator("virtual", self.seed, *key, index))
        return out.mul_(self._wide(self.deviation)).add_(self._wide(self.mean))

    def _fill(self, out: Tensor, source: torch.Generator) -> None:
        rho = self._wide(self.correlation)
        row = torch.randn(*out.shape[:2], generator=source).reshape(*out.shape[:2], *self._ones)
        for length in sorted(set(self.length.tolist())):
            chosen = (self.length == length).nonzero().flatten()
            out[:, chosen] = _field(len(out), len(chosen), self.spatial, length, source)
        out.mul_((1 - rho).sqrt()).add_(rho.sqrt() * row)
        shaped = torch.empty_like(out)
        dead = self.nearly_dead
        shaped[:, ~dead] = _heavy(out[:, ~dead])
        shaped[:, dead] = _dead(out[:, dead])
        out.copy_(shaped.mul_(self._wide(self.scale)).add_(self._wide(self.offset)))

    @property
    def _ones(self) -> tuple[int, ...]:
        return (1,) * len(self.spatial)

    def _wide(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *self._ones)


def _normal(uniform: Tensor) -> Tensor:
    quantiles: Tensor = torch.special.ndtri(uniform.double().clamp(1e-6, 1 - 1e-6))
    return quantiles.float()


def _heavy(z: Tensor) -> Tensor:
    return (z + _CUBIC * z**3) / math.sqrt(1 + 6 * _CUBIC + 15 * _CUBIC**2)


def _dead(z: Tensor) -> Tensor:
    return (z - _OPENS_AT).relu_().add_(z, alpha=_LEAK)


def _expected(power: int) -> tuple[float, float]:
    """E f^power for a nearly dead and for a heavy-tailed channel, by trapezoids over ±12σ."""
    z = torch.linspace(-12, 12, 48001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    dead, heavy = (float(torch.trapezoid(f(z) ** power * density, z)) for f in (_dead, _heavy))
    return dead, heavy


def _field(
    rows: int, channels: int, spatial: tuple[int, ...], length: int, source: torch.Generator
) -> Tensor:
    """Standard normal at every position: a grid `length` apart, linear in between, with the
    variance that interpolation takes away given back."""
    coarse = [(size - 1) // length + (2 if length > 1 else 1) for size in spatial]
    field = torch.randn(rows, channels, *coarse, generator=source)
    if length == 1:
        return field
    for axis, size in enumerate(spatial, start=2):
        at = np.arange(size)
        right = torch.from_numpy((at % length / length).astype(np.float32))
        norm = (right**2 + (1 - right) ** 2).sqrt()
        shape = [-1 if n == axis else 1 for n in range(field.ndim)]
        left_index = torch.from_numpy(at // length)
        left = field.index_select(axis, left_index).mul_(((1 - right) / norm).reshape(shape))
        field = field.index_select(axis, left_index + 1).mul_((right / norm).reshape(shape))
        field.add_(left)
    return field
