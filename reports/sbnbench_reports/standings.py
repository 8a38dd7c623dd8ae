"""Who leads: contenders at the largest batch size, and the best of every batch size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sbnbench import analyse
from sbnbench.analyse import Comparison, Summary
from sbnbench.model import Direction
from sbnbench_reports.text import ordered, varied, where


@dataclass(frozen=True)
class Bar:
    """An interval on a common logarithmic scale, in per cent of its width."""

    low: float
    high: float
    value: float
    one: float
    band_low: float
    band_high: float


@dataclass(frozen=True)
class League:
    """Contenders down, directions across, at one batch size; the fastest first."""

    batch: int
    directions: tuple[Direction | None, ...]
    rows: tuple[tuple[str, tuple[tuple[Summary, Bar] | None, ...]], ...]


def league(found: list[Summary], threshold: float) -> League:
    """The summaries of one set of conditions at their largest batch size."""
    batch = max(s.batch for s in found)
    found = [s for s in found if s.batch == batch]
    directions = ordered(s.direction for s in found)
    ends = [n for s in found for n in (s.ratio.low, s.ratio.high, s.ratio.value) if n]
    low = min(*ends, 1 / (1 + threshold)) / 1.05
    high = max(*ends, 1 + threshold) * 1.05

    def at(ratio: float) -> float:
        return 100 * math.log(ratio / low) / math.log(high / low)

    def bar(s: Summary) -> Bar:
        value = s.ratio.value
        return Bar(at(s.ratio.low or value), at(s.ratio.high or value), at(value), at(1),
                   at(1 / (1 + threshold)), at(1 + threshold))  # fmt: skip

    table = {(s.contender, s.direction): s for s in found}

    def height(contender: str) -> float:
        rank = table.get((contender, directions[0]))
        return -rank.ratio.value if rank else 0.0

    rows = tuple(
        (
            contender,
            tuple(
                (s, bar(s)) if (s := table.get((contender, d))) is not None else None
                for d in directions
            ),
        )
        for contender in sorted({s.contender for s in found}, key=height)
    )
    return League(batch, directions, rows)


@dataclass(frozen=True)
class Winners:
    """The best contender of each batch size (rows) and direction (columns)."""

    directions: tuple[Direction | None, ...]
    rows: tuple[tuple[int, tuple[Summary | None, ...]], ...]


def winners(found: list[Summary]) -> Winners:
    directions = ordered(s.direction for s in found)
    grouped = analyse.group(found, lambda s: (s.batch, s.direction))
    rows = (
        (batch, tuple(analyse.best(grouped.get((batch, d), [])) for d in directions))
        for batch in sorted({s.batch for s in found})
    )
    return Winners(directions, tuple(rows))


@dataclass(frozen=True)
class Standing:
    """Who leads, under one set of conditions; `title` names those that differ within the run."""

    title: str
    league: League
    winners: Winners


def standings(found: list[Comparison], threshold: float) -> list[Standing]:
    """A standing for each device, type, format and baseline."""
    grouped = analyse.group(analyse.summaries(found, threshold), lambda s: s.conditions)
    names = varied(grouped)
    return [
        Standing(where(conditions, names), league(members, threshold), winners(members))
        for conditions, members in grouped.items()
    ]
