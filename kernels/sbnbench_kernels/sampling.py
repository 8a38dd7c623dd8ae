"""What is sampled: boxes (a range of rows × a patch, with a corner per row), or single elements.

A draw is a function of (seed, step) alone; `draws` makes the random numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sbnbench_kernels import draws, shares
from sbnbench_kernels.shares import rows_of

__all__ = [
    "Box",
    "draw_elements",
    "draw_patches",
    "draw_rows",
    "drawn_step",
    "patch_of",
    "rows_of",
]


class Box(NamedTuple):
    """Rows `start … start+count−1`, and of each the patch at its own corner.

    `corners` is (count, D) int64 on the device, or None where the patch is the whole map.
    """

    start: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    corners: Tensor | None
    patch: tuple[int, ...]

    @property
    def size(self) -> int:
        """s: values a channel."""
        return self.count * math.prod(self.patch)


def patch_of(ratio: float, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """As in `shares`, where a compiler warns that it passes the cache by."""
    wanted = shares.patch_of
    return (wanted.__wrapped__ if torch.compiler.is_compiling() else wanted)(ratio, spatial)


def draw_rows(batch: int, ratio: float, seed: int, step: int) -> Box:
    """`bs`: a random run of whole rows. Whole maps, so the patch is left to `whole_map`."""
    count = rows_of(ratio, batch)
    return Box(draws.start(seed, step, batch - count), count, None, ())


def draw_patches(
    batch: int,
    spatial: tuple[int, ...],
    ratio: float,
    position: str,
    seed: int,
    step: int,
    device: torch.device,
) -> Box:
    """`fs`: a patch of every row.

    position: `per-sample`, a corner for each row; `shared`, one corner for all rows;
    `fixed`, the centre of the map, always.
    """
    patch = patch_of(ratio, spatial)
    room = tuple(size - p for size, p in zip(spatial, patch, strict=True))
    if position == "fixed":
        centre = _centre if torch.compiler.is_compiling() else _kept_centre
        return Box(0, batch, centre(batch, room, device), patch)
    corners = draws.corners(seed, step, batch, room, device, shared=position == "shared")
    return Box(0, batch, corners, patch)


def draw_elements(total: int, ratio: float, seed: int, step: int, device: torch.device) -> Tensor:
    """`ns`: (s,) int64 positions in 0 … total−1, without replacement."""
    return draws.elements(seed, step, total, max(1, round(ratio * total)), device)


def drawn_step(step: int, redraw: int) -> int:
    """The draw in force at `step`: a new one every `redraw` steps, never with 0."""
    return step // redraw if redraw else 0


def _centre(batch: int, room: tuple[int, ...], device: torch.device) -> Tensor:
    sides = [torch.full((batch,), r // 2, dtype=torch.int64, device=device) for r in room]
    return torch.stack(sides, 1)


_kept_centre = draws.kept(128)(_centre)
