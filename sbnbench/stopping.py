"""When to stop: rounds in a process, processes in a measurement, loops in a sample.

Rules over numbers; the caller owns the clock and asks as often as it likes. `Precision` stops when
the interval is narrow or time is up, never because a difference became significant. `UntilClear`,
for gates, stops when the verdict is clear; what that does to false alarms is part of
`python -m sbnbench.simulate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
from scipy import stats

from sbnbench.model import Estimate
from sbnbench.statistics import Array, decide, ratio_of, spread, standard_error
from sbnbench.units import percent

CONFIRM = 3
"""Samples that must all be long enough: a preemption makes a short one look long."""

OVERHEAD = 0.001
"""Largest share of a sample that the clock may blur."""

MOST_LOOPS = 1 << 30


class Stop(msgspec.Struct, frozen=True):
    """That it is enough, and why. `reached`: what was asked for, not merely the end of time."""

    reached: bool
    reason: str


class Precision(msgspec.Struct, frozen=True):
    """Measure until the interval's relative half-width is `target`, within time and processes.

    `max_seconds` is for all processes together; of it, each of the first `min_processes` has an
    equal share, and what they leave over goes to further ones.
    """

    target: float = 0.01
    min_rounds: int = 10
    max_seconds: float = 1.5
    min_processes: int = 5
    max_processes: int = 12
    level: float = 0.95

    @property
    def process_seconds(self) -> float:
        """A process's share of the time."""
        return self.max_seconds / self.min_processes

    @property
    def rounds_error(self) -> float:
        """Standard error of a process's centre that is good enough.

        With it, and nothing else, `min_processes` reach half the target: rounds then make up a
        quarter of the variance that the target allows, and the rest is left to placement, which
        more rounds cannot reduce.
        """
        n = max(2, self.min_processes)
        quantile = float(stats.t.ppf((1 + self.level) / 2, n - 1))
        return self.target / 2 * math.sqrt(n) / quantile

    def enough_rounds(self, ratios: Array, seconds: float) -> Stop | None:
        """Whether this process has measured enough of one contender; None: go on.

        `ratios` are the log-ratios of this process so far, `seconds` what they took. With several
        contenders in a block, go on while any of them gets None.
        """
        if len(ratios) < self.min_rounds:
            return None
        error = standard_error(ratios)
        if error <= self.rounds_error:
            return Stop(True, f"rounds are precise to {percent(error)}")
        if seconds >= self.process_seconds:
            return Stop(False, f"time is up with rounds precise to {percent(error)}")
        return None

    def enough_processes(self, processes: Sequence[Array], seconds: float) -> Stop | None:
        """Whether another process is unnecessary or too much; None: start one.

        `processes` are the log-ratios of one contender, one array a process, `seconds` what all of
        them took.
        """
        if len(processes) < self.min_processes:
            return None
        estimate = ratio_of(processes, self.level)
        if done := self.judge(estimate):
            return Stop(True, done)
        if len(processes) < self.max_processes and seconds < self.max_seconds:
            return None
        end = "time is up" if seconds >= self.max_seconds else f"{len(processes)} processes"
        found = spread(processes)
        if found.by_process:
            wish = (
                f"processes disagree (standard deviation {percent(found.between)}, of which rounds "
                f"explain {percent(found.within)}); more processes are wanted"
            )
        else:
            wish = "more time is wanted for each process"
        return Stop(False, f"{end}; precise to {percent(half_width(estimate))}; {wish}")

    def judge(self, estimate: Estimate) -> str:
        """Why this estimate is good enough; empty where it is not."""
        half = half_width(estimate)
        return f"precise to {percent(half)}" if half <= self.target else ""


class UntilClear(Precision, frozen=True):
    """Measure until the verdict at `threshold` is not UNCLEAR, within time and processes.

    Rounds are precise enough at half the threshold, which is `target` here.
    """

    target: float = 0.025
    max_seconds: float = 20.0
    threshold: float = 0.05

    @classmethod
    def at(cls, threshold: float, max_seconds: float = 20.0) -> UntilClear:
        return cls(threshold=threshold, target=threshold / 2, max_seconds=max_seconds)

    def judge(self, estimate: Estimate) -> str:
        verdict, reason = decide(estimate, self.threshold)
        return "" if verdict == "UNCLEAR" else f"{verdict}: {reason}"


def half_width(estimate: Estimate) -> float:
    """Relative half-width of a ratio's interval, in logs; infinite without an interval."""
    if estimate.low is None or estimate.high is None:
        return math.inf
    return math.log(estimate.high / estimate.low) / 2


def calibrate(time_of: Callable[[int], float], target: float, resolution: float) -> int:
    """Loops a sample: the first power of two whose samples last `target` seconds or more.

    `time_of(loops)` runs that many calls and gives the seconds they took. `resolution` is the
    smallest step of the clock together with the cost of reading it; samples also last long enough
    that it is at most 0.1 % of them. Raises ValueError where no number of loops is enough.
    """
    wanted = max(target, resolution / OVERHEAD)
    loops = 1
    while loops <= MOST_LOOPS:
        for _ in range(CONFIRM):
            taken = time_of(loops)
            if taken < wanted:
                break
        else:
            return loops
        # Calls never speed up with their number, so nothing that is long enough is jumped over.
        loops <<= max(1, math.floor(math.log2(wanted / taken))) if taken > 0 else 1
    raise ValueError(f"{MOST_LOOPS} loops take less than {wanted:g} s; the clock does not advance")
