"""How much of memory a sample makes it fetch. No torch here: planning and traffic need it too.

Memory comes in lines, not in values. Where a sample's values lie apart, most of a line that is
fetched for one of them is not sampled: a patch of 2×2 in contiguous maps of 7×7 is 8 % of the
values, but half of the lines of a float32 tensor.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from sbnbench.model import ITEMSIZE

LINES = {"cpu": 64, "cuda": 32}
"""Bytes that are fetched at least: a cache line of x86 and most ARM processors; the sector of
NVIDIA's (CUDA C++ Best Practices Guide, "Coalesced Access to Global Memory")."""


@dataclass(frozen=True)
class Memory:
    """How a tensor lies in memory: bytes a value and a line, whether channels are side by side."""

    itemsize: int
    side_by_side: bool
    line: int

    def run(self, channels: int, spatial: Sequence[int]) -> int:
        """Bytes that lie together for one position."""
        return self.itemsize * (channels if self.side_by_side or not spatial else 1)


def memory_of(dtype: str, form: str, device: str) -> Memory:
    """That of a tensor as a workload describes it."""
    return Memory(ITEMSIZE[dtype], form == "channels_last", LINES[device.partition(":")[0]])


@lru_cache(maxsize=1024)
def lines_of_patch(
    patch: tuple[int, ...], spatial: tuple[int, ...], channels: int, memory: Memory
) -> float:
    """The share of a tensor's lines that a patch of its maps touches, the mean over all corners.

    A line is counted once for all maps that it holds, whose patches have the same corner.
    """
    run, line = memory.run(channels, spatial), memory.line
    size = math.prod(spatial) * run
    maps = line // math.gcd(size, line)  # after so many a map starts at a line again
    strides = [run * math.prod(spatial[d + 1 :]) for d in range(len(spatial))]
    rows = [
        k * size + sum(i * stride for i, stride in zip(place, strides, strict=False))
        for k in range(maps)
        for place in product(*(range(p) for p in patch[:-1]))
    ]
    starts = _starts(patch, spatial, strides, line)
    touched = sum(
        count * _touched([start + row for row in rows], patch[-1] * run, line)
        for start, count in starts.items()
    )
    return touched * line / (starts.total() * maps * size)


def _starts(
    patch: Sequence[int], spatial: Sequence[int], strides: Sequence[int], line: int
) -> Counter[int]:
    """How many corners lie at each byte of a line."""
    found = Counter({0: 1})
    for p, size, stride in zip(patch, spatial, strides, strict=True):
        steps = Counter(k * stride % line for k in range(size - p + 1))
        both: Counter[int] = Counter()
        for (a, m), (b, n) in product(found.items(), steps.items()):
            both[(a + b) % line] += m * n
        found = both
    return found


def _touched(rows: Sequence[int], length: int, line: int) -> int:
    """Lines that pieces of `length` bytes touch which start at `rows`, ascending."""
    count, free = 0, 0  # lines before `free` are counted
    for row in rows:
        begin, end = max(row // line, free), (row + length - 1) // line + 1
        count, free = count + max(0, end - begin), max(free, end)
    return count


def lines_of_elements(ratio: float, spatial: Sequence[int], channels: int, memory: Memory) -> float:
    """The share of a tensor's lines that positions touch which are drawn one by one with `ratio`,
    each for all channels: 1 − (1 − ratio)^k, k the positions that a line overlaps."""
    run, line = memory.run(channels, spatial), memory.line
    overlapped = (line + run - math.gcd(run, line)) / run
    if spatial and not memory.side_by_side:  # in one line, maps repeat the same positions
        overlapped = min(overlapped, math.prod(spatial))
    return 1.0 - math.pow(1 - ratio, overlapped)
