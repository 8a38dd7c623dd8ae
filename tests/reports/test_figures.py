"""Axes, looks and the colours that everyone can tell apart."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

from sbnbench_reports import palette, svg
from sbnbench_reports.axes import panel, round_numbers


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.93, 1.32, [0.95, 1, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3]),
        (0.24, 1.6, [0.3, 0.4, 0.5, 0.7, 1, 1.5]),
        (3e-5, 8e-3, [5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    found = round_numbers(low, high)
    assert set(found) <= set(ticks)
    assert len(found) >= 3


@pytest.mark.parametrize("decades", [0.1, 0.5, 1, 2, 5, 11, 30])
def test_ticks_are_few_and_inside(decades: float) -> None:
    low, high = 2.3e-7, 2.3e-7 * 10**decades
    found = round_numbers(low, high)
    assert 2 <= len(found) <= 7
    assert all(low <= tick <= high for tick in found)
    assert found == sorted(found)


def test_an_inlined_figure_keeps_its_ids_to_itself() -> None:
    drawings = []
    for prefix in ("a-", "b-"):
        figure, axes = panel("title", "x", "y")
        axes.plot([1, 2], [1, 2], color=svg.hue(3), marker="s", gid=svg.series(5))
        drawings.append(svg.inline(figure, prefix, "T <1>", "D & d", {5: ["first", "second"]}))
    ids = [set(re.findall(r'id="([^"]+)"', d)) for d in drawings]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert "var(--s3)" in drawings[0]
    assert 'class="s s5"' in drawings[0]
    assert "<title>second</title>" in drawings[0]
    assert "T &lt;1&gt;" in drawings[0]


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("font-weight: 700; font-size: 12px; font-family: 'DejaVu Sans', sans-serif; fill: #5bff00",
         "font-weight: 700; font-size: 12px; fill: var(--ink)"),
        ("font: 700 12px 'DejaVu Sans', sans-serif; text-anchor: start",
         "font-weight: 700; font-size: 12px; text-anchor: start"),
        ("font: 11px 'DejaVu Sans', sans-serif", "font-size: 11px"),
        ("stroke: #5b0007; stroke-width: 2", "stroke: var(--s7); stroke-width: 2"),
    ],
)  # fmt: skip
def test_styles_of_any_matplotlib_lose_fonts_and_colours(written: str, kept: str) -> None:
    assert svg._style(written) == kept


def test_tooltips_that_do_not_match_their_points_are_left_out() -> None:
    figure, axes = panel("title", "x", "y")
    axes.plot([1, 2], [1, 2], marker="s", gid=svg.series(5))
    assert "only one" not in svg.inline(figure, "a-", "T", "D", {5: ["only one"]})


def test_contenders_look_different_and_the_baseline_like_text() -> None:
    names = [f"{n}[ratio=1/{k}]@eager" for n in "abcdefghijk" for k in (4, 16)][:14]
    styles = palette.styles(["bn@aten", *names], "bn@aten")
    looks = [(s.hue, s.marker, s.dash) for s in styles.values()]
    assert len(set(looks)) == len(looks) == 15
    assert styles["bn@aten"] == palette.Style(0, None, "o", ())
    assert styles["a[ratio=1/4]@eager"].hue == styles["a[ratio=1/16]@eager"].hue
    assert styles["a[ratio=1/4]@eager"].hue != styles["b[ratio=1/4]@eager"].hue


def test_normalizers_differ_in_colour_or_dash() -> None:
    styles = palette.styles([f"n{k}@eager" for k in range(24)], "bn@aten")
    assert len({(s.hue, s.dash) for s in styles.values()}) == 25


# Machado, Oliveira and Fernandes 2009, severity 1, for linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip


def linear(colour: str) -> np.ndarray:
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Ottosson 2020."""
    to_lms = np.array([[0.4122214708, 0.5363325363, 0.0514459929],
                       [0.2119034982, 0.6806995451, 0.1073969566],
                       [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
    to_lab = np.array([[0.2104542553, 0.7936177850, -0.0040720468],
                       [1.9779984951, -2.4285922050, 0.4505937099],
                       [0.0259040371, 0.7827717662, -0.8086757660]])  # fmt: skip
    return to_lab @ np.cbrt(np.clip(to_lms @ rgb, 0, None))


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize(
    "colours",
    [(*palette.LIGHT, palette.LIGHT_INK), (*palette.DARK, palette.DARK_INK)],
    ids=["light", "dark"],
)
def test_colours_differ_for_everyone(sight: str, colours: tuple[str, ...]) -> None:
    seen = {c: oklab(np.clip(SIGHT[sight] @ linear(c), 0, 1)) for c in colours}
    for a, b in itertools.combinations(colours, 2):
        assert np.linalg.norm(seen[a] - seen[b]) > 0.09, (a, b)


@pytest.mark.parametrize(
    ("colours", "page"),
    [(palette.LIGHT, palette.LIGHT_PAGE), (palette.DARK, palette.DARK_PAGE)],
    ids=["light", "dark"],
)
def test_colours_stand_out_from_the_page(colours: tuple[str, ...], page: str) -> None:
    weights = np.array([0.2126, 0.7152, 0.0722])
    background = weights @ linear(page)
    for colour in colours:
        own = weights @ linear(colour)
        contrast = (max(own, background) + 0.05) / (min(own, background) + 0.05)
        assert contrast > 2.8, colour


def test_rounding_errors_do_not_stretch_the_axes(run: Any) -> None:
    from msgspec.structs import replace

    from sbnbench.model import Estimate
    from sbnbench_reports import figures, front

    records = [
        replace(r, estimates={name: Estimate(2e-8) for name in r.estimates})
        if r.measure == "error" and r.contender == "bn@eager" and r.status == "ok"
        else r
        for r in run.records
        if r.workload.channels == 144
    ]
    look = figures.Look(palette.styles((r.contender for r in records), "bn@aten"), 0.05)
    errors = figures.errors(records, look, "e")
    trade = front.speed_against_error(records, look, "t")
    assert errors is not None
    assert trade is not None
    against_batch = errors.panels[1].svg
    assert "bn@eager" not in against_batch
    assert "e-08" not in against_batch
    assert "bn@eager: 0." in trade.panels[0].svg
    assert ">exact<" in trade.panels[0].svg


def test_one_wide_interval_does_not_flatten_a_panel() -> None:
    from sbnbench.model import Estimate
    from sbnbench_reports.figures import reach

    found = reach([Estimate(1.0, 0.01, 900.0), Estimate(2.0, 1.9, 2.1), Estimate(0.5)])
    assert min(found) == pytest.approx(0.5 / 1.5)
    assert max(found) == pytest.approx(2.0 * 1.5)
    assert {1.0, 2.0, 0.5, 1.9, 2.1} <= set(found)
