"""Panels: axes of one size and look, with logarithmic scales that carry readable numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from sbnbench_reports import svg

WIDTH, HEIGHT = 360, 264
"""Of a panel, in CSS pixels at full size."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 10, 28, 42
_MOST_TICKS = 7


def panel(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """An empty panel; the legend is the page's, so nothing covers the data."""
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
    axes = figure.add_axes(
        (
            _LEFT / WIDTH,
            _BOTTOM / HEIGHT,
            1 - (_LEFT + _RIGHT) / WIDTH,
            1 - (_TOP + _BOTTOM) / HEIGHT,
        )
    )
    axes.set_title(title, loc="left", fontsize=12, color=svg.INK, fontweight="bold", pad=9)
    axes.set_xlabel(xlabel, fontsize=11, color=svg.MUTED, labelpad=5)
    axes.set_ylabel(ylabel, fontsize=11, color=svg.MUTED, rotation_mode="anchor", va="top")
    axes.yaxis.set_label_coords(-(_LEFT - 2) / (WIDTH - _LEFT - _RIGHT), 0.5)
    axes.tick_params(colors=svg.MUTED, labelsize=11, length=0, pad=5)
    axes.grid(True, color=svg.LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(svg.MUTED)
        spine.set_linewidth(0.8)
    return figure, axes


def scale_batch(axes: Axes, batches: Sequence[int]) -> None:
    """Batch sizes on a doubling scale, each of them named while there is room."""
    shown = list(batches)
    while len(shown) > _MOST_TICKS + 1:
        shown = shown[::2]
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(batches) * 2**-0.45, max(batches) * 2**0.45)
    _set_ticks(axes, "x", {b: str(b) for b in shown})


def scale(axes: Axes, which: str, values: Sequence[float], text: Callable[[float], str],
          keep: Sequence[float] = (), named: Mapping[float, str] = MappingProxyType({}),
          ) -> None:  # fmt: skip
    """A logarithmic axis around positive `values` and `keep`, with at most seven round ticks.

    `named` places are shown too, each with its name instead of its number.
    """
    inside = [v for v in (*values, *keep) if v > 0 and math.isfinite(v)]
    low, high = (min(inside), max(inside)) if inside else (0.5, 2.0)
    if high / low < 1.2:
        low, high = low / 1.1, high * 1.1
    margin = (high / low) ** 0.05
    ticks = {place: text(place) for place in round_numbers(low / margin, high * margin)}
    low, high = min(low, *named, low), max(high, *named, high)
    limits = (low / margin, high * margin)
    if which == "x":
        axes.set_xscale("log")
        axes.set_xlim(limits)
    else:
        axes.set_yscale("log")
        axes.set_ylim(limits)
    _set_ticks(axes, which, {**ticks, **named})


_LADDERS: tuple[tuple[float, ...], ...] = (
    (1, 1.5, 2, 3, 4, 5, 7),
    (1, 1.5, 2, 3, 5, 7),
    (1, 2, 5),
    (1, 3),
    (1,),
)


def round_numbers(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, the finest choice that gives at most seven.

    Even steps within a factor of three; beyond that steps that look even on a logarithmic axis.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if high / low < 3:
        sizes = [m * 10.0**e for e in range(first - 3, last + 1) for m in (1, 2, 5)]
        choices = [
            [k * size for k in range(math.ceil(low / size), math.floor(high / size) + 1)]
            for size in sizes
            if (high - low) / size <= _MOST_TICKS
        ]
    else:
        choices = [
            [m * 10.0**e for e in range(first, last + 1) for m in ladder] for ladder in _LADDERS
        ]
    for choice in choices:
        # rounded, so that 0.3 is 0.3 and not 0.30000000000000004
        inside = [float(f"{n:.12g}") for n in choice if low <= n <= high]
        if len(inside) <= _MOST_TICKS:
            return inside
    return inside[:: math.ceil(len(inside) / _MOST_TICKS)]


def _set_ticks(axes: Axes, which: str, names: Mapping[float, str]) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(list(names)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FixedFormatter(list(names.values())))
