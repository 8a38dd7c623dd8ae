"""Where the time goes, as Markdown: what a contender must move, its floor, what it attains.

All of it from the records: bytes and floor were timed beside the contender.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sbnbench import analyse, units
from sbnbench.analyse import Comparison, Conditions
from sbnbench.model import Direction, Estimate
from sbnbench_reports import Run, text


@dataclass(frozen=True)
class Cost:
    """One contender over the layers of one batch size and direction.

    `passes` are reads and writes of the whole tensor, least and most over the layers. `moved`
    (bytes), `seconds` and `floor` are sums: one call on every layer. `ratio` and `attainable` are
    geometric means.
    """

    contender: str
    layers: int
    passes: tuple[float, float]
    known: bool
    moved: float
    seconds: float
    floor: float
    ratio: Estimate
    extremes: tuple[float, float]
    attainable: Estimate


Where = tuple[Conditions, int, Direction | None]


def costs(comparisons: Iterable[Comparison]) -> dict[Where, list[Cost]]:
    """The cost of every contender that was timed beside a floor, in order of appearance."""
    having = [c for c in comparisons if "attainable" in c.record.estimates]
    found: dict[Where, list[Cost]] = {}
    for where, members in analyse.group(having, _where).items():
        found[where] = [
            _cost(contender, own)
            for contender, own in analyse.group(members, lambda c: c.record.contender).items()
        ]
    return found


def _where(comparison: Comparison) -> Where:
    record = comparison.record
    return analyse.conditions(record), record.workload.batch, record.direction


def _cost(contender: str, own: Sequence[Comparison]) -> Cost:
    records = [c.record for c in own]
    floors = [r.facts["floor"] for r in records]
    moved = [f["bytes_read"] + f["bytes_written"] for f in floors]
    passes = [m / r.workload.nbytes for m, r in zip(moved, records, strict=True)]
    ratios = [c.ratio.value for c in own]
    return Cost(
        contender,
        len(own),
        (min(passes), max(passes)),
        all(f["bytes_known"] for f in floors),
        sum(moved),
        sum(r.estimates["time"].value for r in records),
        sum(r.estimates["floor_time"].value for r in records),
        analyse.geometric_mean([c.ratio for c in own]),
        (min(ratios), max(ratios)),
        analyse.geometric_mean([analyse.usable(r.estimates["attainable"]) for r in records]),
    )


def tables(run: Run) -> Iterator[str]:
    """Lines: a table of costs for each direction and batch size, conditions in its heading."""
    found = costs(analyse.comparisons(run.records))
    for (where, batch, direction), entries in found.items():
        place = _place(where)
        layers = max(e.layers for e in entries)
        many = text.count(layers, "layer")
        yield f"### {text.DIRECTION[direction]}, batch {batch}, {place}: {many}"
        yield ""
        yield (
            f"| contender | passes | moves | floor | time | of floor | against {where.baseline} | "
            "least … most |"
        )
        yield "| :-- |" + " --: |" * 7
        yield from (_row(e, layers) for e in entries)
        yield ""


def _place(where: Conditions) -> str:
    parts = (where.dtype, where.format.replace("_", " "), where.device, where.timing)
    return ", ".join(filter(None, parts))


def _row(cost: Cost, layers: int) -> str:
    low, high = (f"{p:.3g}" for p in cost.passes)
    passes = (low if low == high else f"{low} … {high}") if cost.known else "—"
    share = units.percent(cost.attainable.value)
    least, most = (text.times(r) for r in cost.extremes)
    cells = (
        f"`{cost.contender}`" + (f" ({cost.layers} of them)" if cost.layers < layers else ""),
        passes,
        units.size(cost.moved),
        units.seconds(cost.floor),
        units.seconds(cost.seconds),
        share,
        units.ratio(cost.ratio),
        f"{least} … {most}" if cost.layers > 1 else "—",
    )
    return f"| {' | '.join(cells)} |"


def by_layer(run: Run) -> Iterator[str]:
    """Lines: a table for each direction and batch size with layers down and contenders across."""
    found = analyse.comparisons(run.records)
    for (where, batch, direction), own in analyse.group(found, _where).items():
        contenders = list(dict.fromkeys(c.record.contender for c in own))
        yield f"### {text.DIRECTION[direction]}, batch {batch}, {_place(where)}"
        yield ""
        yield f"| layer | {' | '.join(f'`{c}`' for c in contenders)} |"
        yield "| :-- |" + " --: |" * len(contenders)
        for layer, cells in analyse.group(own, lambda c: c.record.workload.layer).items():
            by = {c.record.contender: c for c in cells}
            texts = [_speed(by[c]) if c in by else "—" for c in contenders]
            yield f"| {layer} | {' | '.join(texts)} |"
        yield ""


def _speed(comparison: Comparison) -> str:
    return f"{units.ratio(comparison.ratio)} {text.SIGN[comparison.judgement.verdict]}"
