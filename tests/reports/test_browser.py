"""The report in a real browser: sorting, filtering, themes, phones, and no network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sbnbench_reports import html

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return html.write(run, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def open_page(browser: Any, report: Path) -> Iterator[Any]:
    """Opens the report; afterwards the page must have been silent and alone."""
    pages = []

    def opened(width: int = 1240, **options: Any) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        page.said = []
        page.asked = []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(report.as_uri())
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.wait_for_timeout(50)
        assert page.said == []
        assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
        page.close()


def column(page: Any, index: int) -> list[str]:
    return page.eval_on_selector_all(
        "#verdict-table tbody tr:not([hidden])",
        "(rows, i) => rows.map(r => r.cells[i].textContent.trim())",
        index,
    )


def test_sorting_by_number_with_mouse(open_page: Any) -> None:
    page = open_page()
    head = page.locator("#verdict-table thead th").nth(4)
    assert head.get_attribute("aria-sort") is None
    page.locator("#verdict-table thead button").nth(4).click()
    assert head.get_attribute("aria-sort") == "ascending"
    texts = column(page, 4)
    values = [float(text[:-1]) for text in texts if text]
    assert values == sorted(values)
    assert texts[-1] == "", "what has no ratio stands at the end"
    assert values[0] < values[-1]
    page.locator("#verdict-table thead button").nth(4).click()
    assert head.get_attribute("aria-sort") == "descending"
    texts = column(page, 4)
    values = [float(text[:-1]) for text in texts if text]
    assert values == sorted(values, reverse=True)
    assert texts[-1] == "", "and stays there"


def test_sorting_times_by_size_not_by_text(open_page: Any) -> None:
    page = open_page()
    page.locator("#verdict-table thead button").nth(7).click()
    scale = {"µs": 1e-6, "ms": 1e-3, "s": 1.0}
    seconds = [float(t.split()[0]) * scale[t.split()[1]] for t in column(page, 7) if t]
    assert seconds == sorted(seconds)
    assert seconds[0] < 1e-3 < seconds[-1]


def test_sorting_with_the_keyboard_and_one_column_at_a_time(open_page: Any) -> None:
    page = open_page()
    page.locator("#verdict-table thead button").nth(4).click()
    page.locator("#verdict-table thead button").nth(0).focus()
    page.keyboard.press("Enter")
    heads = page.locator("#verdict-table thead th")
    assert heads.nth(0).get_attribute("aria-sort") == "ascending"
    assert heads.nth(4).get_attribute("aria-sort") is None
    page.keyboard.press("Space")
    assert heads.nth(0).get_attribute("aria-sort") == "descending"
    assert column(page, 0)[0] == "vdn[num_virtual=1]@inductor"


def test_filters_combine_and_count(open_page: Any) -> None:
    page = open_page()
    page.get_by_label("Verdict", exact=True).select_option("FASTER")
    faster = len(column(page, 0))
    page.get_by_label("Direction", exact=True).select_option("forward")
    page.get_by_label("Batch", exact=True).select_option("32")
    page.get_by_label("Layer", exact=True).select_option("_blocks.9._bn1 672×14×14")
    assert 0 < len(column(page, 0)) < faster
    assert set(column(page, 6)) == {"▲ FASTER"}
    assert set(column(page, 3)) == {"forward"}
    assert set(column(page, 2)) == {"32"}
    assert set(column(page, 1)) == {"_blocks.9._bn1 672×14×14"}
    assert page.locator(".filters output").inner_text() == f"{len(column(page, 0))} of 432 rows"
    page.get_by_label("Contender", exact=True).select_option("bn@eager")
    assert column(page, 0) == []


def test_failures_can_be_filtered(open_page: Any) -> None:
    page = open_page()
    page.get_by_label("Verdict", exact=True).select_option("timeout")
    assert set(column(page, 0)) == {"ns[ratio=1/16]@eager"}


@pytest.mark.parametrize("width", [320, 375, 768, 1240])
def test_the_page_never_scrolls_sideways(open_page: Any, width: int) -> None:
    page = open_page(width=width)
    page.locator("details").first.evaluate("d => d.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    right = page.eval_on_selector_all(
        ".plot, h1, p, dl, figure, .scroll", "es => es.map(e => e.getBoundingClientRect().right)"
    )
    assert max(right) <= width
    box = page.locator(".scroll.tall").first
    assert box.evaluate("e => e.scrollWidth > e.clientWidth") or width > 1000


def test_text_in_figures_is_legible_on_a_phone(open_page: Any) -> None:
    page = open_page(width=375)
    heights = page.eval_on_selector_all(
        ".plot text", "es => es.map(e => e.getBoundingClientRect().height)"
    )
    assert min(heights) > 8


def test_dark_and_light(open_page: Any) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        page = open_page(color_scheme=scheme)
        seen[scheme] = page.evaluate(
            """() => {
              const of = (selector, name) =>
                getComputedStyle(document.querySelector(selector))[name];
              return [of("body", "backgroundColor"), of("body", "color"),
                      of("#speed .plot text", "fill"), of("#speed .plot .s3 use", "fill"),
                      of(".FASTER", "backgroundColor")];
            }"""
        )
    for light, dark in zip(seen["light"], seen["dark"], strict=True):
        assert light != dark

    def brightness(colour: str) -> int:
        return sum(int(n) for n in colour.strip("rgb()").split(","))

    assert brightness(seen["light"][0]) > 600 > 150 > brightness(seen["dark"][0])
    assert brightness(seen["light"][2]) < 330 < 450 < brightness(seen["dark"][2])


def test_a_legend_brings_a_contender_out_everywhere(open_page: Any) -> None:
    page = open_page()
    opacity = "s => getComputedStyle(document.querySelector(s)).opacity"
    button = page.locator("#speed .legend button", has_text="fs[ratio=1/16]@inductor")
    series = button.get_attribute("data-series")
    button.click()
    assert page.evaluate(opacity, f"#latency .plot .s{series}") == "1"
    assert page.evaluate(opacity, "#latency .plot .s1") == "0.12"
    pressed = page.locator(f'.legend button[data-series="{series}"][aria-pressed="true"]')
    assert pressed.count() == 4
    button.click()
    assert page.evaluate(opacity, "#latency .plot .s1") == "1"


def test_without_scripts_nothing_is_missing(open_page: Any) -> None:
    page = open_page(java_script_enabled=False)
    assert page.locator("#verdict-table tbody tr").count() == 432
    assert not page.locator(".filters").is_visible()
    assert page.locator("#verdict-table thead button").count() == 0
    assert page.locator("#verdict-table tbody tr").first.is_visible()


def test_names_of_controls_are_accessible(open_page: Any) -> None:
    page = open_page()
    tree = page.locator("body").aria_snapshot()
    for words in ('heading "Answer"', 'columnheader "Ratio', 'combobox "Direction"',
                  'img "Ratio to the baseline against batch size, forward'):  # fmt: skip
        assert words in tree


def test_a_notebook_frame_shows_the_report(browser: Any, run: Any, tmp_path: Path) -> None:
    notebook = tmp_path / "notebook.html"
    style = "<style>body { background: rgb(1, 2, 3) }</style>"
    notebook.write_text(f"<!doctype html><meta charset=utf-8>{style}{html.fragment(run)}")
    page = browser.new_page()
    page.goto(notebook.as_uri())
    frame = page.frame_locator("iframe")
    assert frame.locator("#verdict-table tbody tr").count() == 432
    frame.locator("#verdict-table thead button").nth(4).click()
    colour = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(colour) == "rgb(1, 2, 3)"
    page.close()
