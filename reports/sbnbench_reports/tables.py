"""The rows of a report's tables, ready to print: every choice of words is made here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sbnbench import analyse, units
from sbnbench.analyse import Comparison, Setting
from sbnbench.model import DIRECTIONS, FAILED, Estimate, Record, Status
from sbnbench_reports.text import DIRECTION, STATUS, count, listing, plain, times

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
            "attainable": _cell(record.estimates.get("attainable"), units.percent),
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
        labels.layers[analyse.setting(record)],
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
