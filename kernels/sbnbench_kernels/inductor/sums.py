"""Sums and moments a channel, in the order in which memory lies.

A reduction over all of a channel at once would jump through memory channel by channel. Instead
tiles are reduced first: the values of a channel in one map where a map is contiguous, at one place
of all maps where maps are small, in a few neighbouring positions where the channels lie side by
side. Tiles follow each other in memory, keep all threads busy at any number of channels, and their
second pass finds them in the cache. What is left is small and is merged exactly: with equal tiles,
the mean of means, and the mean of variances plus the variance of means.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sbnbench_kernels.eager.arithmetic import accumulator, column

ROWS = 16
"""About so many positions in a tile of channels side by side: each is a stream to prefetch."""

FEW = 4
"""Under so many positions, where their number has no other divisor, all of them are one tile."""

SMALL = 32
"""Maps under this size are not worth a tile each, whose lanes are added up at its end."""


class Chosen(NamedTuple):
    """Which of the values count where more were read than were drawn: those where `keep` is above
    0, which are `size` in each tile. The others are anything, NaN as well."""

    keep: Tensor
    size: int


def moments(values: Tensor, patches: bool, chosen: Chosen | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance a channel, in two passes over each tile.

    `patches` says that the maps were cut out: neighbouring positions are then no neighbours.
    """
    tiles, inside, across = _tiles(values.to(accumulator(values)), patches)
    size = chosen.size if chosen else math.prod(tiles.shape[d] for d in inside)
    means = _only(tiles, chosen).sum(inside, keepdim=True) / size
    variances = _only(tiles - means, chosen).square().sum(inside, keepdim=True) / size
    count = means.numel() // values.shape[1]
    if count == 1:
        return means.flatten(), variances.flatten()
    mean = means.sum(across, keepdim=True) / count
    between = (means - mean).square()
    return mean.flatten(), (variances + between).sum(across).flatten() / count


def sums(
    dy: Tensor, x: Tensor, mean: Tensor, patches: bool = False, chosen: Chosen | None = None
) -> tuple[Tensor, Tensor]:
    """Σ dy and Σ dy·(x−μ) a channel."""
    dy = dy.to(mean.dtype)
    _, inside, _ = _tiles(x, patches)
    centre = column(mean, x)
    # A mean for each tile: both sums then run over the same loops, and dy is read once for both.
    if inside[0] == 2:
        centre = buffer(centre.expand(*x.shape[:2], *centre.shape[1:]))
    elif inside[0] == 0:
        centre = buffer(centre.expand(x.shape[1:]))
    weighted = dy * (x - centre)
    return _sum(_only(dy, chosen), patches), _sum(_only(weighted, chosen), patches)


def _sum(t: Tensor, patches: bool) -> Tensor:
    """Σ over all but dimension 1."""
    tiles, inside, across = _tiles(t, patches)
    partial = tiles.sum(inside, keepdim=True)
    return (partial.sum(across) if across else partial).flatten()


def _only(t: Tensor, chosen: Chosen | None) -> Tensor:
    return torch.where(chosen.keep > 0, t, 0.0) if chosen else t


def buffer(t: Tensor) -> Tensor:
    """t, computed once and kept. Inductor would compute it anew for every value that needs it."""
    t = t.contiguous()
    return torch.as_strided(t, t.shape, t.stride())


def _tiles(t: Tensor, patches: bool) -> tuple[Tensor, list[int], list[int]]:
    """t as a view in equal tiles, the dimensions inside a tile, and those across the tiles."""
    space = list(range(2, t.dim()))
    side_by_side = not space or t.stride(1) < t.stride(-1)
    if side_by_side and not patches:
        rows = t.movedim(1, -1).reshape(-1, t.shape[1])
        size = max(k for k in range(1, 2 * ROWS) if rows.shape[0] % k == 0)
        size = size if size >= FEW else rows.shape[0]
        return rows.reshape(-1, size, t.shape[1]), [1], [0, 1]
    if side_by_side or math.prod(t.shape[2:]) >= SMALL:
        return t, space, [0, *space]
    return t, [0], [0, *space]
