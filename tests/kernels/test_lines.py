"""Lines of memory that samples touch, against counting them address by address."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import product

import pytest

from sbnbench_kernels.lines import Memory, lines_of_elements, lines_of_patch, memory_of

CASES = [
    ((7, 7), (2, 2), 32, 2, 64),
    ((4, 4), (1, 1), 64, 2, 64),  # two maps a line
    ((5, 9), (2, 3), 16, 4, 64),
    ((14, 14), (3, 4), 16, 4, 32),
    ((6, 6, 6), (2, 3, 2), 8, 2, 64),
    ((40,), (5,), 16, 8, 64),
]


def addresses(
    positions: list[tuple[int, ...]], spatial: tuple[int, ...], channels: int, memory: Memory
) -> Iterator[int]:
    """The first byte of every value at the positions, in all channels of a row."""
    for place, c in product(positions, range(channels)):
        flat = 0
        for p, size in zip(place, spatial, strict=True):
            flat = flat * size + p
        index = flat * channels + c if memory.side_by_side else c * math.prod(spatial) + flat
        yield index * memory.itemsize


def share(touched: set[int], spatial: tuple[int, ...], channels: int, memory: Memory) -> float:
    return len(touched) * memory.line / (math.prod(spatial) * channels * memory.itemsize)


@pytest.mark.parametrize(("spatial", "patch", "channels", "itemsize", "line"), CASES)
@pytest.mark.parametrize("side_by_side", [False, True])
def test_patches(spatial, patch, channels, itemsize, line, side_by_side):
    memory = Memory(itemsize, side_by_side, line)
    found = []
    for corner in product(*(range(s - p + 1) for s, p in zip(spatial, patch, strict=True))):
        places = list(product(*(range(c, c + p) for c, p in zip(corner, patch, strict=True))))
        touched = {a // line for a in addresses(places, spatial, channels, memory)}
        found.append(share(touched, spatial, channels, memory))
    mean = sum(found) / len(found)
    assert lines_of_patch(patch, spatial, channels, memory) == pytest.approx(mean)


@pytest.mark.parametrize(
    ("spatial", "channels", "itemsize", "side_by_side"),
    [((12, 12), 8, 4, False), ((3, 3), 64, 2, False), ((12, 12), 24, 2, True), ((), 24, 2, False)],
)
def test_elements(spatial, channels, itemsize, side_by_side):
    memory = Memory(itemsize, side_by_side, 64)
    rows, ratio = 64, 1 / 8
    size = max(1, math.prod(spatial))
    drawn = random.Random(1)
    found = []
    for _ in range(20):
        touched = set()
        for flat in drawn.sample(range(rows * size), round(ratio * rows * size)):
            row, place = divmod(flat, size)
            for c in range(channels):
                index = place * channels + c if side_by_side else c * size + place
                touched.add((row * size * channels + index) * itemsize // 64)
        found.append(len(touched) * 64 / (rows * size * channels * itemsize))
    mean = sum(found) / len(found)
    assert lines_of_elements(ratio, spatial, channels, memory) == pytest.approx(mean, rel=0.03)


def test_what_lies_together_costs_its_values():
    memory = memory_of("float32", "channels_last", "cpu")
    assert lines_of_patch((7, 7), (28, 28), 64, memory) == pytest.approx(1 / 16)
    assert lines_of_elements(1 / 16, (28, 28), 64, memory) == pytest.approx(1 / 16)


def test_devices_have_their_lines():
    assert memory_of("bfloat16", "contiguous", "cpu") == Memory(2, False, 64)
    assert memory_of("float32", "channels_last", "cuda:1") == Memory(4, True, 32)
