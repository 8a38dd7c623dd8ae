"""Kills at random moments, to the parent and to its worker: after --resume nothing is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sbnbench.store import RECORDS, expected, load

SUITE = """
title = "Kills"
contenders = ["bn@aten", "fs@eager"]
measures = ["latency", "error"]
directions = ["fwd"]
[axes]
input = ["synthetic:4x5x5"]
batch = "{batches}"
[latency]
seconds = 0.15
[error]
draws = 4
"""
KILLS = 50


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "sbnbench", "run", *arguments],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def kill_something(process: subprocess.Popen[bytes], chance: random.Random) -> bool:
    """Kill the parent, its worker or the worker's task; was there something to kill?"""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid)]
        family += family[0].children(recursive=True)
        target = chance.choice(family)
        target.send_signal(signal.SIGKILL)
        return True
    return False


@pytest.mark.slow
def test_fifty_kills(tmp_path: Path) -> None:
    chance = random.Random(20)
    kills = finished = 0
    while kills < KILLS:
        folder = tmp_path / str(finished)
        folder.mkdir()
        (folder / "s.toml").write_text(SUITE.format(batches=",".join(map(str, range(2, 10)))))
        process = start(folder, "-s", "s.toml", "--out", "out")
        while True:
            end = time.monotonic() + chance.uniform(0.3, 6.0)
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
            if process.poll() is None:
                kills += kill_something(process, chance)
                continue
            if process.returncode in (0, 3):
                break
            if (folder / "out" / "plan.json").exists():
                process = start(folder, "--resume", "out")
            else:  # killed before there was anything to go on with
                process = start(folder, "-s", "s.toml", "--out", "out")
        run = load(folder / "out")
        assert run.missing() == []
        assert run.problems == []  # no torn record, no duplicate
        wanted = sorted(key for block in run.plan.blocks for key in expected(block))
        assert sorted(r.key for r in run.records) == wanted
        assert (folder / "out" / "report.html").exists()
        finished += 1
    assert finished >= 2


def test_an_orphaned_worker_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SUITE.format(batches="2,3,4,5,6,7"))
    process = start(tmp_path, "-s", "s.toml", "--out", "out")
    end = time.monotonic() + 60
    while not (tmp_path / "out" / RECORDS).exists() and time.monotonic() < end:
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
