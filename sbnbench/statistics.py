"""Ratios, times and verdicts from paired samples, with intervals that own up to both levels.

The data of one contender: `times[p][i]`, seconds a call, in process p and round i; the baseline's
`times[p][i]` was taken right next to it. One observation is log(baseline/contender).

Within a process, rounds are summed up by the Hodges–Lehmann estimator; processes, each with one
number, by a t interval. What one process cannot see (its placement in memory) is thereby in the
interval, and so is whatever makes rounds depend on each other. docs/how-the-numbers-are-made.md
gives the reasons and the simulated coverage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sbnbench.model import Estimate

Array = NDArray[np.float64]
Times = Sequence[Sequence[float]]
Verdict = Literal["FASTER", "SLOWER", "SAME", "UNCLEAR"]

LAGS = 256
"""Partners of each round in the Hodges–Lehmann estimator: all of them up to 512 rounds."""

STRETCHES = 10
"""Consecutive stretches that one process's rounds are cut into to see how well they agree."""


def log_ratios(baseline: Times, contender: Times) -> list[Array]:
    """log(baseline/contender) of each round, one array a process; above 0 is faster.

    Raises ValueError where the two are not paired or a time is not a positive number.
    """
    if len(baseline) != len(contender):
        raise ValueError(
            f"{len(baseline)} processes of the baseline, {len(contender)} of the other"
        )
    return [b - c for b, c in zip(_logs(baseline), _logs(contender), strict=True)]


def centre(x: Array) -> float:
    """Hodges–Lehmann: the median of the means of all pairs of x.

    Up to 29 % of the rounds can be disturbed at will; unlike the median it does not fall between
    the two humps that come from a contender being first or second in its pair.
    """
    n = len(x)
    lags = np.unique(np.linspace(0, n // 2, LAGS + 1).round().astype(int))
    return float(np.median((x + x[(np.arange(n) + lags[:, None]) % n]) / 2))


def paired_ratio(baseline: Times, contender: Times, level: float = 0.95) -> Estimate:
    """Ratio baseline/contender of times, above 1 where the contender is faster, with interval."""
    value, half = _two_levels(log_ratios(baseline, contender), level)
    return Estimate(math.exp(value), math.exp(value - half), math.exp(value + half), "1", level)


def location(times: Times, level: float = 0.95) -> Estimate:
    """Typical time of a call in seconds. Context only: it holds for the minutes it was taken in."""
    value, half = _two_levels(_logs(times), level)
    return Estimate(math.exp(value), math.exp(value - half), math.exp(value + half), "s", level)


def decide(estimate: Estimate, threshold: float) -> tuple[Verdict, str]:
    """Verdict on a ratio at a threshold (0.05: five per cent), with its reason.

    FASTER, SLOWER: the estimate is beyond the threshold and the interval excludes 1.
    SAME: the whole interval is within the threshold. UNCLEAR: everything else.
    In logs, so that ×1.05 and ÷1.05 are equally far.
    """
    if threshold <= 0:
        raise ValueError("the threshold must be above 0")
    low, high = estimate.low, estimate.high
    if low is None or high is None:
        return "UNCLEAR", "there is no interval"
    edge = 1 + threshold
    if estimate.value >= edge and low > 1:
        return "FASTER", f"faster by more than {threshold:.3g}"
    if estimate.value <= 1 / edge and high < 1:
        return "SLOWER", f"slower by more than {threshold:.3g}"
    if 1 / edge < low and high < edge:
        return "SAME", f"within {threshold:.3g}"
    return "UNCLEAR", "the interval reaches beyond the threshold"


def _logs(times: Times) -> list[Array]:
    logs = []
    for process in times:
        t = np.asarray(process, dtype=np.float64)
        if t.size == 0 or not np.all(np.isfinite(t) & (t > 0)):
            raise ValueError("each process needs times, all of them positive numbers")
        logs.append(np.log(t))
    if not logs:
        raise ValueError("no process")
    return logs


def _two_levels(processes: Sequence[Array], level: float) -> tuple[float, float]:
    """Centre and half-width of the interval, from processes or, of a single one, its stretches."""
    centres = np.array([centre(x) for x in processes])
    value = float(centres.mean())
    if len(centres) == 1:
        (x,) = processes
        parts = max(2, min(STRETCHES, len(x) // 2))
        if len(x) < 2:
            return value, math.inf
        centres = np.array([centre(part) for part in np.array_split(x, parts)])
    n = len(centres)
    half = stats.t.ppf((1 + level) / 2, n - 1) * centres.std(ddof=1) / math.sqrt(n)
    return value, float(half)
