"""Tables that GitHub renders."""

from __future__ import annotations

import re
from dataclasses import replace as changed
from typing import Any

from msgspec.structs import replace

from sbnbench_reports import markdown


def tables(text: str) -> list[list[list[str]]]:
    """Each table as rows of cells."""
    found = []
    for part in re.split(r"\n\s*\n", text):
        lines = part.splitlines()
        if lines and all(line.startswith("|") for line in lines):
            found.append([re.split(r"(?<!\\)\|", line)[1:-1] for line in lines])
    return found


def test_every_latency_record_is_in_a_cell(run: Any) -> None:
    found = tables(markdown.table(run))
    assert len(found) == 2 * 3
    for table in found:
        assert {len(row) for row in table} == {7}
        assert len(table) == 12 + 2
        assert all(cell.strip() for row in table for cell in row)
    text = markdown.table(run)
    failed = sum(r.measure == "latency" and r.status == "timeout" for r in run.records)
    assert text.count("timeout") == failed > 0


def test_a_cell_shows_ratio_width_and_verdict(run: Any) -> None:
    row = next(line for line in markdown.table(run).splitlines()
               if line.startswith("| fs\\[ratio=1/16\\]@inductor"))  # fmt: skip
    assert re.search(r"1\.3\d× ±[\d.]+ % ▲ \|$", row)


def test_names_cannot_break_a_table(run: Any) -> None:
    records = [
        replace(r, contender="a|b<script>@`x`") if r.contender == "bn@eager" else r
        for r in run.records
    ]
    text = markdown.table(changed(run, records=records))
    assert {len(row) for table in tables(text) for row in table} == {7}
    assert "<script>" not in text.replace("\\<script\\>", "")


def test_the_answer_comes_first(run: Any) -> None:
    lines = markdown.table(run).splitlines()
    assert lines[0] == "## Norms at micro-batch sizes"
    assert lines[2].startswith("On this machine, at batch 32")
