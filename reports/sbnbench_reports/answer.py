"""A run's result in plain words, the most important sentence first; `names` in backticks."""

from __future__ import annotations

import math
from collections.abc import Iterable

from sbnbench import analyse, units
from sbnbench.analyse import THRESHOLD, Summary
from sbnbench.model import FAILED, Direction, Estimate, Record
from sbnbench_reports import Run
from sbnbench_reports.text import DIRECTION, count, listing, main_direction, times, varied, where

EXACT = 1e-5
"""An error under this is rounding, not sampling."""


def answer(run: Run, threshold: float = THRESHOLD) -> list[str]:
    """Who is fastest at the largest batch, whether that is sure, how it goes with smaller
    batches, and what it costs in exactness; for each device, type, format and baseline apart."""
    found = analyse.summaries(analyse.comparisons(run.records, threshold), threshold)
    grouped = analyse.group(found, lambda s: s.conditions)
    names = varied(grouped)
    sentences = []
    for conditions, members in grouped.items():
        prefix = f"{where(conditions, names)}: " if names else ""
        sentences += [prefix + s for s in _answer_for(run.records, members, threshold)]
    return sentences or ["No latency ratio was measured, so nothing is said about speed."]


def outcome(run: Run) -> str:
    """How much of the plan there is a result for."""
    failed = sum(r.status in FAILED for r in run.records)
    refused = sum(r.status in ("not-applicable", "unavailable") for r in run.records)
    absent = len(analyse.missing(run.plan, run.records))
    parts = [count(len(run.records), "result")]
    parts += [f"{refused} not applicable or unavailable"] if refused else []
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{absent} planned but missing"] if absent else []
    return "; ".join(parts)


def _answer_for(records: list[Record], found: list[Summary], threshold: float) -> list[str]:
    direction = main_direction(s.direction for s in found)
    found = [s for s in found if s.direction == direction]
    by_batch = analyse.group(sorted(found, key=lambda s: s.batch), lambda s: s.batch)
    rivals = by_batch[max(by_batch)]
    top = analyse.best(rivals)
    if top is None:
        return []
    sentences = [_headline(top, threshold)]
    if len(by_batch) > 1:
        sentences.append(_over_batches(by_batch, direction))
    return sentences + _exactness(records, rivals, top)


def _headline(top: Summary, threshold: float) -> str:
    scope = f"On this machine, at batch {top.batch}, {DIRECTION[top.direction]},"
    base = f"`{top.conditions.baseline}`"
    match top.judgement.verdict:
        case "FASTER":
            return f"{scope} {_pace(top)}: FASTER, and the best of all."
        case "SLOWER":
            return (
                f"{scope} no contender comes out faster than {base}. The nearest, {_pace(top)}, "
                f"so it takes {times(1 / top.ratio.value)} its time: SLOWER."
            )
        case verdict:
            return (
                f"{scope} nothing is surely faster than {base} by more than "
                f"{units.percent(threshold)}. The nearest, {_pace(top)}: {verdict}."
            )


def _pace(s: Summary) -> str:
    detail = f"interval {units.interval(s.ratio)}"
    if s.of > 1:
        detail += f", geometric mean over {count(s.layers, 'layer')}"
    speed = f"{times(s.ratio.value)} the speed of `{s.conditions.baseline}`"
    return f"`{s.contender}` runs at {speed} ({detail})"


def _over_batches(by_batch: dict[int, list[Summary]], direction: Direction | None) -> str:
    winners = {batch: top for batch, members in by_batch.items() if (top := analyse.best(members))}
    verdicts = analyse.group(winners, lambda batch: winners[batch].judgement.verdict)
    parts = [
        f"{name} at batch {listing(verdicts[name])}"
        for name in analyse.VERDICTS
        if name in verdicts
    ]
    return f"The best contender of each batch size, {DIRECTION[direction]}: {'; '.join(parts)}."


def _exactness(records: list[Record], rivals: list[Summary], top: Summary) -> list[str]:
    """What the best costs; where it estimates no BatchNorm statistics, the best that does."""
    estimators = [s for s in rivals if _errors(records, s)]
    leading = analyse.best(estimators)
    if leading is None:
        return []
    if leading is top:
        return [_price(_errors(records, top), top)]
    return [
        f"`{top.contender}` computes other statistics than BatchNorm. Of those that estimate "
        f"BatchNorm's, {_pace(leading)} and is the fastest: {leading.judgement.verdict}.",
        _price(_errors(records, leading), leading),
    ]


def _price(errors: list[dict[str, Estimate]], s: Summary) -> str:
    middle = max(e["var_batch_median"].value for e in errors)
    tail = max(e["var_batch_p95"].value for e in errors)
    if tail < EXACT:
        return f"The statistics of `{s.contender}` are those of the whole batch, up to rounding."
    layers = "" if len(errors) == 1 else f", on the worse of {count(len(errors), 'layer')}"
    return (
        f"The price: there the variance that `{s.contender}` estimates is off by a factor of "
        f"{math.exp(middle):.3g} for the median channel and of {math.exp(tail):.3g} or more for "
        f"one channel in twenty{layers}."
    )


def _errors(records: Iterable[Record], s: Summary) -> list[dict[str, Estimate]]:
    """The errors of a contender at a summary's batch size, one layer each."""
    return [
        r.estimates
        for r in records
        if r.measure == "error"
        and r.status == "ok"
        and r.contender == s.contender
        and r.workload.batch == s.batch
        and analyse.conditions(r) == s.conditions
        and {"var_batch_median", "var_batch_p95"} <= set(r.estimates)
    ]
