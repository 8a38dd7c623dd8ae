"""A run in sentences, and the words that a report uses throughout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from sbnbench import analyse, units
from sbnbench.analyse import THRESHOLD, Conditions, Setting, Summary
from sbnbench.model import FAILED, Direction, Record
from sbnbench_reports import Run

DIRECTION: dict[str | None, str] = {
    "fwd": "forward",
    "bwd": "backward",
    "fwd_bwd": "forward + backward",
    None: "any",
}
SIGN: dict[str, str] = {"FASTER": "▲", "SLOWER": "▼", "SAME": "=", "UNCLEAR": "?"}
STATUS: dict[str, str] = {
    "ok": "ok",
    "not-applicable": "not applicable",
    "unavailable": "unavailable",
    "failed-verification": "failed verification",
    "error": "error",
    "crashed": "crashed",
    "timeout": "timeout",
    "out-of-memory": "out of memory",
}


def listing(items: Iterable[object]) -> str:
    """a, b and c."""
    parts = [str(item) for item in items]
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def count(number: int, noun: str) -> str:
    """1 layer, 2 layers, 3 processes."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


def times(value: float) -> str:
    """A ratio: 1.38×, and 0.042× where two decimals would say too little."""
    return f"{value:.2f}×" if value >= 0.1 else f"{value:.2g}×"


def tick(value: float) -> str:
    """A ratio at an axis: 0.7×."""
    return f"{value:g}×"


def plain(value: float) -> str:
    """An error, a pure number: 0.083."""
    return f"{value:.2g}"


def ordered(directions: Iterable[Direction | None]) -> tuple[Direction | None, ...]:
    """Directions, the one that answers are given for first: training's where it was measured."""
    present = set(directions)
    return tuple(d for d in ("fwd_bwd", "fwd", "bwd", None) if d in present)


def main_direction(directions: Iterable[Direction | None]) -> Direction | None:
    return next(iter(ordered(directions)), None)


def varied(found: Iterable[Conditions]) -> list[str]:
    """Names of the conditions of which a run has more than one."""
    known = list(found)
    names = ("device", "dtype", "format", "baseline")
    return [n for n in names if len({getattr(c, n) for c in known}) > 1]


def where(conditions: Conditions, names: Sequence[str]) -> str:
    """The named conditions, for headings: `cuda:0, bfloat16`."""
    parts = {"baseline": f"against {conditions.baseline}"}
    return ", ".join(parts.get(n, str(getattr(conditions, n))) for n in names)


def layer_names(records: Iterable[Record]) -> dict[Setting, str]:
    """What to call each layer of a run: its name and shape, and what else tells it apart."""
    known = list(records)
    names = [n for n in varied({analyse.conditions(r) for r in known}) if n != "baseline"]
    seeds = len({r.workload.seed for r in known}) > 1
    found = {}
    for record in known:
        w = record.workload
        parts = [w.layer, *(str(getattr(w, n)).replace("_", " ") for n in names)]
        found[analyse.setting(w)] = ", ".join(parts + ([f"seed {w.seed}"] if seeds else []))
    return found


def answer(run: Run, threshold: float = THRESHOLD) -> list[str]:
    """The result in plain words, the most important sentence first; `names` in backticks."""
    found = analyse.summaries(analyse.comparisons(run.records, threshold), threshold)
    sentences = []
    grouped = analyse.group(found, lambda s: s.conditions)
    names = varied(grouped)
    for conditions, members in grouped.items():
        prefix = f"{where(conditions, names)}: " if names else ""
        sentences += [prefix + s for s in _answer_for(run, members, threshold)]
    if not found:
        sentences.append("No latency ratio was measured, so nothing is said about speed.")
    return sentences


def _answer_for(run: Run, found: list[Summary], threshold: float) -> list[str]:
    direction = main_direction(s.direction for s in found)
    found = [s for s in found if s.direction == direction]
    by_batch = analyse.group(sorted(found, key=lambda s: s.batch), lambda s: s.batch)
    batch = max(by_batch)
    top = analyse.best(by_batch[batch])
    if top is None:
        return []
    base = f"`{top.conditions.baseline}`"
    scope = f"at batch {batch}, {DIRECTION[direction]}"
    detail = f"interval {units.interval(top.ratio)}"
    if top.of > 1:
        detail += f", geometric mean over {count(top.layers, 'layer')}"
    pace = f"runs at {times(top.ratio.value)} the speed of {base} ({detail})"
    verdict = top.judgement.verdict
    if verdict == "FASTER":
        first = f"On this machine, {scope}, `{top.contender}` {pace}: FASTER, and the best of all."
    elif verdict == "SLOWER":
        first = (
            f"On this machine, {scope}, nothing beats {base}. The nearest, `{top.contender}`, "
            f"{pace}, so it takes {times(1 / top.ratio.value)} its time: SLOWER."
        )
    else:
        first = (
            f"On this machine, {scope}, nothing is surely faster than {base} by more than "
            f"{units.percent(threshold)}. The nearest, `{top.contender}`, {pace}: {verdict}."
        )
    sentences = [first]
    if len(by_batch) > 1:
        sentences.append(_over_batches(by_batch, direction))
    return sentences + _error_of(run.records, top)


def _over_batches(by_batch: dict[int, list[Summary]], direction: Direction | None) -> str:
    verdicts: dict[str, list[int]] = {}
    for batch, members in by_batch.items():
        top = analyse.best(members)
        if top is not None:
            verdicts.setdefault(top.judgement.verdict, []).append(batch)
    parts = [
        f"{name} at batch {listing(verdicts[name])}"
        for name in analyse.VERDICTS
        if name in verdicts
    ]
    return f"The best contender of each batch size, {DIRECTION[direction]}: {'; '.join(parts)}."


def _error_of(records: Iterable[Record], top: Summary) -> list[str]:
    own = [
        r.estimates
        for r in records
        if r.measure == "error"
        and r.status == "ok"
        and r.contender == top.contender
        and r.workload.batch == top.batch
        and analyse.conditions(r) == top.conditions
        and "var_batch_median" in r.estimates
        and "var_batch_p95" in r.estimates
    ]
    if not own:
        return []
    middle = max(e["var_batch_median"].value for e in own)
    if middle == 0:
        return [f"The statistics of `{top.contender}` are exactly those of the whole batch."]
    tail = max(e["var_batch_p95"].value for e in own)
    layers = "" if len(own) == 1 else f", on the worse of {count(len(own), 'layer')}"
    return [
        f"The price: there the variance that `{top.contender}` estimates is off by a factor of "
        f"{math.exp(middle):.3g} for the median channel and of {math.exp(tail):.3g} or more for "
        f"one channel in twenty{layers}."
    ]


def outcome(run: Run) -> str:
    """How much of the plan there is a result for."""
    failed = sum(r.status in FAILED for r in run.records)
    refused = sum(r.status in ("not-applicable", "unavailable") for r in run.records)
    absent = len(analyse.missing(run.plan, run.records))
    parts = [f"{count(len(run.records), 'result')}"]
    parts += [f"{refused} not applicable or unavailable"] if refused else []
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{absent} planned but missing"] if absent else []
    return "; ".join(parts)
