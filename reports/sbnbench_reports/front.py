"""Speed against error: what each contender costs in exactness, and which are worth having."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes

from sbnbench import analyse, units
from sbnbench.analyse import Series
from sbnbench.model import Direction, Estimate, Record
from sbnbench_reports import axes as panels
from sbnbench_reports import svg
from sbnbench_reports.answer import EXACT
from sbnbench_reports.figures import ERROR_AXIS, Figure, Look, Panel, draw_line, reach
from sbnbench_reports.text import DIRECTION, main_direction, plain, tick, times

_ERROR = "var_batch_median"


@dataclass(frozen=True)
class Point:
    contender: str
    error: float
    """0 where it is no more than rounding."""
    ratio: Estimate


def speed_against_error(records: list[Record], look: Look, prefix: str) -> Figure | None:
    """One layer's ratio against the variance's error, a panel a batch size, with the front."""
    direction = main_direction(r.direction for r in records if r.measure == "latency")
    by_batch = {
        batch: points
        for batch, own in sorted(analyse.group(records, lambda r: r.workload.batch).items())
        if (points := _points(own, direction))
    }
    if not by_batch:
        return None
    everything = [p for points in by_batch.values() for p in points]
    errors = [p.error for p in everything if p.error]
    # A logarithmic axis has no zero: what is exact stands apart, left of the smallest error.
    exact = min(errors, default=1.0) / 4
    named = {exact: "exact"} if len(errors) < len(everything) else {}
    ratios = reach(p.ratio for p in everything)
    parts: list[Panel] = []
    for batch, points in by_batch.items():
        figure, axes = panels.panel(f"batch {batch}", ERROR_AXIS["var"], "speed ÷ baseline's")
        axes.axhline(1, color=svg.INK, linewidth=1)
        panels.scale(axes, "x", errors, plain, named=named)
        panels.scale(axes, "y", ratios, tick, keep=(1,))
        best = analyse.front(points, lambda p: p.error, lambda p: p.ratio.value)
        _draw_front(axes, best, exact)
        for p in points:
            line = Series(p.contender, (batch,), (p.ratio,))
            draw_line(axes, line, [p.error or exact], look.styles[p.contender], joined=False)
        names = ", ".join(p.contender for p in best)
        drawing = svg.inline(
            figure,
            f"{prefix}{len(parts)}-",
            f"Speed against error, batch {batch}",
            f"{len(points)} contenders. On the front, by rising error: {names}.",
            {look.styles[p.contender].index: [_tip(p)] for p in points},
        )
        parts.append(Panel(drawing, tuple(p.contender for p in best)))
    return Figure(
        f"{DIRECTION[direction].capitalize()}. Up is faster, left is more exact. The dashed steps "
        "are the front, named below each panel by rising error: by the estimates alone, nothing is "
        "both faster and more exact than a contender on it. Contenders that do not estimate "
        "batch statistics have no error and are not drawn.",
        tuple(parts),
        tuple(dict.fromkeys(p.contender for p in everything)),
    )


def _points(records: list[Record], direction: Direction | None) -> list[Point]:
    """Contenders with a speed and an error. The baseline is 1 by definition."""
    speed = {
        r.contender: r.estimates["ratio"]
        for r in records
        if r.measure == "latency" and r.direction == direction and "ratio" in r.estimates
    }
    if speed:
        speed.setdefault(records[0].baseline, Estimate(1.0))
    return [
        Point(r.contender, 0.0 if error.value < EXACT else error.value, speed[r.contender])
        for r in records
        if r.measure == "error" and r.contender in speed
        if (error := r.estimates.get(_ERROR)) is not None
    ]


def _draw_front(axes: Axes, best: list[Point], exact: float) -> None:
    axes.plot(
        [p.error or exact for p in best],
        [p.ratio.value for p in best],
        color=svg.MUTED,
        linewidth=1,
        dashes=(3, 2),
        drawstyle="steps-post",
    )


def _tip(point: Point) -> str:
    speed = times(point.ratio.value)
    if point.ratio.low is not None:
        speed += f" ({units.interval(point.ratio)})"
    return f"{point.contender}: {speed}, error {plain(point.error)}"
