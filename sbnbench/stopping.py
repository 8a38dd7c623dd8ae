"""When to stop: rounds in a process, processes in a measurement, loops in a sample.

Rules over numbers; the caller owns the clock. A rule stops on precision or on time and never on
significance.
"""

from __future__ import annotations

from collections.abc import Callable

CONFIRM = 3
"""Samples that must all be long enough: a preemption makes a short one look long."""

OVERHEAD = 0.001
"""Largest share of a sample that the clock may blur."""

MOST_LOOPS = 1 << 30


def calibrate(time_of: Callable[[int], float], target: float, resolution: float) -> int:
    """Loops a sample: the first power of two whose samples last `target` seconds or more.

    `time_of(loops)` runs that many calls and gives the seconds they took. `resolution` is the
    smallest step of the clock together with its own cost; a sample also lasts long enough that it
    is at most 0.1 % of it. Raises ValueError where no number of loops is enough.
    """
    wanted = max(target, resolution / OVERHEAD)
    loops = 1
    while loops <= MOST_LOOPS:
        if all(time_of(loops) >= wanted for _ in range(CONFIRM)):
            return loops
        loops *= 2
    raise ValueError(f"{MOST_LOOPS} loops take less than {wanted:g} s; the clock does not advance")
