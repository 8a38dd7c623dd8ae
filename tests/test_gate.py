"""The gate: verdicts from two runs, and a planted slow-down between two commits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sbnbench import trees
from sbnbench.errors import UsageError
from sbnbench.gate import Decision, Gate, against_run
from sbnbench.model import Estimate, Plan, Record, Workload
from sbnbench.store import Run

ENVIRONMENT = {
    "machine": {"cpu": "A", "usable_cores": 2, "memory_bytes": 1},
    "versions": {"torch": "2.13.0", "python": "3.11", "triton": "3.7"},
    "gpus": "none",
    "torch": {"threads": 2},
}


def make_run(ratio: float, half: float = 0.01, **changes: Any) -> Run:
    def record(contender: str, value: float) -> Record:
        return Record(
            "b", contender, "latency", "ok", Workload("synthetic", 2, 3, ()), "bn@aten", "fwd",
            estimates={"ratio": Estimate(value, value * (1 - half), value * (1 + half))},
        )  # fmt: skip

    records = [record("bn@aten", 1.0), record("fs@eager", ratio)]
    return Run(Plan("t", "T", "", 0, ()), {**ENVIRONMENT, **changes}, records)


@pytest.mark.parametrize(
    ("now", "before", "verdict", "code"),
    [(1.0, 1.2, "SLOWER", 1), (1.2, 1.0, "FASTER", 0), (1.0, 1.005, "SAME", 0)],
)
def test_two_runs_are_compared_by_their_ratios(
    now: float, before: float, verdict: str, code: int
) -> None:
    found = against_run(make_run(now), make_run(before), 0.05, False)
    (decision,) = found.decisions  # the baseline is the measure, and is not judged
    assert decision.verdict == verdict
    assert decision.change is not None
    assert decision.change.value == pytest.approx(now / before)
    assert found.exit_code(strict=True) == code


def test_the_intervals_of_both_runs_count() -> None:
    found = against_run(make_run(1.0, 0.03), make_run(1.0, 0.04), 0.05, False)
    change = found.decisions[0].change
    assert change is not None
    assert change.high == pytest.approx(1.05, abs=0.002)
    assert found.decisions[0].verdict == "UNCLEAR"
    assert (found.exit_code(strict=False), found.exit_code(strict=True)) == (0, 4)
    assert "±5.0 %" in found.notes[-1]


def test_other_ground_is_refused_or_labelled() -> None:
    elsewhere = make_run(1.0, machine={"cpu": "B", "usable_cores": 2, "memory_bytes": 1})
    with pytest.raises(UsageError, match=r"cpu A and B.*--allow-mixed"):
        against_run(make_run(1.0), elsewhere, 0.05, False)
    assert "mixed: cpu A and B" in against_run(make_run(1.0), elsewhere, 0.05, True).notes


def test_what_the_other_run_lacks_is_said() -> None:
    old = make_run(1.0)
    found = against_run(make_run(1.0), Run(old.plan, old.environment, old.records[:1]), 0.05, False)
    assert "not there" in found.decisions[0].reason
    with pytest.raises(UsageError, match="in common"):
        against_run(Run(old.plan, old.environment, old.records[:1]), old, 0.05, False)


def test_exit_codes_by_precedence() -> None:
    base = Decision("a", Workload("s", 1, 1, ()), "fwd", "ok", "SAME", "")
    slow = msgspec.structs.replace(base, verdict="SLOWER")
    dead = msgspec.structs.replace(base, status="crashed", verdict="UNCLEAR")
    assert Gate("x", 0.05, (base, slow, dead)).exit_code(False) == 1
    assert Gate("x", 0.05, (base, dead)).exit_code(False) == 3
    assert Gate("x", 0.05, (base,)).exit_code(True) == 0


MODULE = """\
from sbnbench import Normalizer
class Scale:
    def forward(self, x, weight, bias, state):
        w, b = (t.view(-1, *[1] * (x.ndim - 2)) for t in (weight, bias))
        return x * w + b, (x, w)
    def backward(self, dy, saved):
        x, w = saved
        axes = [0, *range(2, x.ndim)]
        return dy * w, (dy * x).sum(axes), dy.sum(axes)
NORMALIZER = Normalizer("scale", "Scale", "γx+b", "this test", {"eager": "sbn_scale:Scale"})
"""
PROJECT = """\
[project]
name = "sbn-scale"
version = "1.0"
[project.entry-points."sbnbench.normalizers"]
scale = "sbn_scale:NORMALIZER"
"""
SUITE = """
title = "Gate"
contenders = ["scale@eager"]
directions = ["fwd"]
[axes]
input = ["synthetic:64x16x16"]
batch = [8]
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A plug-in package in a git repository of its own."""
    folder = tmp_path / "plug-in"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "sbn_scale.py").write_text(MODULE)
    (folder / "suite.toml").write_text(SUITE)
    git(folder, "init", "--quiet")
    commit(folder, "first")
    return folder


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.invalid")
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "--quiet", "-m", message)


def gate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The parent knows the plug-in by its name only when it is installed there as well.
    site = folder.parent / "site"
    if not site.exists():
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
                *("--no-build-isolation", "--target", str(site), str(folder)),
            ],
            check=True,
        )
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    # One thread: two of them wait for each other whenever a neighbour has one of two cores.
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "sbnbench", "gate", *arguments],
        cwd=folder, capture_output=True, text=True, env=environment,
    )  # fmt: skip


@pytest.mark.slow
def test_a_planted_slow_down_is_found_and_a_comment_passes(repository: Path) -> None:
    (repository / "sbn_scale.py").write_text(MODULE.replace("class Scale", "# why\nclass Scale"))
    commit(repository, "a comment")
    same = gate(repository, "--against", "HEAD~1", "--suite", "suite.toml", "--json")
    assert same.returncode == 0, same.stdout + same.stderr
    slower = MODULE.replace("return x * w + b,", "return (x * w + b) * 1.0,")
    (repository / "sbn_scale.py").write_text(slower)
    commit(repository, "half as much work again")
    worse = gate(repository, "--against", "HEAD~1", "--suite", "suite.toml", "--json")
    assert worse.returncode == 1, worse.stdout + worse.stderr
    (decision,) = json.loads(worse.stdout)["decisions"]
    assert decision["verdict"] == "SLOWER"
    assert decision["change"]["high"] < 1
    assert "worktree" in git(repository, "worktree", "list", "--porcelain")
    assert git(repository, "worktree", "list").count("\n") == 1  # the checkout is gone


def test_a_revision_that_does_not_exist(
    sbnbench: Callable[..., Any], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    done = sbnbench("gate", "--against", "no-such", "--suite", "smoke")
    assert done.code == 2
    assert "no such revision" in done.err


def test_a_revision_that_does_not_install(repository: Path) -> None:
    (repository / "pyproject.toml").write_text("[project]\nname = 3\n")
    commit(repository, "broken")
    (repository / "pyproject.toml").write_text(PROJECT)
    with (
        pytest.raises(UsageError, match="revision HEAD does not install"),
        trees.side_by_side("HEAD", repository),
    ):
        pass
    assert git(repository, "worktree", "list").count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [(), ("--against", "HEAD"), ("--suite", "smoke"), ("run", "--against", "x", "-s", "smoke")],
)
def test_bad_arguments(sbnbench: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    done = sbnbench("gate", *arguments)
    assert done.code == 2
    assert "give --against" in done.err
