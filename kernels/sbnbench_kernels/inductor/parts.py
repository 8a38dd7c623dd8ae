"""Parts of a tensor inside compiled code, where they lie given by tensors.

A position that were a number would be compiled in. So a part is split into its form, which is
compiled in, and a tensor that says where it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, reduce
from typing import NamedTuple

import torch
from torch import Tensor

from sbnbench_kernels.inductor.pieces import WIDE, Pieces, pieces_of
from sbnbench_kernels.inductor.sums import Chosen, buffer
from sbnbench_kernels.samplers import Elements, Sample, Share


class Form(NamedTuple):
    """A share without its position. `patch` None: single elements; `count` rows else, of which
    the whole map where `patch` is empty."""

    weight: float
    size: int
    stands_for: int
    whole: bool
    start: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    patch: tuple[int, ...] | None

    def copies(self, t: Tensor) -> bool:
        """Whether `take` copies the values, as they lie scattered in t: a copy worth keeping."""
        return self.patch is None or (bool(self.patch) and not _side_by_side(t))

    def is_wide(self) -> bool:
        """Whether it has rows that are worth a vector, though they do not fill it."""
        return bool(self.patch and self.patch[-1] >= WIDE)

    def pieces(self, t: Tensor) -> Pieces | None:
        """What is read in the place of its patches in t, if not they alone."""
        return pieces_of(self.patch, t) if self.patch else None

    def chosen(self, pieces: Pieces | None, where: Tensor | None) -> Chosen | None:
        """Which of the values in `pieces` are the part's; None: all that was taken."""
        if pieces is None:
            return None
        assert where is not None
        return pieces.chosen(where)

    def take(self, t: Tensor, where: Tensor | None, pieces: Pieces | None) -> Tensor:
        """The part's values, channels in dimension 1; or the `pieces` that they are in."""
        if self.whole:
            return t
        assert where is not None
        if self.patch is None:
            maps = t.reshape(*t.shape[:2], -1)
            row, place = buffer(where // maps.shape[2]), buffer(where % maps.shape[2])
            return buffer(_index(maps, [row, None, place]))
        rows = torch.arange(self.count, device=t.device)
        if not self.patch:
            return _index(t, [rows + where])
        rows = rows + self.start
        if pieces:
            return pieces.take(t, rows, where)
        if not _side_by_side(t):
            windows, steps = _windows(t, self.patch)
            moved = (c * step for c, step in zip(where.unbind(1), steps, strict=True))
            return buffer(_index(windows, [rows, None, buffer(reduce(torch.add, moved))]))
        windows = t
        for dim, size in enumerate(self.patch, start=2):
            windows = windows.unfold(dim, size, 1)
        taken = _index(windows, [rows, None, *where.unbind(1)])
        # No copy: it says in what order the sums go.
        return taken.movedim(1, -1).contiguous().movedim(-1, 1)

    def mask(self, t: Tensor, where: Tensor | None) -> Tensor:
        """Where t is inside the part: bool, (N, 1, *spatial)."""
        assert where is not None
        shape = (t.shape[0], 1, *t.shape[2:])
        if self.patch is None:
            flat = torch.zeros(shape, dtype=torch.bool, device=t.device).view(-1)
            return flat.index_fill(0, where, True).view(shape)
        row = _along(t, 0)
        if not self.patch:
            return (row >= where) & (row < where + self.count)
        inside = (row >= self.start) & (row < self.start + self.count)
        missing = t.shape[0] - self.start - self.count
        where = torch.nn.functional.pad(where, (0, 0, self.start, missing))
        for axis, size in enumerate(self.patch):
            place, corner = _along(t, 2 + axis), where[:, axis].view(-1, *(1,) * (t.dim() - 1))
            inside = inside & (place >= corner) & (place < corner + size)
        return inside


def form_of(share: Share, batch: int) -> Form:
    """What is compiled in."""
    part = share.part
    common = (share.weight, share.size, share.stands_for, share.is_whole(batch))
    if isinstance(part, Elements):
        return Form(*common, 0, 0, None)
    if part.corners is None:
        return Form(*common, 0, part.count, ())
    return Form(*common, part.start, part.count, part.patch)


def positions_of(sample: Sample, x: Tensor) -> Iterator[Tensor]:
    """What is handed over: a tensor for each share that is not everything."""
    for share in sample:
        part = share.part
        if isinstance(part, Elements):
            yield part.positions
        elif part.corners is not None:
            yield part.corners
        elif part.count != x.shape[0]:
            yield _numbers(x.shape[0], x.device)[part.start]


def _side_by_side(t: Tensor) -> bool:
    return t.stride(1) < t.stride(-1)


def _windows(t: Tensor, patch: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """(N, C, first, *patch), every patch by the distance of its corner from the map's, and how far
    apart neighbours are in each direction. One position to look up is fewer instructions a value
    than one for each direction, and as many more lines of memory under way."""
    steps = t.stride()[2:]
    room = sum((n - p) * k for n, p, k in zip(t.shape[2:], patch, steps, strict=True))
    shape = (*t.shape[:2], room + 1, *patch)
    return t.as_strided(shape, (*t.stride()[:2], 1, *steps)), steps


def _along(t: Tensor, dim: int) -> Tensor:
    shape = [1] * t.dim()
    shape[dim] = t.shape[dim]
    return torch.arange(t.shape[dim], device=t.device).view(shape)


def _index(t: Tensor, indices: list[Tensor | None]) -> Tensor:
    taken: Tensor = torch.ops.aten._unsafe_index(t, indices)
    return taken


@lru_cache(maxsize=64)
def _numbers(count: int, device: torch.device) -> tuple[Tensor, ...]:
    """0 … count−1, each on the device."""
    return torch.arange(count, device=device).unbind()
