"""From what the processes of a block said to its records. Pure: messages in, records out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from msgspec.structs import replace

from sbnbench.messages import Calibrated, Calibration, Event, Measured, Outcome, Sampled, Spent
from sbnbench.model import (
    PER_DIRECTION,
    Block,
    Contender,
    Direction,
    Estimate,
    Record,
    Status,
)
from sbnbench.statistics import Array, location, log_ratios, paired_ratio
from sbnbench.units import percent


@dataclass
class Collected:
    """What came in for one block so far."""

    block: Block
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    pairs: dict[tuple[str, Direction], list[Sampled]] = field(default_factory=dict)
    measured: dict[tuple[str, str, Direction | None], Measured] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds of all processes, by what they went to."""

    known: Calibration | None = None

    def take(self, event: Event) -> None:
        if isinstance(event, Calibrated):
            self.known = event.found
        if isinstance(event, Sampled):
            self.pairs.setdefault((event.contender, event.direction), []).append(event)
        elif isinstance(event, Measured):
            self.measured[event.contender, event.measure, event.direction] = event
        elif isinstance(event, Spent):
            for what, seconds in event.seconds.items():
                self.spent[what] = self.spent.get(what, 0.0) + seconds
        elif isinstance(event, Outcome):
            before = self.outcomes.get(event.contender)
            if event.status != "ok" or before is None:
                self.outcomes[event.contender] = event

    def standing(self) -> tuple[str, ...]:
        """Ids of the contenders that no process has thrown out."""
        fallen = {name for name, o in self.outcomes.items() if o.status != "ok"}
        return tuple(c.id for c in self.block.contenders if c.id not in fallen)

    def log_ratios(self, contender: str, direction: Direction) -> list[Array]:
        """log(baseline/contender) so far, one array a process."""
        pairs = self.pairs.get((contender, direction), [])
        return log_ratios([p.baseline for p in pairs], [p.time for p in pairs]) if pairs else []

    def drop(self, status: Status, reason: str) -> None:
        """Give every contender that is without an outcome this one."""
        for contender in self.standing():
            self.outcomes[contender] = Outcome(contender, status, reason)

    def records(self) -> list[Record]:
        """A record for every contender, measure and direction of the block."""
        found = []
        for contender in self.block.contenders:
            for measure in self.block.measures:
                directions = self.block.directions if measure in PER_DIRECTION else (None,)
                for direction in directions:
                    if measure == "latency" and direction:
                        found.append(self._latency(contender, direction))
                    else:
                        found.append(self._other(contender, measure, direction))
        return found

    def blank(self, contender: Contender, measure: str, direction: Direction | None) -> Record:
        """A record with the outcome alone."""
        outcome = self.outcomes.get(contender.id) or Outcome(contender.id, "error", "never ran")
        return Record(
            block=self.block.id,
            contender=contender.id,
            measure=measure,
            status=outcome.status,
            workload=self.block.workload,
            baseline=self.block.baseline.id,
            direction=direction,
            timing=self.block.latency.timing,
            reason=outcome.reason,
            facts=outcome.facts,
            notes=outcome.notes,
        )

    def _latency(self, contender: Contender, direction: Direction) -> Record:
        blank = self.blank(contender, "latency", direction)
        pairs = self.pairs.get((contender.id, direction), [])
        if blank.status != "ok" or not pairs:
            return blank
        times = [p.time for p in pairs]
        partners = [p.baseline for p in pairs]
        ratio = paired_ratio(partners, times)
        notes = blank.notes
        half = math.log(ratio.high / ratio.low) / 2 if ratio.low and ratio.high else math.inf
        if half > self.block.latency.precision:
            notes += (
                f"precision {percent(self.block.latency.precision)} not reached: ±{percent(half)}",
            )
        notes += tuple(dict.fromkeys(text for p in pairs for text in p.remarks))
        estimates = {"ratio": ratio, "time": location(times), "baseline_time": location(partners)}
        samples = {"time": times, "baseline": partners}
        facts = {
            **blank.facts,
            "clock": pairs[0].clock,
            "loops": [p.loops for p in pairs],
            "baseline_loops": [p.baseline_loops for p in pairs],
        }
        for found in (_floor(pairs), _gpu(pairs)):
            estimates |= found.estimates
            samples |= found.samples
            facts |= found.facts
            notes += found.notes
        return replace(blank, estimates=estimates, samples=samples, facts=facts, notes=notes)

    def _other(self, contender: Contender, measure: str, direction: Direction | None) -> Record:
        blank = self.blank(contender, measure, direction)
        found = self.measured.get((contender.id, measure, direction))
        if blank.status != "ok" or found is None:
            return blank
        return replace(
            blank,
            status=found.status,
            reason=found.reason,
            estimates=found.estimates,
            samples=found.samples,
            facts={**blank.facts, **found.facts},
        )


class _Part(NamedTuple):
    """What one side of a latency adds to its record."""

    estimates: dict[str, Estimate]
    samples: dict[str, list[list[float]]]
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()


def _floor(pairs: list[Sampled]) -> _Part:
    """The floor's time, and the share of it that the contender, timed next to it, attains."""
    floors = [p.floor for p in pairs if p.floor]
    if len(floors) < len(pairs):  # no process may be missing: levels of the interval
        return _Part({}, {}, {})
    times = [f.time for f in floors]
    attainable = paired_ratio(times, [p.time for p in pairs])
    first = floors[0]
    facts = {
        "bytes_read": first.read,
        "bytes_written": first.written,
        "bytes_known": first.known,
        "ways": [f.ways for f in floors],
    }
    notes: tuple[str, ...] = ()
    if not first.known:
        notes += (
            "floor: this normalizer's traffic is not known; it is taken to read its inputs and "
            "write its output once",
        )
    if attainable.low is not None and attainable.low > 1:
        notes += ("faster than its floor: what the floor moves, caches served",)
    return _Part(
        {"attainable": attainable, "floor_time": location(times)},
        {"floor": times},
        {"floor": facts},
        notes,
    )


def _gpu(pairs: list[Sampled]) -> _Part:
    """What was seen of the GPU: its state, the rounds that it held its clocks down in, energy."""
    if not any(p.gpu for p in pairs):
        return _Part({}, {}, {})
    joules = [[p.joules] for p in pairs if p.joules]
    estimates = {"energy": location(joules, unit="J")} if joules else {}
    slow = {
        (number, index)
        for number, p in enumerate(pairs)
        for rounds in p.gpu.get("throttled", {}).values()
        for index in rounds
    }
    reasons = sorted({reason for p in pairs for reason in p.gpu.get("throttled", {})})
    notes: tuple[str, ...] = ()
    if slow:
        total = sum(len(p.time) for p in pairs)
        notes = (f"clocks held down in {len(slow)} of {total} rounds: {', '.join(reasons)}",)
    return _Part(estimates, {}, {"gpu": [p.gpu for p in pairs]}, notes)
