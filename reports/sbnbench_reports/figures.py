"""The figures of a report, each a set of small panels drawn as SVG.

One panel shows one layer and direction. Every contender keeps its look (palette.py); the points of
a batch size stand side by side, so that intervals do not hide each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from sbnbench import analyse, units
from sbnbench.analyse import Series
from sbnbench.model import Direction, Estimate, Record
from sbnbench_reports import axes as panels
from sbnbench_reports import svg
from sbnbench_reports.answer import EXACT
from sbnbench_reports.palette import Style
from sbnbench_reports.text import DIRECTION, count, plain, tick, times

_NEAR = 1.5
"""How far an axis follows intervals beyond the outermost values, as a factor."""


@dataclass(frozen=True)
class Look:
    """What all figures of a report share: the contenders' styles and the verdicts' threshold."""

    styles: Mapping[str, Style]
    threshold: float


@dataclass(frozen=True)
class Panel:
    """A drawing, and the contenders on its front where it has one."""

    svg: str
    front: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """Panels and what stands below them. `contenders` are the legend's."""

    caption: str
    panels: tuple[Panel, ...]
    contenders: tuple[str, ...]


def ratios(records: list[Record], look: Look, prefix: str) -> Figure | None:
    """One layer's ratio to the baseline against batch, a panel a direction."""
    drawn = _by_direction(records, "ratio")
    edge = 1 + look.threshold
    values = reach(v for lines in drawn.values() for line in lines for v in line.values)
    parts: list[str] = []
    for direction, lines in drawn.items():
        figure, axes = panels.panel(DIRECTION[direction], "batch size", "speed ÷ baseline's")
        axes.axhspan(1 / edge, edge, color=svg.BAND, linewidth=0)
        axes.axhline(1, color=svg.INK, linewidth=1)
        _draw(axes, lines, look)
        panels.scale(axes, "y", values, tick, keep=(1 / edge, edge))
        title = f"Ratio to the baseline against batch size, {DIRECTION[direction]}"
        parts.append(
            svg.inline(figure, f"{prefix}{len(parts)}-", title, _describe(lines, times),
                       _tips(lines, look, times))
        )  # fmt: skip
    return _figure(
        drawn,
        parts,
        "Baseline's time over the contender's: above the line is faster. Bars are 95 % intervals, "
        f"cut where they leave the panel; the band is ±{units.percent(look.threshold)}, where a "
        "difference counts as none.",
    )


def latencies(records: list[Record], look: Look, prefix: str) -> Figure | None:
    """One layer's time a call against batch, a panel a direction."""
    drawn = _by_direction(records, "time")
    for direction, lines in drawn.items():
        own = [r for r in records if r.direction == direction]
        lines += _baseline_lines(own, {line.contender for line in lines})
    values = reach(v for lines in drawn.values() for line in lines for v in line.values)
    parts: list[str] = []
    for direction, lines in drawn.items():
        figure, axes = panels.panel(DIRECTION[direction], "batch size", "time a call")
        _draw(axes, lines, look)
        panels.scale(axes, "y", values, units.seconds)
        title = f"Latency against batch size, {DIRECTION[direction]}"
        parts.append(
            svg.inline(figure, f"{prefix}{len(parts)}-", title, _describe(lines, units.seconds),
                       _tips(lines, look, units.seconds))
        )  # fmt: skip
    return _figure(
        drawn,
        parts,
        "Typical time of one call. Context only: absolute times drift with the machine; "
        "the ratio above is measured against that drift.",
    )


_ERRORS = (
    ("mean", "batch", "Mean, against the whole batch"),
    ("var", "batch", "Variance, against the whole batch"),
    ("mean", "population", "Mean, against the population"),
    ("var", "population", "Variance, against the population"),
)
ERROR_AXIS = {"mean": "|μ̂ − μ| ÷ σ", "var": "|ln(σ̂² ÷ σ²)|"}


def errors(records: list[Record], look: Look, prefix: str) -> Figure | None:
    """One layer's estimation error against batch: mean and variance, two references."""
    parts: list[str] = []
    everything: dict[None, list[Series]] = {None: []}
    for moment, against, title in _ERRORS:
        middle = _inexact(analyse.series(records, f"{moment}_{against}_median"))
        tail = {s.contender: s for s in analyse.series(records, f"{moment}_{against}_p95")}
        if not middle:
            continue
        figure, axes = panels.panel(title, "batch size", ERROR_AXIS[moment])
        tails = _inexact(tail.values())
        values = [v.value for line in (*middle, *tails) for v in line.values]
        whiskers = [_with_tail(line, tail.get(line.contender)) for line in middle]
        _draw(axes, whiskers, look)
        panels.scale(axes, "y", values, plain)
        parts.append(
            svg.inline(figure, f"{prefix}{len(parts)}-", f"{title}: error against batch size",
                       _describe(middle, plain),
                       _tips(whiskers, look, plain, "median {0}, 95th percentile {2}"))
        )  # fmt: skip
        everything[None] += middle
    return _figure(
        everything,
        parts,
        "Marks are the median channel, whiskers end at the 95th percentile. A contender whose "
        "statistics equal the whole batch's has no error there and is not drawn.",
    )


def _by_direction(records: Iterable[Record], name: str) -> dict[Direction | None, list[Series]]:
    latency = [r for r in records if r.measure == "latency"]
    found = {
        direction: analyse.series(own, name)
        for direction, own in analyse.group(latency, lambda r: r.direction).items()
    }
    return {direction: lines for direction, lines in found.items() if lines}


def _baseline_lines(records: list[Record], present: set[str]) -> list[Series]:
    """The baseline's own line from its partners' records, where it has none of its own."""
    if not records or records[0].baseline in present:
        return []
    values = {}
    for batch, own in sorted(analyse.group(records, lambda r: r.workload.batch).items()):
        times_ = sorted(
            (r.estimates["baseline_time"] for r in own if "baseline_time" in r.estimates),
            key=lambda e: e.value,
        )
        if times_:
            values[batch] = times_[len(times_) // 2]
    return [Series(records[0].baseline, tuple(values), tuple(values.values()))] if values else []


def _with_tail(line: Series, tail: Series | None) -> Series:
    """A line whose intervals reach from the median to the 95th percentile of channels."""
    ends = dict(zip(tail.batches, tail.values, strict=True)) if tail else {}
    values = [
        Estimate(v.value, v.value, ends[b].value if b in ends else v.value, v.unit)
        for b, v in zip(line.batches, line.values, strict=True)
    ]
    return Series(line.contender, line.batches, tuple(values))


def _inexact(lines: Iterable[Series]) -> list[Series]:
    """Lines without what is exact, which a logarithmic axis cannot show."""
    kept = []
    for line in lines:
        pairs = [(b, v) for b, v in zip(line.batches, line.values, strict=True) if v.value > EXACT]
        if pairs:
            kept.append(Series(line.contender, *map(tuple, zip(*pairs, strict=True))))
    return kept


def reach(estimates: Iterable[Estimate]) -> list[float]:
    """Every number that an axis must reach: the values, and the ends of intervals near them.

    One interval much wider than the rest would press everything else into a line; it is cut.
    """
    known = list(estimates)
    values = [e.value for e in known if e.value > 0]
    if not values:
        return []
    lowest, highest = min(values) / _NEAR, max(values) * _NEAR
    ends = [n for e in known for n in (e.low, e.high) if n and n > 0]
    return values + [min(max(n, lowest), highest) for n in ends]


def _draw(axes: Axes, lines: Sequence[Series], look: Look) -> None:
    """Lines against batch, side by side at each batch size, the baseline on top."""
    panels.scale_batch(axes, sorted({b for line in lines for b in line.batches}))
    ordered = sorted(lines, key=lambda line: look.styles[line.contender].index)
    for place, line in enumerate(ordered):
        shift = 2 ** (0.5 * ((place + 0.5) / len(ordered) - 0.5))
        draw_line(axes, line, [b * shift for b in line.batches], look.styles[line.contender])


def draw_line(axes: Axes, line: Series, places: Sequence[float], style: Style,
               joined: bool = True) -> None:  # fmt: skip
    colour, gid = svg.hue(style.hue), svg.series(style.index)
    having = [
        (x, v.low, v.high)
        for x, v in zip(places, line.values, strict=True)
        if v.low is not None and v.high is not None
    ]
    if having:
        x, low, high = zip(*having, strict=True)
        axes.vlines(x, low, high, color=colour, linewidth=1.1, alpha=0.6, gid=gid)
    axes.plot(
        places,
        [v.value for v in line.values],
        color=colour,
        linewidth=0 if not joined else 1.3 if style.index else 2,
        dashes=style.dash or (1, 0),
        marker=style.marker,
        markersize=5.5 if joined else 7,
        markeredgecolor=svg.PAGE,
        markeredgewidth=0.6,
        gid=gid,
        zorder=3,
    )


def _tips(lines: Iterable[Series], look: Look, text: Callable[[float], str],
          form: str = "{0} ({1}–{2})") -> dict[int, list[str]]:  # fmt: skip
    return {
        look.styles[line.contender].index: [
            f"{line.contender}, batch {batch}: " + _value_text(value, text, form)
            for batch, value in zip(line.batches, line.values, strict=True)
        ]
        for line in lines
    }


def _value_text(value: Estimate, text: Callable[[float], str], form: str) -> str:
    if value.low is None or value.high is None:
        return text(value.value)
    return form.format(text(value.value), text(value.low), text(value.high))


def _describe(lines: Sequence[Series], text: Callable[[float], str]) -> str:
    """What a reader who does not see the panel is told: the values at the largest batch."""
    batch = max(b for line in lines for b in line.batches)
    last = [
        f"{line.contender} {text(line.values[-1].value)}"
        for line in lines
        if line.batches[-1] == batch and math.isfinite(line.values[-1].value)
    ]
    return f"{count(len(lines), 'contender')}. At batch {batch}: {'; '.join(last)}."


def _figure(
    drawn: Mapping[Direction | None, list[Series]] | Mapping[None, list[Series]],
    parts: list[str],
    caption: str,
) -> Figure | None:
    if not parts:
        return None
    names = dict.fromkeys(line.contender for lines in drawn.values() for line in lines)
    return Figure(caption, tuple(Panel(part) for part in parts), tuple(names))
