"""A contender that crashes, hangs, eats the memory or raises falls alone; the run goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sbnbench.store import load

PROJECT = """\
[project]
name = "sbn-bad"
version = "1.0"
[project.entry-points."sbnbench.normalizers"]
bad = "sbn_bad:NORMALIZERS"
"""
MODULE = '''\
import os, signal, time
from sbnbench import Normalizer
class Scale:
    """γx + b, until its n-th forward, which does something else."""
    calls, after = 0, {after}
    def forward(self, x, weight, bias, state):
        type(self).calls += 1
        if type(self).calls > self.after:
            self.fail()
        w, b = (t.view(-1, *[1] * (x.ndim - 2)) for t in (weight, bias))
        return x * w + b, (x, w)
    def backward(self, dy, saved):
        x, w = saved
        axes = [0, *range(2, x.ndim)]
        return dy * w, (dy * x).sum(axes), dy.sum(axes)
class Segfault(Scale):
    def fail(self): os.kill(os.getpid(), signal.SIGSEGV)
class Killed(Scale):
    def fail(self): os.kill(os.getpid(), signal.SIGKILL)
class Hang(Scale):
    def fail(self): time.sleep(600)
class Raise(Scale):
    def fail(self): raise RuntimeError("no more")
class Memory(Scale):
    def fail(self): raise MemoryError("no room")
class Nan(Scale):
    def forward(self, x, weight, bias, state):
        y, saved = super().forward(x, weight, bias, state)
        return (y * float("nan") if x.dtype.itemsize < 8 else y), saved
NORMALIZERS = [
    Normalizer(n.lower(), n, "γx+b", "this test", {{"eager": f"sbn_bad:{{n}}"}})
    for n in ("Segfault", "Killed", "Hang", "Raise", "Memory", "Nan")
]
'''
SUITE = """
title = "Bad ones"
contenders = ["bn@aten", "{name}@eager", "bn@eager"]
directions = ["fwd"]
[axes]
input = ["synthetic:4x5x5"]
batch = [3]
[latency]
seconds = 0.1
"""


def run(folder: Path, name: str, after: int) -> tuple[int, dict[str, tuple[str, str]]]:
    """Exit code, and status and reason by contender."""
    source = folder / "source"
    source.mkdir()
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "sbn_bad.py").write_text(MODULE.format(after=after))
    (folder / "suite.toml").write_text(SUITE.format(name=name))
    site = folder / "site"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    subprocess.run([*pip, "--no-build-isolation", "--target", str(site), str(source)], check=True)
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "sbnbench", "run", "-s", folder / "suite.toml"]
    done = subprocess.run(
        [*command, "--out", folder / "out", "--timeout", "20" if name == "hang" else "120"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=500,
    )  # fmt: skip
    records = load(folder / "out").records
    return done.returncode, {r.contender: (r.status, r.reason) for r in records}


@pytest.mark.parametrize("after", [0, 3], ids=["at once", "while warming up"])
@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("segfault", "crashed"),
        ("killed", "out-of-memory"),
        pytest.param("hang", "timeout", marks=pytest.mark.slow),
    ],
)
def test_who_takes_its_process_along_falls_alone(
    tmp_path: Path, name: str, status: str, after: int
) -> None:
    code, found = run(tmp_path, name, after)
    assert code == 3
    assert found[f"{name}@eager"][0] == status
    assert found[f"{name}@eager"][1]
    assert found["bn@eager"][0] == found["bn@aten"][0] == "ok"


@pytest.mark.parametrize(
    ("name", "after", "status", "reason"),
    [
        ("raise", 0, "error", "no more"),
        ("memory", 0, "out-of-memory", "no room"),
        ("nan", 99, "failed-verification", "y differs"),
    ],
)
def test_who_fails_in_verification_is_not_timed(
    tmp_path: Path, name: str, after: int, status: str, reason: str
) -> None:
    code, found = run(tmp_path, name, after)
    assert code == 3
    assert found[f"{name}@eager"][0] == status
    assert reason in found[f"{name}@eager"][1]
    assert found["bn@eager"][0] == "ok"
