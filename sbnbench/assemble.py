"""From what the processes of a block said to its records. Pure: messages in, records out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from msgspec.structs import replace

from sbnbench.messages import Errors, Event, Outcome, Sampled
from sbnbench.model import Block, Contender, Direction, Record, Status
from sbnbench.statistics import Array, location, log_ratios, paired_ratio
from sbnbench.units import percent


@dataclass
class Collected:
    """What came in for one block so far."""

    block: Block
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    pairs: dict[tuple[str, Direction], list[Sampled]] = field(default_factory=dict)
    errors: dict[str, Errors] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        if isinstance(event, Sampled):
            self.pairs.setdefault((event.contender, event.direction), []).append(event)
        elif isinstance(event, Errors):
            self.errors[event.contender] = event
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
                if measure == "latency":
                    found += [self._latency(contender, d) for d in self.block.directions]
                else:
                    found.append(self._error(contender))
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
        return replace(
            blank,
            estimates={
                "ratio": ratio,
                "time": location(times),
                "baseline_time": location(partners),
            },
            samples={"time": times, "baseline": partners},
            facts={
                **blank.facts,
                "loops": [p.loops for p in pairs],
                "baseline_loops": [p.baseline_loops for p in pairs],
            },
            notes=notes,
        )

    def _error(self, contender: Contender) -> Record:
        blank = self.blank(contender, "error", None)
        found = self.errors.get(contender.id)
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
