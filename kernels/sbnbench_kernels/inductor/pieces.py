"""Patches of contiguous maps that are read by whole vectors, what lies between their rows included.

A row that does not fill its vectors is read by loads that mask lanes, or value by value. From cold
memory a masked load took about twice as long as a full one (AMD EPYC, AVX-512, 2026-11-28), and
single values are an instruction each. So where rows are very short, or nearly fill their vectors,
pieces of whole vectors are read that have a row or several in them, and a table tells the values of
the patch from the others. A piece is moved back where it would reach past the end of its map.
"""

from __future__ import annotations

from functools import reduce
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from sbnbench_kernels.inductor.sums import SMALL, Chosen, buffer

VECTOR = 64
"""Bytes of a CPU's longest vectors; shorter ones divide it."""

WIDE = 6
"""Rows of patches are copied by vectors from this length on, value by value below."""

SHORT = 4
"""Rows of less than this part of a vector are very short, and those under WIDE values."""

NEARLY = 8 / 7
"""A row nearly fills its vectors if they hold at most this many times its values."""


class Pieces(NamedTuple):
    """`patch` in maps whose directions are `steps` apart, `rows` of its rows in a piece of `length`
    values, which begins at most `last` values after its map."""

    patch: tuple[int, ...]
    steps: tuple[int, ...]
    rows: int
    length: int
    last: int

    def take(self, t: Tensor, samples: Tensor, corners: Tensor) -> Tensor:
        """A copy of the pieces at the `samples`' corners: (count, C, number of pieces, length)."""
        shape = (*t.shape[:2], self.last + 1, self.length)
        windows = t.as_strided(shape, (*t.stride()[:2], 1, 1))
        channels = torch.arange(t.shape[1], device=t.device).view(1, -1, 1)
        begins, _ = self._begins(corners)
        index = [samples.view(-1, 1, 1), channels, buffer(begins).unsqueeze(1)]
        return buffer(torch.ops.aten._unsafe_index(windows, index))

    def chosen(self, corners: Tensor) -> Chosen:
        """Which values of the pieces are the patch's."""
        _, ahead = self._begins(corners)
        place = torch.arange(self.length, device=corners.device) - ahead.unsqueeze(-1)
        starts = (row * self.steps[-2] for row in range(self.rows))
        inside = ((place >= s) & (place < s + self.patch[-1]) for s in starts)
        keep = reduce(torch.logical_or, inside).float()
        return Chosen(buffer(keep.unsqueeze(1)), prod(self.patch))

    def _begins(self, corners: Tensor) -> tuple[Tensor, Tensor]:
        """Where each piece begins in its map, and how many values are ahead of its first row:
        (count, number of pieces)."""
        first = sum(c * s for c, s in zip(corners.unbind(1), self.steps, strict=True))
        assert isinstance(first, Tensor)
        first = first.unsqueeze(1)
        for size, step in zip(self.patch[:-2], self.steps[:-2], strict=True):
            first = _each(first, size, step)
        first = _each(first, self.patch[-2] // self.rows, self.rows * self.steps[-2])
        begins = first.clamp(max=self.last)
        return begins, first - begins


def pieces_of(patch: tuple[int, ...], t: Tensor) -> Pieces | None:
    """How `patch` is read from t's maps; None: its rows are better read one by one."""
    maps, steps = t.shape[2:], t.stride()[2:]
    dense = tuple(prod(maps[i + 1 :]) for i in range(len(maps)))
    if len(patch) < 2 or prod(patch) < SMALL or steps != dense:
        return None
    lanes = VECTOR // t.element_size()
    found = [
        Pieces(patch, steps, rows, length, prod(maps) - length)
        for rows in range(1, patch[-2] + 1)
        if patch[-2] % rows == 0
        and (length := _filled((rows - 1) * steps[-2] + patch[-1], lanes)) <= prod(maps)
    ]
    if patch[-1] < max(WIDE, lanes // SHORT):
        return min(found, key=lambda p: p.length // p.rows, default=None)
    filled = _filled(patch[-1], lanes)
    return found[0] if found and filled <= NEARLY * patch[-1] else None


def _each(first: Tensor, count: int, step: int) -> Tensor:
    """(n, k·count): `count` places, a step apart, for each of (n, k)."""
    return (first.unsqueeze(2) + torch.arange(count, device=first.device) * step).flatten(1)


def _filled(values: int, lanes: int) -> int:
    return -(-values // lanes) * lanes
