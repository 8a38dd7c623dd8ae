"""What is sampled: boxes (a range of rows × a patch, with a corner per row), or single elements.

Draws are made on the host from a counter-based generator (Philox): a draw is a function of
(seed, step) alone, so it comes back after a resume, and no device is ever synchronised. They are
made `BLOCK` steps at a time and kept on the device, so that a step costs a slice and no transfer.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sbnbench_kernels.shares import patch_of, rows_of

__all__ = [
    "BLOCK",
    "Box",
    "draw_elements",
    "draw_patches",
    "draw_rows",
    "drawn_step",
    "patch_of",
    "rows_of",
]

BLOCK = 256
"""Steps drawn at a time: 1 MB of corners at batch 256, and 1/256 of a draw's cost a step."""

_MASK = (1 << 64) - 1


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


def draw_rows(batch: int, ratio: float, seed: int, step: int) -> Box:
    """`bs`: a random run of whole rows. Whole maps, so the patch is left to `whole_map`."""
    count = rows_of(ratio, batch)
    index, offset = divmod(step, BLOCK)
    start = _starts(seed, index, batch - count)[offset]
    return Box(start, count, None, ())


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
        corners = _centre(batch, room, device)
    else:
        index, offset = divmod(step, BLOCK)
        rows = batch if position == "per-sample" else 1
        corners = _corners(seed, index, rows, room, device)[offset].expand(batch, -1)
    return Box(0, batch, corners, patch)


def draw_elements(total: int, ratio: float, seed: int, step: int, device: torch.device) -> Tensor:
    """`ns`: (s,) int64 positions in 0 … total−1, without replacement.

    A random set is drawn once a block and turned by a random shift each step: every step's set is
    uniform among all sets of its size, and no step transfers indices to the device.
    """
    index, offset = divmod(step, BLOCK)
    count = max(1, round(ratio * total))
    base = _elements(seed, index, total, count, device)
    shift = _starts(seed ^ 0x5EED, index, total - 1)[offset]
    return (base + shift) % total


def drawn_step(step: int, redraw: int) -> int:
    """The draw in force at `step`: a new one every `redraw` steps, never with 0."""
    return step // redraw if redraw else 0


def _generator(seed: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed & _MASK, index], np.uint64)))


@lru_cache(maxsize=256)
def _starts(seed: int, index: int, room: int) -> list[int]:
    return [int(n) for n in _generator(seed, index).integers(0, room + 1, size=BLOCK)]


@lru_cache(maxsize=128)
def _corners(
    seed: int, index: int, rows: int, room: tuple[int, ...], device: torch.device
) -> Tensor:
    limits = np.array(room, dtype=np.int64) + 1
    draws = _generator(seed, index).integers(0, limits, size=(BLOCK, rows, len(room)))
    return torch.from_numpy(draws).to(device)


@lru_cache(maxsize=128)
def _centre(batch: int, room: tuple[int, ...], device: torch.device) -> Tensor:
    centre = torch.tensor([r // 2 for r in room], dtype=torch.int64, device=device)
    return centre.expand(batch, -1)


@lru_cache(maxsize=16)
def _elements(seed: int, index: int, total: int, count: int, device: torch.device) -> Tensor:
    chosen = _generator(seed, index).choice(total, size=count, replace=False, shuffle=False)
    return torch.from_numpy(np.sort(chosen)).to(device)
