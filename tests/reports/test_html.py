"""The report as a document: complete, self-contained, safe."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace as changed
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from sbnbench.analyse import judge
from sbnbench.model import Contender, Estimate, Plan, Record, Workload
from sbnbench_reports import html

VOID = {"meta", "link", "br", "input", "hr", "img", "wbr"}


class Page(HTMLParser):
    """Tables as lists of rows of texts, by id or class, all text, ids, links and heads."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.rows: dict[str, list[list[str]]] = {}
        self.ids: Counter[str] = Counter()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self._table = ""
        self.feed(source)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in given.items()]
        if "id" in given:
            self.ids[given["id"]] += 1
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._table = given.get("id") or given.get("class", "")
        if tag == "tr":
            self.rows.setdefault(self._table, []).append([])
        if tag in ("td", "th"):
            self.rows[self._table][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"script", "style"} & set(self._open):
            return
        self.text += data
        if {"td", "th"} & set(self._open) and self._open[-1] != "title":
            self.rows[self._table][-1][-1] += data


def squeezed(rows: list[list[str]]) -> list[list[str]]:
    return [[" ".join(cell.split()) for cell in row] for row in rows]


@pytest.fixture(scope="module")
def source(run: Any) -> str:
    return html.render(run)


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_every_latency_record_has_its_row(run: Any, page: Page) -> None:
    rows = squeezed(page.rows["verdict-table"])[1:]
    wanted = Counter(
        (r.contender, r.workload.layer, str(r.workload.batch), r.direction, r.status == "ok")
        for r in run.records
        if r.measure == "latency"
    )
    names = {"forward": "fwd", "backward": "bwd", "forward + backward": "fwd_bwd"}
    found = Counter((row[0], row[1], row[2], names[row[3]], row[4] != "") for row in rows)
    assert found == wanted


def test_every_error_record_has_its_row(run: Any, page: Page) -> None:
    rows = squeezed(page.rows["sortable"])[1:]
    wanted = Counter(
        (r.contender, r.workload.layer, str(r.workload.batch))
        for r in run.records
        if r.measure == "error"
    )
    assert Counter((row[0], row[1], row[2]) for row in rows) == wanted


def test_a_row_says_what_its_record_says(run: Any, page: Page) -> None:
    record = next(r for r in run.records if r.contender == "fs[ratio=1/16]@inductor"
                  and r.workload.batch == 32 and r.direction == "fwd")  # fmt: skip
    row = next(
        row for row in squeezed(page.rows["verdict-table"])
        if row[:4] == [record.contender, record.workload.layer, "32", "forward"]
    )  # fmt: skip
    assert row[4] == f"{record.estimates['ratio'].value:.2f}×"
    assert row[6] == "▲ FASTER"
    assert row[8] == ""  # this run timed no floor
    assert row[9] == "3 × 6"


def test_failures_come_with_reason_and_remedy(run: Any, page: Page) -> None:
    for record in run.records:
        if record.status != "ok":
            assert record.reason in page.text
    assert "--timeout" in page.text
    assert "no speed is reported for wrong results" in page.text


def test_the_answer_comes_first_and_in_words(page: Page) -> None:
    _, _, text = " ".join(page.text.split()).partition("How to read it Answer ")
    assert text.startswith(
        "On this machine, at batch 32, forward + backward, fs[ratio=1/16]@inductor runs at 1."
    )
    assert 0 < text.index("What was measured") < text.index("Verdicts Each")


def test_notes_are_told_once_and_pointed_to(page: Page) -> None:
    places = {value for tag, name, value in page.attributes if tag == "a" and name == "href"}
    targets = {place[1:] for place in places if place.startswith("#note-")}
    assert targets
    assert targets <= set(page.ids)
    assert page.text.count("degenerate: ratio 1/8 of this batch is one whole sample") == 1


def test_environment_and_command_are_there(run: Any, page: Page) -> None:
    for words in ("AMD EPYC 7B13", "15.6 GiB", "NVIDIA L4", "2.13.0", "not set",
                  run.environment["command"]):  # fmt: skip
        assert words in page.text


def test_problems_of_the_run_are_shown(small: Any) -> None:
    page = Page(html.render(changed(small, problems=["records.jsonl line 7 left out: <torn>"])))
    assert "records.jsonl line 7 left out: <torn>" in page.text


def test_missing_results_are_said(small: Any) -> None:
    page = Page(html.render(changed(small, records=small.records[:-5])))
    assert "5 planned results are missing" in page.text


def test_nothing_is_fetched(source: str, page: Page) -> None:
    assert "http://" not in source.replace("http://www.w3.org", "")
    assert "https://" not in source
    assert "@import" not in source
    assert page.tags["img"] == page.tags["iframe"] == 0
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action"):
            assert value.startswith(("#", "data:")), (tag, name, value)


def test_ids_are_unique_and_references_lead_somewhere(source: str, page: Page) -> None:
    assert [name for name, times in page.ids.items() if times > 1] == []
    for reference in re.findall(r'(?:href="#|url\(#)([\w-]+)', source):
        assert reference in page.ids
    for _, name, value in page.attributes:
        if name in ("aria-labelledby", "aria-describedby"):
            assert set(value.split()) <= set(page.ids)


def test_figures_follow_the_page(source: str) -> None:
    drawings = re.findall(r'<svg[^>]*class="plot".*?</svg>', source, flags=re.DOTALL)
    assert len(drawings) == 2 * (3 + 3 + 4 + 6)
    for drawing in drawings:
        assert not re.search(r"#[0-9a-f]{6}\b", drawing), "a colour that no theme can change"
        assert "font-family" not in drawing
        assert "<title" in drawing
        assert "<desc" in drawing
        assert "<style" not in drawing


def test_every_point_has_a_tooltip(source: str) -> None:
    speed = re.search(r"<svg[^>]*speed0-0-title.*?</svg>", source, flags=re.DOTALL)
    assert speed
    # 144 channels: 10 contenders at six batches, of which ns lacks one; ghost at four
    assert speed[0].count("</title></use>") == 9 * 6 + 5 + 4
    assert "fs[ratio=1/16]@inductor, batch 32: 1." in speed[0]


def test_headers_have_scopes(page: Page) -> None:
    scoped = sum(1 for tag, name, _ in page.attributes if (tag, name) == ("th", "scope"))
    assert scoped == page.tags["th"] > 0


def test_names_are_text_never_markup(small: Any) -> None:
    bad = '<script>alert("1")</script>&amp;'
    evil = f"{bad}@{bad}"
    records = [
        replace(r, contender=evil, reason=bad, notes=(bad,)) if r.contender == "bn@eager" else r
        for r in small.records
    ]
    records += [
        Record("b", evil, "latency", "error", Workload(f"real:{bad}", 1, 2, (3,)), "bn@aten",
               direction="fwd", reason=bad),
        Record("b", evil, "memory", "ok", Workload(f"real:{bad}", 1, 2, (3,)), "bn@aten",
               estimates={bad: Estimate(1.0)}),
    ]  # fmt: skip
    plan = Plan(bad, bad, bad, 1, small.plan.blocks)
    environment = {bad: {bad: [bad, {bad: bad}]}, "command": bad, "machine": {"cpu": bad}}
    made = changed(small, plan=plan, records=records, environment=environment, problems=[bad],
                   path=Path(bad))  # fmt: skip
    page = Page(html.render(made))
    assert page.tags["script"] == 1
    assert page.text.count(bad) > 20
    assert "&amp;lt;" not in html.render(made)


def test_a_run_of_nothing_is_a_report(small: Any) -> None:
    page = Page(html.render(changed(small, records=[], environment={})))
    assert "No latency ratio was measured" in page.text
    empty = changed(small, records=[], environment={}, path=None,
                    plan=Plan("s", "Empty", "", 1, ()))  # fmt: skip
    assert "Empty" in Page(html.render(empty)).text


@pytest.mark.parametrize("measure", ["latency", "error"])
def test_a_run_of_one_measure_is_a_report(small: Any, measure: str) -> None:
    page = Page(
        html.render(changed(small, records=[r for r in small.records if r.measure == measure]))
    )
    assert ("verdict-table" in page.rows) == (measure == "latency")
    assert ("All 20 results" in page.text) == (measure == "error")


def test_a_single_batch_a_single_pair_and_an_endless_interval(small: Any) -> None:
    records = [
        replace(r, estimates={**r.estimates, "ratio": Estimate(1.1, 0.0, float("inf"))})
        for r in small.records
        if r.workload.batch == 4 and r.measure == "latency" and r.status == "ok"
    ]
    page = Page(html.render(changed(small, records=records)))
    assert "no usable interval" in page.text


def test_two_devices_are_answered_apart(small: Any) -> None:
    moved = [
        replace(r, block=f"{r.block}x", workload=replace(r.workload, device="cuda"))
        for r in small.records
    ]
    page = Page(html.render(changed(small, records=small.records + moved)))
    assert "cpu: On this machine" in page.text
    assert "cuda: On this machine" in page.text


def test_rendering_again_gives_the_same_bytes(run: Any, source: str) -> None:
    assert html.render(run) == source


def test_a_full_run_can_be_mailed(source: str) -> None:
    assert len(source.encode()) < 3e6


def test_write_replaces_in_one_step(small: Any, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr(html, "render", lambda *_: "né")
    assert html.write(small, path) == path
    assert path.read_text(encoding="utf-8") == "né"

    def broken(*_: object) -> str:
        raise RuntimeError

    monkeypatch.setattr(html.os, "replace", broken)
    with pytest.raises(RuntimeError):
        html.write(small, path)
    assert path.read_text(encoding="utf-8") == "né"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_notebook_gets_a_frame_of_its_own(small: Any) -> None:
    page = Page(html.fragment(small))
    assert page.tags == {"iframe": 1}
    assert ("iframe", "srcdoc", html.render(small)) in page.attributes


def test_threshold_reaches_verdicts_and_words(small: Any) -> None:
    page = Page(html.render(small, threshold=0.5))
    rows = squeezed(page.rows["verdict-table"])
    assert {row[6] for row in rows} & {"▲ FASTER"} == set()
    assert "threshold of 50 %" in " ".join(page.text.split())


@pytest.mark.parametrize("threshold", [0.05, 0.2])
def test_the_rule_told_is_the_rule_used(small: Any, threshold: float) -> None:
    text = " ".join(Page(html.render(small, threshold)).text.split())
    told = re.search(r"FASTER the ratio is ([\d.]+) or more, .*? above ([\d.]+)\.", text)
    assert told
    edge, certain = float(told[1]), float(told[2])

    def verdict(value: float, low: float) -> str:
        return judge(Estimate(value, low, 3.0), threshold).verdict

    assert verdict(edge + 0.002, certain + 0.001) == "FASTER"
    assert verdict(edge - 0.002, certain + 0.001) == "UNCLEAR"
    assert verdict(edge + 0.002, certain - 0.001) == "UNCLEAR"
    assert f"below {1 / certain:.3f}." in text


def test_contender_of_other_shape_has_a_style(small: Any) -> None:
    records = [replace(r, contender="mine") if r.contender == "bn@eager" else r
               for r in small.records]  # fmt: skip
    assert "mine" in Page(html.render(changed(small, records=records))).text
    assert Contender("bn", "eager").id == "bn@eager"


def test_reports_need_no_torch() -> None:
    code = (
        "import sys; from sbnbench_reports import html, markdown; "
        "sys.exit(any(m.split('.')[0] in ('torch', 'sbnbench_kernels') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
