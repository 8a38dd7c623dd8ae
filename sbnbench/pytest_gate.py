"""What the fixture `sbn_benchmark` does: verify, measure in pairs, decide, tell pytest-benchmark.

pytest-benchmark cannot take measurements made elsewhere, least of all by several processes, through
any argument. Two public things together can: `benchmark.pedantic` runs the whole duel as its single
round, which registers the entry, and `benchmark.stats` then lets its data be replaced by the
contender's own samples, each with `update`. Its statistics are computed only when they are shown.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec
import pytest

from sbnbench import duel
from sbnbench.errors import SbnbenchError, Unavailable, UnknownName, UsageError
from sbnbench.limit import Limit, UntilSettled
from sbnbench.model import Direction, Record
from sbnbench.options import fraction
from sbnbench.pool import Worker
from sbnbench.units import interval, percent

ARGUMENTS = ("faster_than", "at_least", "not_slower_than", "threshold", "seconds")
THRESHOLD = 0.05
SECONDS = 6.0
"""Most measuring time; an answer that is clear after five processes takes 2.5 s."""


class Demand(msgspec.Struct, frozen=True):
    """What a marker asks for; without one, what to stop at."""

    baseline: str
    limit: Limit
    seconds: float


class Fallen(SbnbenchError):
    """A contender that was not measured."""

    def __init__(self, record: Record) -> None:
        super().__init__(f"{record.contender}: {record.status}: {record.reason}")
        self.status = record.status


def demand_of(marker: pytest.Mark) -> Demand:
    """The demand that a marker `sbn_gate(…)` makes; UsageError where it makes none."""
    given = marker.kwargs
    if marker.args:
        raise UsageError(f"write arguments by name, such as faster_than={marker.args[0]!r}")
    for name in given:
        if name not in ARGUMENTS:
            raise UnknownName("argument", name, ARGUMENTS)
    if ("faster_than" in given) == ("not_slower_than" in given):
        raise UsageError("give one of faster_than='bn@aten' and not_slower_than='bn@aten'")
    if "at_least" in given and "threshold" in given:
        raise UsageError("give at_least or threshold, not both")
    seconds = _positive("seconds", given.get("seconds", SECONDS))
    threshold = _positive("threshold", given.get("threshold", THRESHOLD))
    if "not_slower_than" in given:
        if "at_least" in given:
            raise UsageError("at_least goes with faster_than; with not_slower_than, use threshold")
        return Demand(given["not_slower_than"], Limit(1 / (1 + threshold)), seconds)
    at_least = _positive("at_least", given.get("at_least", 1 + threshold))
    if at_least <= 1:
        raise UsageError(
            f"at_least={at_least:g} is no demand to be faster; write 1.2 for 20 % faster, or "
            "not_slower_than='…', threshold=0.1"
        )
    return Demand(given["faster_than"], Limit(at_least), seconds)


def mistake_in(marker: pytest.Mark) -> str:
    """What is wrong with a marker; empty where nothing is."""
    try:
        demand_of(marker)
    except UsageError as error:
        return str(error)
    return ""


def _positive(name: str, value: Any) -> float:
    if isinstance(value, str):
        return fraction(value, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise UsageError(f"{name} is {value!r}; a number above 0 is wanted")
    return float(value)


class SbnBenchmark:
    """The fixture's value: call it once in a test."""

    def __init__(
        self,
        benchmark: Any,
        config: pytest.Config,
        worker: Worker,
        marker: pytest.Mark | None,
        when_unclear: Callable[[str], None],
    ) -> None:
        self.benchmark = benchmark
        self.config = config
        self.worker = worker
        self.marker = marker
        self.when_unclear = when_unclear

    def __call__(
        self,
        contender: str,
        source: str,
        *,
        direction: Direction = "fwd_bwd",
        batch: int = 1,
        dtype: str = "float32",
        format: str = "contiguous",  # noqa: A002  # the axis is called so
        device: str = "cpu",
        seed: int = 0,
        baseline: str = "bn@aten",
    ) -> duel.Duel:
        """Verify and measure a contender such as `fs[ratio=1/16]@triton` on one workload.

        `source` is `synthetic:64x28x28` or `real:LAYER`; `baseline` is the marker's, where the
        test has one. Fails the test where verification or the gate fails, skips it where the
        device or backend is missing. With --benchmark-disable it verifies and does not time.
        """
        demand = self._demand(baseline)
        rule = UntilSettled.of(demand.limit, demand.seconds)
        only_verify = _disabled(self.config)
        if not only_verify:
            _refuse_neighbours(self.config)

        @cache  # once, although --benchmark-cprofile would run it again
        def measured() -> duel.Duel:
            block = duel.pair(
                contender,
                demand.baseline,
                source,
                direction,
                rule=rule,
                axes={"batch": batch, "dtype": dtype, "format": format, "device": device},
                seed=seed,
            )
            if only_verify:
                found = duel.verify(block, self.worker)
            else:
                found = duel.duel(block, rule, self.worker, seed=seed)
            if found.record.status != "ok":
                raise Fallen(found.record)
            return found

        found = self._run(measured)
        if not only_verify:
            self._tell(found)
            self._decide(found, demand)
        return found

    def _run(self, measured: Callable[[], duel.Duel]) -> duel.Duel:
        try:
            found: duel.Duel = self.benchmark.pedantic(measured)
            return found
        except SbnbenchError as error:
            problem = error
        if isinstance(problem, Unavailable) or getattr(problem, "status", "") == "unavailable":
            pytest.skip(str(problem))
        pytest.fail(str(problem), pytrace=False)

    def _demand(self, baseline: str) -> Demand:
        if self.marker is not None:
            return demand_of(self.marker)
        return Demand(baseline, Limit(1 / (1 + THRESHOLD)), SECONDS)

    def _tell(self, found: duel.Duel) -> None:
        """Hand the samples and what was decided to pytest-benchmark."""
        record = found.record
        if self.benchmark.stats is not None:  # None where xdist has switched it off
            self.benchmark.stats.stats.data.clear()
            for process in record.samples["time"]:
                for seconds in process:
                    self.benchmark.stats.update(seconds)
        ratio = record.estimates["ratio"]
        told = {
            "contender": record.contender,
            "baseline": record.baseline,
            "ratio": ratio.value,
            "low": ratio.low,
            "high": ratio.high,
            "verdict": found.verdict,
            "reason": found.reason,
            "processes": found.processes,
            "rounds": found.rounds,
        }
        if "attainable" in record.estimates:
            told["floor"] = record.estimates["attainable"].value
        self.benchmark.extra_info.update(told)

    def _decide(self, found: duel.Duel, demand: Demand) -> None:
        if self.marker is None:
            return
        answer, reason = demand.limit.judge(found.record.estimates["ratio"])
        self.benchmark.extra_info.update(gate=answer, limit=demand.limit.least)
        if answer == "KEPT":
            return
        message = describe(found, demand, reason)
        if answer == "BROKEN":
            pytest.fail(f"{self.marker.name} broken: {message}", pytrace=False)
        if self.config.getoption("sbn_strict"):
            pytest.fail(f"{self.marker.name} inconclusive: {message}", pytrace=False)
        self.when_unclear(message)


def describe(found: duel.Duel, demand: Demand, reason: str) -> str:
    """Ratio, interval, limit, verdict, and how to look closer."""
    record, least = found.record, demand.limit.least
    ratio = record.estimates["ratio"]
    wanted = f"at least {least:.3g}"
    if least < 1:
        wanted += f" (no more than {1 / least:.3g} times the baseline's time)"
    return (
        f"{record.contender} against {record.baseline}, {record.workload.layer}, batch "
        f"{record.workload.batch}, {record.direction}: ratio {ratio.value:.3f} "
        f"({interval(ratio)}), wanted {wanted}; {reason}. Verdict at "
        f"{percent(demand.limit.threshold)}: {found.verdict}; {found.processes} processes, "
        f"{found.rounds} pairs. To look closer: more time with "
        f"sbn_gate(seconds={2 * demand.seconds:g}), every sample with --benchmark-json FILE, "
        "what this machine can resolve with `sbnbench doctor --noise`."
    )


def _disabled(config: pytest.Config) -> bool:
    return bool(config.getoption("benchmark_disable") and not config.getoption("benchmark_enable"))


def _refuse_neighbours(config: pytest.Config) -> None:
    """Skip where pytest-xdist runs other tests at the same time."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers > 1:
        pytest.skip(
            f"not timed beside {workers - 1} other pytest-xdist workers, which would disturb it; "
            "run gates with -n 0, or with --benchmark-disable to verify only"
        )
