"""How much of an input is sampled. No torch here: planning and traffic need it too."""

from __future__ import annotations

import math
from functools import lru_cache

from sbnbench.errors import NotApplicable


def rows_of(ratio: float, batch: int) -> int:
    """Rows that `bs` takes: the nearest whole number to ratio·batch, at least one."""
    return max(1, round(ratio * batch))


@lru_cache(maxsize=256)
def patch_of(ratio: float, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """The patch whose share of the map is nearest to `ratio` (in log), as square as it can be.

    Each side is size·ratio^(1/D), rounded down or up.
    """
    if not spatial:
        raise NotApplicable("fs needs a feature map; the input is (N, C)")
    sides: list[tuple[int, ...]] = [()]
    for size in spatial:
        ideal = size * ratio ** (1 / len(spatial))
        options = {max(1, math.floor(ideal + 1e-9)), min(size, math.ceil(ideal - 1e-9))}
        sides = [(*side, p) for side in sides for p in sorted(options)]
    wanted = ratio * math.prod(spatial)
    return min(sides, key=lambda p: (abs(math.log(math.prod(p) / wanted)), max(p) - min(p)))
