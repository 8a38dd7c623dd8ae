"""A package of twenty lines, installed by its entry point, is listed, verified, timed, reported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sbnbench.store import load

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"


def block(name: str) -> str:
    """The file of this name in CONTRIBUTING.md."""
    found = re.search(
        rf"^```\w+ {re.escape(name)}\n(.*?)^```$", CONTRIBUTING.read_text(), re.M | re.S
    )
    assert found, name
    return found[1]


PROJECT, MODULE = block("pyproject.toml"), block("sbn_rms.py")

SUITE = """
title = "With a plug-in"
contenders = ["rms@eager", "bn@eager"]
directions = ["fwd_bwd"]
[axes]
input = ["synthetic:8x6x6"]
batch = [4]
[latency]
seconds = 0.06
"""


def install(folder: Path, module: str) -> dict[str, str]:
    """Install the package into a folder of its own; the environment that sees it."""
    source = folder / "source"
    source.mkdir()
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "sbn_rms.py").write_text(module)
    site = folder / "site"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
            *("--no-build-isolation", "--target", str(site), str(source)),
        ],
        check=True,
    )
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def sbnbench(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sbnbench", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_package_has_twenty_lines_at_most() -> None:
    assert len((PROJECT + MODULE).splitlines()) <= 20


def test_a_plug_in_goes_the_whole_way(tmp_path: Path) -> None:
    environment = install(tmp_path, MODULE)
    listed = json.loads(sbnbench(environment, "list", "normalizers", "--json").stdout)
    entry = next(n for n in listed["normalizers"] if n["name"] == "rms")
    assert entry["provider"] == "sbn-rms"
    (tmp_path / "suite.toml").write_text(SUITE)
    done = sbnbench(
        environment, "run", "--suite", tmp_path / "suite.toml", "--out", tmp_path / "run"
    )
    assert done.returncode == 0, done.stderr
    records = {r.contender: r for r in load(tmp_path / "run").records}
    rms = records["rms@eager"]
    assert rms.status == "ok"
    assert rms.facts["verification"]["dx"] < 1e-4
    assert rms.estimates["ratio"].low is not None
    assert "rms@eager" in (tmp_path / "run" / "report.html").read_text()


def test_a_plug_in_with_a_wrong_gradient_is_not_timed(tmp_path: Path) -> None:
    environment = install(tmp_path, MODULE.replace("g = dy * weight", "g = dy"))
    (tmp_path / "suite.toml").write_text(SUITE)
    done = sbnbench(
        environment, "run", "--suite", tmp_path / "suite.toml", "--out", tmp_path / "run"
    )
    assert done.returncode == 3, done.stderr
    records = {r.contender: r for r in load(tmp_path / "run").records}
    assert records["rms@eager"].status == "failed-verification"
    assert "dx differs" in records["rms@eager"].reason
    assert records["rms@eager"].samples == {}
    assert records["bn@eager"].status == "ok"


@pytest.mark.parametrize(
    ("module", "reason"),
    [("import nothing_here", "nothing_here"), ("NORMALIZER = 3", "not a Normalizer")],
)
def test_a_plug_in_that_does_not_load_is_named_and_stops_nothing(
    tmp_path: Path, module: str, reason: str
) -> None:
    environment = install(tmp_path, module)
    done = sbnbench(environment, "list", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert reason in found["plug-ins that did not load"]["rms (sbn-rms)"]
    assert any(n["name"] == "bn" for n in found["normalizers"])
    assert "did not load" in sbnbench(environment, "doctor").stdout
