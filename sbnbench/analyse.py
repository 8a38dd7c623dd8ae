"""Records → verdicts, means over layers, fronts and series. Pure: no torch, no files, no drawing.

A ratio is the baseline's time over the contender's: above 1 is faster than the baseline.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sbnbench.model import Direction, Estimate, Plan, Record
from sbnbench.statistics import Verdict, decide
from sbnbench.store import expected

VERDICTS: tuple[Verdict, ...] = ("FASTER", "SAME", "SLOWER", "UNCLEAR")
THRESHOLD = 0.05
"""The smallest relative change worth acting on."""

T = TypeVar("T")


@dataclass(frozen=True)
class Judgement:
    """A verdict and, in words, why."""

    verdict: Verdict
    reason: str


def judge(ratio: Estimate, threshold: float = THRESHOLD) -> Judgement:
    """The verdict on one ratio by `statistics.decide`; an UNCLEAR also says what is clear.

    What a reader may rely on, and the tests hold the rule to:

    - Exclusive and exhaustive: every ratio has one verdict; without an interval, UNCLEAR.
    - Monotone: raising the estimate and both ends never lowers a verdict, and a narrower interval
      around the same estimate never changes one, it only settles an UNCLEAR.
    - Symmetric: contender and baseline exchanged (ratio → 1/ratio) exchange FASTER and SLOWER.
    - An interval above 1 is not enough for FASTER, nor one below 1 for SLOWER.
    """
    if not has_interval(ratio):
        return Judgement("UNCLEAR", "the ratio has no usable interval")
    verdict, reason = decide(ratio, threshold)
    if verdict == "UNCLEAR" and ratio.low and ratio.low > 1:
        reason = f"faster, but not surely by enough: {reason}"
    if verdict == "UNCLEAR" and ratio.high and ratio.high < 1:
        reason = f"slower, but not surely by enough: {reason}"
    return Judgement(verdict, reason)


@dataclass(frozen=True)
class Comparison:
    """A latency record with a ratio, and its verdict."""

    record: Record
    ratio: Estimate
    judgement: Judgement


def comparisons(records: Iterable[Record], threshold: float = THRESHOLD) -> list[Comparison]:
    """A comparison for each latency record that succeeded, in the records' order."""
    return [
        Comparison(
            record, usable(record.estimates["ratio"]), judge(record.estimates["ratio"], threshold)
        )
        for record in records
        if record.measure == "latency" and record.status == "ok" and "ratio" in record.estimates
    ]


def usable(estimate: Estimate) -> Estimate:
    """The estimate, without its interval where a logarithm of that is no finite number.

    Two rounds in one process, for instance, give an interval from 0 to infinity.
    """
    if has_interval(estimate):
        return estimate
    return Estimate(estimate.value, unit=estimate.unit, level=estimate.level)


def has_interval(estimate: Estimate) -> bool:
    low, high = estimate.low, estimate.high
    return low is not None and high is not None and 0 < low <= high < math.inf


def geometric_mean(estimates: Sequence[Estimate]) -> Estimate:
    """exp(mean log value) of positive estimates, with an interval.

    With d_i = log(value_i / low_i), the lower end is mean · exp(−√(Σ d_i²) / n), the upper
    likewise: errors of blocks are independent, each being measured in processes of its own. The
    interval is about the mean of these workloads on this machine, not about other workloads. It
    is absent where one of the parts has none. Raises ValueError for none or for values ≤ 0.
    """
    if not estimates or any(e.value <= 0 for e in estimates):
        raise ValueError("a geometric mean wants positive values, at least one")
    n = len(estimates)
    centre = sum(math.log(e.value) for e in estimates) / n
    down = up = 0.0
    for e in estimates:
        if e.low is None or e.high is None or e.low <= 0:
            return Estimate(math.exp(centre), unit=estimates[0].unit, level=estimates[0].level)
        down += math.log(e.value / e.low) ** 2
        up += math.log(e.high / e.value) ** 2
    return Estimate(
        math.exp(centre),
        math.exp(centre - math.sqrt(down) / n),
        math.exp(centre + math.sqrt(up) / n),
        unit=estimates[0].unit,
        level=min(e.level for e in estimates),
    )


@dataclass(frozen=True)
class Conditions:
    """What must agree for results to be put together: everything but layer, batch, direction."""

    device: str
    dtype: str
    format: str
    timing: str
    baseline: str


def conditions(record: Record) -> Conditions:
    w = record.workload
    return Conditions(w.device, w.dtype, w.format, record.timing, record.baseline)


@dataclass(frozen=True)
class Summary:
    """One contender at one batch size and direction: geometric mean over the layers it ran on."""

    conditions: Conditions
    contender: str
    direction: Direction | None
    batch: int
    ratio: Estimate
    judgement: Judgement
    layers: int
    of: int
    """How many layers any contender ran on there; a mean over fewer is not comparable."""

    @property
    def complete(self) -> bool:
        return self.layers == self.of


def summaries(found: Iterable[Comparison], threshold: float = THRESHOLD) -> list[Summary]:
    """Means over layers, one for each contender, direction and batch; in order of appearance."""
    grouped = group(
        found, lambda c: (conditions(c.record), c.record.direction, c.record.workload.batch)
    )
    result = []
    for (where, direction, batch), members in grouped.items():
        layers = {setting(c.record) for c in members}
        for contender, own in group(members, lambda c: c.record.contender).items():
            ratio = geometric_mean([c.ratio for c in own])
            covered = len({setting(c.record) for c in own})
            verdict = judge(ratio, threshold)
            result.append(
                Summary(where, contender, direction, batch, ratio, verdict, covered, len(layers))
            )
    return result


def best(found: Iterable[Summary]) -> Summary | None:
    """The largest ratio, the baseline itself left out.

    A mean over fewer layers than others have competes only where none is complete: it may owe
    its place to the layers it lacks.
    """
    rivals = [s for s in found if s.contender != s.conditions.baseline]
    rivals = [s for s in rivals if s.complete] or rivals
    return max(rivals, key=lambda s: s.ratio.value, default=None)


def front(points: Iterable[T], cost: Callable[[T], float], gain: Callable[[T], float]) -> list[T]:
    """The Pareto front: points than which none costs less and gains as much, by rising cost."""
    kept: list[T] = []
    for point in sorted(points, key=lambda p: (cost(p), -gain(p))):
        if not kept or gain(point) > gain(kept[-1]):
            kept.append(point)
    return kept


Setting = tuple[str, int, tuple[int, ...], str, str, str, int, str]


def setting(record: Record) -> Setting:
    """Workload, without its batch size, and timing: what one line of a plot against batch keeps
    fixed."""
    w = record.workload
    return (w.source, w.channels, w.spatial, w.dtype, w.format, w.device, w.seed, record.timing)


@dataclass(frozen=True)
class Series:
    """One line of a plot: a contender's estimates by batch size."""

    contender: str
    batches: tuple[int, ...]
    values: tuple[Estimate, ...]


def series(records: Iterable[Record], name: str) -> list[Series]:
    """The estimate `name` against batch, a line a contender, in order of appearance.

    Takes the records of one setting, measure and direction, without what failed.
    """
    having = [r for r in records if r.status == "ok" and name in r.estimates]
    lines = []
    for contender, own in group(having, lambda r: r.contender).items():
        own.sort(key=lambda r: r.workload.batch)
        lines.append(
            Series(
                contender,
                tuple(r.workload.batch for r in own),
                tuple(usable(r.estimates[name]) for r in own),
            )
        )
    return lines


def missing(plan: Plan, records: Iterable[Record]) -> list[tuple[str, str, str, str]]:
    """Keys of results that were planned and have no record: the run was interrupted."""
    present = {r.key for r in records}
    return [key for block in plan.blocks for key in sorted(expected(block) - present)]


K = TypeVar("K")


def group(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by key, keys in order of appearance."""
    groups: dict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)
