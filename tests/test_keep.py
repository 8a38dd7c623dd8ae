"""Runs that are kept: data without raw samples, and pages made from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sbnbench import analyse
from sbnbench.errors import StoreError
from sbnbench.keep import keep
from sbnbench.model import (
    Block,
    Contender,
    ErrorOptions,
    Estimate,
    LatencyOptions,
    Plan,
    Record,
    Workload,
)
from sbnbench.pages import kept_runs, performance_page
from sbnbench.store import Run, load
from sbnbench_reports import costs, kept

DOCS = Path(__file__).parents[1] / "docs"
BN, FS = Contender("bn", "aten"), Contender("fs", "inductor")


def close(value: float, unit: str = "1") -> Estimate:
    return Estimate(value, value * 0.99, value * 1.01, unit=unit)


@pytest.fixture
def run() -> Run:
    blocks, records = [], []
    for channels, speed in ((4, 2.0), (8, 8.0)):
        workload = Workload("synthetic", 10, channels, (2, 2))
        block = Block(
            workload, (BN, FS), BN, ("latency",), ("fwd_bwd",), LatencyOptions(), ErrorOptions()
        )
        blocks.append(block)
        tensor = 10 * channels * 4 * 4
        for contender, ratio, passes in ((BN, 1.0, 8.0), (FS, speed, 5.5)):
            estimates = {
                "ratio": close(ratio),
                "time": close(0.08 / ratio, "s"),
                "floor_time": close(0.02 / ratio, "s"),
                "attainable": close(0.25),
            }
            floor = {
                "bytes_read": (passes - 2) * tensor,
                "bytes_written": 2 * tensor,
                "bytes_known": True,
            }
            records.append(
                Record(
                    block.id,
                    contender.id,
                    "latency",
                    "ok",
                    workload,
                    BN.id,
                    "fwd_bwd",
                    estimates=estimates,
                    samples={"time": [[0.1]]},
                    facts={"floor": floor},
                )
            )
    environment = {
        "date": "2026-01-02T03:04:05+00:00",
        "commit": "0123456789ab",
        "command": "sbnbench run -s layers --out /home/me/x -a batch=10",
        "machine": {"cpu": "A CPU", "usable_cores": 2},
        "gpus": [{"name": "A GPU"}],
        "versions": {"torch": "2.13.0"},
    }
    return Run(Plan("layers", "Layers", "", 0, tuple(blocks)), environment, records)


def test_costs_sum_over_layers(run: Run) -> None:
    ((_, batch, direction), entries), *others = costs.costs(
        analyse.comparisons(run.records)
    ).items()
    assert not others
    assert (batch, direction) == (10, "fwd_bwd")
    bn, fs = entries
    assert bn.passes == (8, 8)
    assert fs.passes == (5.5, 5.5)
    assert fs.moved == 5.5 * 10 * (4 + 8) * 4 * 4
    assert fs.seconds == pytest.approx(0.08 / 2 + 0.08 / 8)
    assert fs.floor == pytest.approx(fs.seconds / 4)
    assert fs.ratio.value == pytest.approx(4)
    assert fs.extremes == (2.0, 8.0)
    assert fs.attainable.value == pytest.approx(0.25)


def test_the_page_says_where_from_and_how_much(run: Run) -> None:
    page = kept.page(run)
    for fact in ("A CPU, 2 cores", "A GPU", "2026-01-02", "`0123456789ab`", "torch 2.13.0"):
        assert fact in page
    (row,) = (line for line in page.splitlines() if line.startswith("| `fs@inductor` | 5.5"))
    assert "| 25 % | 4.00× ±" in row
    assert "| 2.00× … 8.00× |" in row
    assert "| synthetic 4×2×2 |" in page


def test_kept_is_all_but_samples_and_where_it_went(run: Run, tmp_path: Path) -> None:
    keep(run, tmp_path / "kept")
    found = load(tmp_path / "kept")
    assert found.problems == []
    assert found.missing() == []
    assert [r.estimates for r in found.records] == [r.estimates for r in run.records]
    assert not any(r.samples for r in found.records)
    assert found.environment["command"] == "sbnbench run -s layers -a batch=10"
    assert (tmp_path / "kept" / "README.md").read_text() == kept.page(found)
    run.environment["command"] = "sbnbench run --out=/home/me/x -s layers"
    keep(run, tmp_path / "other")
    assert load(tmp_path / "other").environment["command"] == "sbnbench run -s layers"
    with pytest.raises(StoreError, match="already holds a run"):
        keep(run, tmp_path / "kept")


def test_pages_of_kept_runs_are_current() -> None:
    runs = kept_runs(DOCS)
    assert (DOCS / "performance.md").read_text(encoding="utf-8") == performance_page(runs)
    for found in runs:
        assert found.path is not None
        assert (found.path / "README.md").read_text(encoding="utf-8") == kept.page(found)
