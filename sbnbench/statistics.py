"""Ratios, times and verdicts from paired samples, with intervals that own up to both levels.

The data of one contender are `times[p][i]`, seconds a call in process p and round i; the
baseline's `times[p][i]` was taken right next to it. One observation is log(baseline/contender).

Within a process the rounds are summed up by the Hodges–Lehmann estimator. Each process is then one
number, and a t interval over processes covers both what a process cannot see (its placement in
memory) and whatever makes its rounds depend on each other. `docs/how-the-numbers-are-made.md` gives
the reasons, `python -m sbnbench.simulate` the simulated coverage.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sbnbench.model import Estimate
from sbnbench.units import percent

Array = NDArray[np.float64]
Times = Sequence[Sequence[float]]
Verdict = Literal["FASTER", "SLOWER", "SAME", "UNCLEAR"]

LAGS = 256
"""Partners of each round in the Hodges–Lehmann estimator: all of them up to 512 rounds."""

STRETCHES = (5, 10)
"""Fewest and most consecutive stretches into which a process's rounds are cut to see how well they
agree: stretches are independent where neighbouring rounds are not. More than ten would gain little
(Student's quantile is 2.26 there, 1.96 at the limit), fewer than five would cost much (2.78)."""

STRETCH = 8
"""Rounds of a stretch, where there are enough for five such: below, Hodges–Lehmann withstands less
than two disturbed ones."""

TRIM_FROM = 8
"""Processes from which the farthest sixth on either side is trimmed. Below, the interval would
lose more degrees of freedom than one stray process costs."""

APART = 0.04
"""Range of log-ratios over processes that is called disagreement. Five processes with the largest
usual standard deviation, 1.5 %, range over 3.5 % on average, and with 0.6 % never over 4 %; strays
were 4 to 12 % off."""

UNEQUAL = 5.0
"""Ratio of the standard errors of two processes that is called unequal. Among five processes chance
alone exceeds it in 1 of 2000 measurements with ten stretches each, and in 1 of 20 with five."""


class Spread(msgspec.Struct, frozen=True):
    """How far processes lie apart, in log-ratios, against what their rounds explain."""

    between: float
    """Standard deviation of the processes' centres; 0 of a single process."""
    within: float
    """Standard error of a process's centre as its rounds tell it (root mean square)."""
    range: float
    """Largest less smallest centre."""
    unequal: float
    """Largest over smallest standard error of a process."""

    @property
    def by_process(self) -> bool:
        """Whether more processes would narrow the interval, and more rounds would not: three
        quarters of the variance of a centre lie between processes."""
        return self.between > 2 * self.within


class Outliers(msgspec.Struct, frozen=True):
    """Rounds outside Tukey's fences, 1.5 (mild) and 3 (severe) interquartile ranges beyond the
    quartiles of their process. They stay in the data; the estimator withstands them."""

    mild: int
    severe: int
    rounds: int


class Drift(msgspec.Struct, frozen=True):
    """How much the machine's own speed moved while it measured."""

    swing: float
    """95th over 5th percentile of the times."""
    split: float
    """75th over 25th percentile: far above 1 where the machine has two speeds."""


def log_ratios(baseline: Times, contender: Times) -> list[Array]:
    """log(baseline/contender) of each round, one array a process; above 0 is faster.

    Raises ValueError where the two are not paired or a time is not a positive number.
    """
    if [len(p) for p in baseline] != [len(p) for p in contender]:
        raise ValueError("baseline and contender are not paired: their numbers of rounds differ")
    return [b - c for b, c in zip(_logs(baseline), _logs(contender), strict=True)]


def paired_ratio(baseline: Times, contender: Times, level: float = 0.95) -> Estimate:
    """Ratio baseline/contender of times with its interval; above 1 the contender is faster.

    The interval of a single process covers its rounds alone (`notes` says so).
    """
    return ratio_of(log_ratios(baseline, contender), level)


def ratio_of(processes: Sequence[Array], level: float = 0.95) -> Estimate:
    """`paired_ratio` from log-ratios, one array a process."""
    return _estimate(processes, level, "1")


def location(times: Times, level: float = 0.95, unit: str = "s") -> Estimate:
    """Typical time of a call in seconds, or of what `unit` says. Context only: it holds for the
    minutes it was taken in."""
    return _estimate(_logs(times), level, unit)


def centre(x: Array) -> Array:
    """Hodges–Lehmann along the last axis: the median of the means of all pairs.

    It withstands 29 % of arbitrary rounds, needs 5 % more normal ones than the mean does, and does
    not fall between the two humps that appear where being second in a pair is an advantage (the
    median does). Source: Hodges & Lehmann 1963, doi 10.1214/aoms/1177704172.
    """
    means = (x[..., None, :] + x[..., _partners(x.shape[-1])]) / 2
    return np.asarray(np.median(means.reshape(*x.shape[:-1], -1), axis=-1))


def standard_error(x: Array) -> float:
    """Of `centre(x)`, x one process's rounds in their order, from the spread of its stretches.

    Infinite below four rounds.
    """
    parts = _stretches(x)
    return float(parts.std(ddof=1) / math.sqrt(len(parts))) if len(parts) > 1 else math.inf


def between(centres: Array, level: float = 0.95) -> tuple[Array, Array]:
    """Centre and half-width of the interval over processes, along the last axis.

    A t interval of the mean; from eight processes on of the trimmed mean, with the winsorized
    variance. Source: Tukey & McLaughlin 1963, Sankhyā A 25, 331–352.
    """
    n = centres.shape[-1]
    cut = n // 6 if n >= TRIM_FROM else 0
    kept = n - 2 * cut
    ordered = np.sort(centres, axis=-1)
    value = ordered[..., cut : n - cut].mean(axis=-1)
    winsorized = np.clip(ordered, ordered[..., [cut]], ordered[..., [n - 1 - cut]])
    error = winsorized.std(axis=-1, ddof=1) * math.sqrt((n - 1) / (kept * (kept - 1)))
    return np.asarray(value), np.asarray(stats.t.ppf((1 + level) / 2, kept - 1) * error)


def decide(estimate: Estimate, threshold: float) -> tuple[Verdict, str]:
    """Verdict on a ratio at a threshold (0.05 is 5 %), with its reason.

    With e = 1 + threshold: FASTER where the estimate is e or more and the interval lies above √e;
    SLOWER where its reciprocal is; SAME where the interval lies within 1/e … e; otherwise UNCLEAR.
    So a difference is called when the best guess is beyond the threshold and what is certain is
    beyond half of it (in logs, where ×1.05 and ÷1.05 are equally far).
    """
    if threshold <= 0:
        raise ValueError("the threshold must be above 0")
    value, low, high = estimate.value, estimate.low, estimate.high
    if low is None or high is None:
        return "UNCLEAR", "there is no interval"
    edge, half = 1 + threshold, math.sqrt(1 + threshold)
    seen = f"{value:.3f} ({low:.3f} … {high:.3f})"
    if value >= edge and low > half:
        return "FASTER", f"{seen} lies beyond {edge:.3f}, all of it beyond {half:.3f}"
    if value <= 1 / edge and high < 1 / half:
        return "SLOWER", f"{seen} lies beyond {1 / edge:.3f}, all of it beyond {1 / half:.3f}"
    if 1 / edge < low and high < edge:
        return "SAME", f"{seen} lies within {1 / edge:.3f} … {edge:.3f}"
    if 1 / edge < value < edge:
        return "UNCLEAR", f"{seen} reaches beyond {1 / edge:.3f} … {edge:.3f}"
    return "UNCLEAR", f"{seen} reaches too near to 1"


def spread(processes: Sequence[Array]) -> Spread:
    """How far processes lie apart, from log-ratios, one array a process."""
    centres = np.array([float(centre(x)) for x in processes])
    errors = np.array([standard_error(x) for x in processes])
    return Spread(
        between=float(centres.std(ddof=1)) if len(centres) > 1 else 0.0,
        within=float(np.sqrt(np.mean(errors**2))),
        range=float(np.ptp(centres)),
        unequal=float(errors.max() / errors.min()) if errors.min() > 0 else 1.0,
    )


def outliers(processes: Iterable[Array]) -> Outliers:
    """Rounds outside Tukey's fences, counted over processes of log-ratios."""
    mild = severe = rounds = 0
    for x in processes:
        first, third = np.percentile(x, [25, 75])
        beyond = np.maximum(first - x, x - third) / max(third - first, np.finfo(float).tiny)
        severe += int(np.sum(beyond > 3))
        mild += int(np.sum((beyond > 1.5) & (beyond <= 3)))
        rounds += len(x)
    return Outliers(mild, severe, rounds)


def drift(times: Times) -> Drift:
    """How much the times of one thing, the baseline, moved over all processes."""
    low, first, third, high = np.exp(np.percentile(np.concatenate(_logs(times)), [5, 25, 75, 95]))
    return Drift(swing=float(high / low), split=float(third / first))


def notes(processes: Sequence[Array]) -> tuple[str, ...]:
    """What a reader of the ratio must know, from log-ratios, one array a process."""
    found = spread(processes)
    said = []
    if len(processes) == 1:
        said.append("one process: the interval covers its rounds, not its placement in memory")
    if found.range > APART and found.by_process:
        said.append(
            f"processes disagree by {percent(found.range)}, rounds by {percent(found.within)}: "
            "more processes would help, more rounds would not"
        )
    if len(processes) > 1 and found.unequal > UNEQUAL:
        said.append(f"one process is {found.unequal:.0f} times as precise as another")
    return tuple(said)


@lru_cache(maxsize=64)
def _partners(n: int) -> NDArray[np.int_]:
    """Row by row, whom each of n rounds is paired with: those a lag further on, going round."""
    lags = np.unique(np.linspace(0, n // 2, LAGS + 1).round().astype(int))
    return np.asarray((np.arange(n) + lags[:, None]) % n)


def _logs(times: Times) -> list[Array]:
    logs = []
    for process in times:
        t = np.asarray(process, dtype=np.float64)
        if t.size == 0 or not np.all(np.isfinite(t) & (t > 0)):
            raise ValueError("each process needs times, all of them positive numbers")
        logs.append(np.log(t))
    if not logs:
        raise ValueError("there is no process")
    return logs


def _stretches(x: Array) -> Array:
    """Centres of consecutive stretches, of even lengths: rounds come in mirrored twos."""
    fewest, most = STRETCHES
    parts = max(1, min(most, max(fewest, len(x) // STRETCH), len(x) // 2))
    edges = 2 * np.linspace(0, len(x) // 2, parts + 1).round().astype(int)[1:-1]
    return np.array([float(centre(part)) for part in np.split(x, edges)])


def _estimate(processes: Sequence[Array], level: float, unit: str) -> Estimate:
    """Centre and interval, back from logs. A single process has the t interval of its stretches."""
    centres = np.array([float(centre(x)) for x in processes])
    if len(centres) > 1:
        value, half = (float(x) for x in between(centres, level))
    else:
        value, parts = float(centres[0]), len(_stretches(processes[0]))
        if parts == 1:
            return Estimate(math.exp(value), None, None, unit, level)
        half = float(stats.t.ppf((1 + level) / 2, parts - 1)) * standard_error(processes[0])
    return Estimate(math.exp(value), math.exp(value - half), math.exp(value + half), unit, level)
