"""The command line as a user meets it: output, errors of one or two lines, exit codes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import sbnbench as package
from sbnbench.store import load

SUITE = """
title = "T"
contenders = ["bn@aten", "fs@eager", "bs@eager", "gn[groups=3]@aten"]
measures = ["latency", "memory", "error"]
[axes]
input = ["synthetic:8x6x6"]
batch = [1, 4]
[latency]
seconds = 0.06
[error]
draws = 4
"""

Run = Callable[..., "object"]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "suite.toml"
    path.write_text(SUITE)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is there to look at."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "suite.toml").write_text(SUITE)
    package.run(str(folder / "suite.toml"), out=folder / "out")
    return folder / "out"


def test_a_run_writes_everything(sbnbench: Run, suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = sbnbench(
        "run", "-s", suite, "--out", out, "--csv", tmp_path / "r.csv", "--json", tmp_path / "r.json"
    )
    assert done.code == 0, done.err
    assert f"report: {out / 'report.html'}" in done.out
    assert "[2/2]" in done.out
    assert "harness overhead" in done.out
    assert "\x1b" not in done.out  # plain where nobody looks
    run = load(out)
    assert run.missing() == []
    assert len(run.records) == 2 * 4 * (3 + 3 + 1)
    assert len(json.loads((tmp_path / "r.json").read_text())) == len(run.records)
    with (tmp_path / "r.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(run.records)
    assert {"machine", "versions", "commit", "torch", "threads"} <= run.environment.keys()


def test_every_record_is_whole(finished: Path) -> None:
    run = load(finished)
    for record in run.records:
        assert record.status in ("ok", "not-applicable")
        if record.status != "ok":
            assert record.reason
            continue
        assert all(e.unit for e in record.estimates.values())
        if record.measure == "memory":
            assert record.estimates["peak_memory"].unit == "B"
            continue
        assert record.samples
        if record.measure == "latency":
            assert record.facts["floor"]["bytes_known"]
            assert record.estimates["attainable"].low is not None
            assert record.facts["clock"] == "perf_counter"
            ratio = record.estimates["ratio"]
            assert ratio.low is not None
            assert ratio.high is not None
            assert ratio.low <= ratio.value <= ratio.high
            assert len(record.samples["time"]) == 3  # processes
            assert [len(p) for p in record.samples["time"]] == [
                len(p) for p in record.samples["baseline"]
            ]


def test_what_the_time_went_to_is_in_the_run(finished: Path) -> None:
    timing = load(finished).environment["timing"]
    assert 0 < timing["timed"] < timing["total"]
    assert timing["overhead"] == pytest.approx(1 - timing["timed"] / timing["total"])
    assert {"set-up", "verification", "latency", "other measures"} <= timing["parts"].keys()
    samples = sum(
        sum(
            sum(times) * loops
            for name, many in (("time", "loops"), ("baseline", "baseline_loops"))
            for times, loops in zip(r.samples[name], r.facts[many], strict=True)
        )
        for r in load(finished).records
        if r.measure == "latency" and r.status == "ok"
    )
    assert samples < timing["timed"]  # which has the floors' samples too


def test_cold_caches_are_an_option(sbnbench: Run, suite: Path, tmp_path: Path) -> None:
    done = sbnbench(
        "run", "-s", suite, "--out", tmp_path / "out", "--cache", "cold", "--mode", "fwd",
        "-a", "batch=4", "--only", "bn",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = load(tmp_path / "out")
    assert found.plan.blocks[0].latency.cache == "cold"
    assert all(r.facts["loops"] == [1] * 3 for r in found.records if r.measure == "latency")


def test_what_does_not_apply_is_a_record_with_its_reason(finished: Path) -> None:
    found = [r for r in load(finished).records if r.contender == "gn[groups=3]@aten"]
    assert {r.status for r in found} == {"not-applicable"}
    assert all("3" in r.reason for r in found)


def test_a_degenerate_setting_is_said(finished: Path) -> None:
    whole = [
        r for r in load(finished).records if r.contender == "bs@eager" and r.workload.batch == 1
    ]
    assert whole
    assert all(r.facts["sampled_share"] == 1.0 and "batch" in " ".join(r.notes) for r in whole)


def test_the_baseline_against_itself_is_near_one(finished: Path) -> None:
    for r in load(finished).records:
        if r.contender == "bn@aten" and r.measure == "latency":
            assert 0.5 < r.estimates["ratio"].value < 2


def test_report_needs_no_torch(finished: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] == 'torch': raise ImportError(name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "from sbnbench import cli\n"
        f"sys.argv = ['sbnbench', 'report', {str(finished)!r},"
        f" '--out', {str(tmp_path / 'r.html')!r}]\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fs@eager" in (tmp_path / "r.html").read_text()


def test_markdown(sbnbench: Run, finished: Path) -> None:
    done = sbnbench("report", finished, "--md")
    assert done.code == 0
    assert "| contender" in done.out.lower()


def test_python_interface(finished: Path) -> None:
    run = package.load(finished)
    frame = run.to_pandas()
    assert len(frame) == len(run.records)
    assert "<" in run._repr_html_()


def test_dry_run_shows_the_plan_and_writes_nothing(
    sbnbench: Run, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = sbnbench("run", "-s", suite, "--dry-run", "-a", "batch=[pow2]1:8")
    assert done.code == 0
    assert "4 blocks" in done.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["suite.toml"]


BAD: list[tuple[list[str], str]] = [
    (["run"], "--suite NAME"),
    (["run", "-s", "micro-bach"], "did you mean micro-batch"),
    (["run", "-s", "gone.toml"], "gone.toml"),
    (["run", "-s", "smoke", "--only", "bm"], "did you mean bs or bn"),
    (["run", "-s", "smoke", "-a", "bacth=1"], "did you mean batch"),
    (["run", "-s", "smoke", "-a", "batch"], "AXIS=VALUES"),
    (["run", "-s", "smoke", "-a", "batch=-1"], "no batch size"),
    (["run", "-s", "smoke", "-a", "ratio=2"], "(0, 1]"),
    (["run", "-s", "smoke", "--dtype", "float31"], "float32"),
    (["run", "-s", "smoke", "--device", "cuda:99"], "no device cuda:99"),
    (["run", "-s", "smoke", "--device", "tpu"], "unknown device"),
    (["run", "-s", "smoke", "--mode", "back"], "unknown direction"),
    (["run", "-s", "smoke", "-k", "(fs"], "-k"),
    (["run", "-s", "smoke", "--clock", "cuda-graf"], "did you mean cuda-graph"),
    (["run", "-s", "smoke", "--clock", "cuda-graph"], "times an NVIDIA GPU"),
    (["run", "-s", "smoke", "--cache", "lukewarm"], "known: cold, hot"),
    (["run", "-s", "smoke", "--threshold", "lots"], "--threshold"),
    (["run", "-s", "smoke", "--out", "/proc/nothing/here"], "cannot write"),
    (["run", "--resume", "nowhere"], "no run directory"),
    (["report", "nowhere"], "no run directory"),
    (["list", "suits"], "did you mean suites"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_ends_in_two_lines_and_exit_2(
    sbnbench: Run,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = sbnbench(*arguments)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) <= 2
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_a_missing_extra_is_said_with_its_remedy(
    sbnbench: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sbnbench import environment

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        environment, "find_spec", lambda name: None if name == "skimage" else object()
    )
    done = sbnbench("run", "-s", "micro-batch")
    assert done.code == 2
    assert 'pip install "sbnbench[real]"' in done.err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_finished_blocks_and_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(SUITE.replace("[1, 4]", "[1, 2, 3, 4, 5, 6]"))
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "sbnbench", "run", "-s", tmp_path / "suite.toml", "--out", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        # A shell's background job, such as this test may be part of, ignores it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    records = out / "records.jsonl"
    end = time.monotonic() + 60
    while not (records.exists() and records.stat().st_size) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert f"--resume {out}" in errors
    kept = load(out)
    assert 1 <= len(kept.plan.blocks) - len(kept.missing()) < 6
    done = subprocess.run(
        [sys.executable, "-m", "sbnbench", "run", "--resume", out],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    whole = load(out)
    assert whole.missing() == []
    assert whole.problems == []
    assert [r for r in whole.records if r.block == kept.records[0].block] == [
        r for r in kept.records if r.block == kept.records[0].block
    ]
