"""The rows of a report's tables, ready to print: every choice of words is made here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sbnbench import analyse, units
from sbnbench.analyse import Comparison, Setting, Summary
from sbnbench.model import DIRECTIONS, FAILED, Block, Direction, Estimate, Record, Status
from sbnbench_reports import Run
from sbnbench_reports.text import DIRECTION, STATUS, count, listing, ordered, plain, times

REMEDY: dict[Status, str] = {
    "failed-verification": "Its results disagree with float64, and no speed is reported for wrong "
    "results. Repair the implementation; until then do not use it.",
    "error": "The contender raised an exception. Run it alone with --only to see it again.",
    "crashed": "The worker process died. Run the contender alone with --only; the system's log may "
    "name the cause.",
    "out-of-memory": "Use a smaller batch or layer, or a device with more memory.",
    "timeout": "Give it more time with --timeout, or leave it out with --skip.",
    "unavailable": "Install or change what the reason names, then continue with --resume.",
    "not-applicable": "Nothing is broken: the algorithm does not take this input, or the measure "
    "does not apply to it. Change what the reason names, or leave it out with --skip.",
}
"""What to do about each status; the order in which a report lists them."""


@dataclass(frozen=True)
class Cell:
    """Text, and what a column sorts by where that is not the text."""

    text: str
    order: float | None = None


@dataclass(frozen=True)
class Row:
    """One record. `verdict` is a verdict or, for what has none, the status."""

    record: Record
    layer: str
    direction: str
    verdict: str
    remark: str
    notes: tuple[tuple[int, str], ...]
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Labels:
    """What rows call things: layers by setting, numbers by kind of note."""

    layers: Mapping[Setting, str]
    notes: Mapping[str, int]


@dataclass(frozen=True)
class Note:
    """A thing to know, said once, with all the places that it holds for."""

    number: int
    texts: tuple[str, ...]
    """What was said; several differ only in their numbers."""
    results: str
    places: str


@dataclass(frozen=True)
class Failure:
    """Results of one contender that are missing for one reason. `order` is the status's place."""

    order: int
    contender: str
    status: str
    failed: bool
    places: str
    reason: str
    remedy: str


def verdict_rows(
    records: Iterable[Record], found: Iterable[Comparison], labels: Labels
) -> list[Row]:
    """A row for each latency record, whatever became of it."""
    judged = {c.record.key: c for c in found}
    rows = []
    for record in records:
        if record.measure != "latency":
            continue
        verdict = STATUS[record.status] if record.status != "ok" else "no ratio"
        remark = record.reason
        if record.key in judged:
            judgement = judged[record.key].judgement
            verdict, remark = judgement.verdict, judgement.reason
        ratio = record.estimates.get("ratio")
        cells = {
            "ratio": _cell(ratio, times),
            "interval": _interval_cell(ratio),
            "time": _cell(record.estimates.get("time"), units.seconds),
            "pairs": _pairs(record),
        }
        rows.append(_row(record, verdict, remark, labels, cells))
    return rows


ERRORS = tuple(
    f"{moment}_{against}_{quantile}"
    for against in ("batch", "population")
    for moment in ("mean", "var")
    for quantile in ("median", "p95")
)


def error_rows(records: Iterable[Record], labels: Labels) -> list[Row]:
    """A row for each error record, whatever became of it."""
    return [
        _row(
            record,
            STATUS[record.status],
            record.reason,
            labels,
            {name: _cell(record.estimates.get(name), plain) for name in ERRORS},
        )
        for record in records
        if record.measure == "error"
    ]


def other_rows(records: Iterable[Record], labels: Labels) -> list[Row]:
    """A row for each record of another measure, such as a plug-in's."""
    return [
        _row(record, STATUS[record.status], record.reason, labels, {"all": _all(record)})
        for record in records
        if record.measure not in ("latency", "error")
    ]


def _row(record: Record, verdict: str, remark: str, labels: Labels,
         cells: Mapping[str, Cell]) -> Row:  # fmt: skip
    notes = tuple((labels.notes[alike(note)], note) for note in record.notes)
    direction = DIRECTION[record.direction] if record.direction else ""
    return Row(
        record,
        labels.layers[analyse.setting(record.workload)],
        direction,
        verdict,
        remark,
        notes,
        cells,
    )


def _cell(estimate: Estimate | None, text: Callable[[float], str]) -> Cell:
    if estimate is None:
        return Cell("")
    return Cell(text(estimate.value), estimate.value)


def _interval_cell(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell("")
    width = None
    if estimate.low is not None and estimate.high is not None:
        width = estimate.high - estimate.low
    return Cell(units.interval(estimate), width)


def _pairs(record: Record) -> Cell:
    """How many pairs the ratio rests on: `3 × 118` is three processes of 118 pairs each."""
    lengths = [len(samples) for samples in record.samples.get("time", ())]
    if not lengths:
        return Cell("")
    low, high = min(lengths), max(lengths)
    each = str(low) if low == high else f"{low}–{high}"
    return Cell(f"{len(lengths)} × {each}", sum(lengths))


def _all(record: Record) -> Cell:
    texts = []
    for name, estimate in record.estimates.items():
        text = {"s": units.seconds, "B": units.size}.get(estimate.unit, "{:.4g}".format)
        texts.append(f"{name.replace('_', ' ')} {text(estimate.value)}")
    return Cell("; ".join(texts))


def notes(records: Iterable[Record]) -> list[Note]:
    """Every note once, numbered in order of appearance; those that differ in numbers are one."""
    having = [(note, record) for record in records for note in record.notes]
    found = []
    for number, pairs in enumerate(analyse.group(having, lambda p: alike(p[0])).values(), start=1):
        texts = tuple(dict.fromkeys(note for note, _ in pairs))
        places = _places([record for _, record in pairs], contenders=True)
        found.append(Note(number, texts, count(len(pairs), "result"), places))
    return found


def alike(note: str) -> str:
    """What notes must share to be told once: everything but numbers."""
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", note)


def failures(records: Iterable[Record]) -> list[Failure]:
    """What has no result, by status, contender and reason; what failed before what is refused."""
    bad = [r for r in records if r.status != "ok"]
    grouped = analyse.group(bad, lambda r: (r.status, r.contender, r.reason))
    order = list(REMEDY)
    rows = [
        Failure(
            order.index(status),
            contender,
            STATUS[status],
            status in FAILED,
            _places(own),
            reason,
            REMEDY[status],
        )
        for (status, contender, reason), own in grouped.items()
    ]
    return sorted(rows, key=lambda row: row.order)


MOST_NAMES = 4
"""Names that a list of places spells out; more are only counted."""


def _places(records: list[Record], contenders: bool = False) -> str:
    """Where something holds: contenders, measures, layers and batch sizes, in words."""
    names = list(dict.fromkeys(r.contender for r in records))
    layers = list(dict.fromkeys(r.workload.layer for r in records))
    batches = sorted({r.workload.batch for r in records})
    parts = []
    if contenders:
        parts.append(listing(names) if len(names) <= MOST_NAMES else f"{len(names)} contenders")
    parts.append(", ".join(_measures(records)))
    parts.append(layers[0] if len(layers) == 1 else count(len(layers), "layer"))
    parts.append(f"batch {listing(batches)}")
    return "; ".join(parts)


def _measures(records: list[Record]) -> list[str]:
    """Measures, with their directions where those are not all three: `latency (forward), error`."""
    found = []
    for measure, own in analyse.group(records, lambda r: r.measure).items():
        directions = dict.fromkeys(r.direction for r in own if r.direction)
        some = 0 < len(directions) < len(DIRECTIONS)
        found.append(
            f"{measure} ({listing(DIRECTION[d] for d in directions)})" if some else measure
        )
    return found


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


def winners(
    found: list[Summary],
) -> tuple[tuple[Direction | None, ...], list[tuple[int, list[Summary | None]]]]:
    """The best contender of each batch size (rows) and direction (columns)."""
    directions = ordered(s.direction for s in found)
    grouped = analyse.group(found, lambda s: (s.batch, s.direction))
    batches = sorted({s.batch for s in found})
    return directions, [
        (batch, [analyse.best(grouped.get((batch, d), [])) for d in directions])
        for batch in batches
    ]


def measured(run: Run, layers: Mapping[Setting, str]) -> list[tuple[str, str]]:
    """What was measured, as terms and texts."""
    blocks = run.plan.blocks
    workloads = [block.workload for block in blocks]
    latency = list(dict.fromkeys(block.latency for block in blocks if "latency" in block.measures))
    draws = sorted({block.error.draws for block in blocks if "error" in block.measures})
    facts = [
        ("Suite", run.plan.suite + (" (quick)" if run.plan.quick else "")),
        ("Layers", "; ".join(layers.values())),
        ("Batch sizes", listing(sorted({w.batch for w in workloads}))),
        ("Directions", listing(DIRECTION[d] for d in _unique(blocks, "directions"))),
        ("Type, format, device", "; ".join(dict.fromkeys(
            f"{w.dtype}, {w.format.replace('_', ' ')}, {w.device}" for w in workloads
        ))),
        ("Baseline", listing(dict.fromkeys(block.baseline.id for block in blocks))),
        ("Latency", "; ".join(
            f"at most {o.seconds:g} s a direction and block, in {count(o.processes, 'process')}; "
            f"aim: an interval of ±{units.percent(o.precision)}" for o in latency
        )),
        ("Error", f"averaged over {listing(draws)} batches" if draws else ""),
        ("Order", f"random, seed {run.plan.seed}"),
    ]  # fmt: skip
    return [(term, value) for term, value in facts if value]


def _unique(blocks: Iterable[Block], name: str) -> list[Any]:
    return list(dict.fromkeys(item for block in blocks for item in getattr(block, name)))


@dataclass(frozen=True)
class Entrant:
    """A contender as it was run: the share it sampled, its largest deviation from float64."""

    contender: str
    share: str
    deviation: str


def entrants(records: Iterable[Record]) -> list[Entrant]:
    """What the records' facts say of each contender."""
    found = []
    for contender, own in analyse.group(records, lambda r: r.contender).items():
        shares = [r.facts["sampled_share"] for r in own if "sampled_share" in r.facts]
        deviations = [
            deviation
            for r in own
            for deviation in dict(r.facts.get("verification", {})).values()
            if isinstance(deviation, float)
        ]
        share = (
            list(dict.fromkeys(units.percent(s) for s in (min(shares), max(shares))))
            if shares
            else []
        )
        found.append(
            Entrant(contender, " to ".join(share), f"{max(deviations):.1g}" if deviations else "")
        )
    return found
