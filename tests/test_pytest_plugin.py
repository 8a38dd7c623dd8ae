"""The pytest plug-in, in test sessions of its own: what passes, fails, skips, and is written."""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

FAKE = """
import pytest
from sbnbench import duel
from sbnbench.model import Estimate, Record
from sbnbench.statistics import decide

RATIOS = {
    "bn@eager": (1.5, 1.4, 1.6),
    "gn@eager": (0.5, 0.45, 0.55),
    "bs@eager": (1.0, 0.8, 1.25),
}
FAILED = {
    "ln@eager": ("failed-verification", "dx differs from float64 by 0.3"),
    "in@eager": ("unavailable", "needs a GPU"),
}

def blank(block, **more):
    name = block.contenders[0].id
    status, reason = FAILED.get(name, ("ok", ""))
    return Record(block.id, name, "latency", status, block.workload, block.baseline.id,
                  block.directions[0], reason, **more)

def fake(block, rule, worker, *, slowdown=0.0, seed=0, timeout=0.0):
    if block.contenders[0].id in FAILED:
        record = blank(block)
        return duel.Duel(record, "UNCLEAR", record.reason)
    ratio = Estimate(*RATIOS[block.contenders[0].id])
    record = blank(block,
        estimates={"ratio": ratio, "attainable": Estimate(0.25)},
        samples={"time": [[0.25, 0.5, 0.75]] * 5, "baseline": [[0.5] * 3] * 5})
    return duel.Duel(record, *decide(ratio, rule.threshold))

def fake_verify(block, worker, *, timeout=0.0):
    record = blank(block)
    return duel.Duel(record, "UNCLEAR", record.reason)

duel.duel = fake
duel.verify = fake_verify
"""

HEAD = """
import pytest
IN = "synthetic:8x8x8"
"""

ALL = (
    HEAD
    + """
gate = pytest.mark.sbn_gate

@gate(faster_than="bn@aten", at_least=1.2)
def test_faster(sbn_benchmark):
    assert sbn_benchmark("bn@eager", IN, batch=2).record.contender == "bn@eager"

@gate(not_slower_than="bn@aten", threshold="5%")
def test_slower(sbn_benchmark):
    sbn_benchmark("gn@eager", IN, batch=2)

@gate(not_slower_than="bn@aten")
def test_unclear(sbn_benchmark):
    sbn_benchmark("bs@eager", IN, batch=2)

@gate(not_slower_than="bn@aten")
def test_wrong(sbn_benchmark):
    sbn_benchmark("ln@eager", IN, batch=2)

@gate(not_slower_than="bn@aten")
def test_lacking(sbn_benchmark):
    sbn_benchmark("in@eager", IN, batch=2)

def test_without_gate(sbn_benchmark):
    sbn_benchmark("gn@eager", IN, batch=2)

@gate(not_slower_than="bn@aten")
def test_unknown(sbn_benchmark):
    sbn_benchmark("bm@eager", IN, batch=2)
"""
)


class Session:
    """A finished test session."""

    def __init__(self, result: pytest.RunResult) -> None:
        self.code = result.ret
        self.out = result.stdout.str() + result.stderr.str()
        self.outcomes = dict(
            re.findall(r"test_it\.py::(\w+) (PASSED|FAILED|SKIPPED|\w+)", self.out)
        )

    def reason(self, test: str) -> str:
        """What the section of a failed test says."""
        found = re.search(
            rf"_+ (?:ERROR at setup of )?{test} _+\n(.*?)\n(?:_{{4,}}|=|-)", self.out, re.S
        )
        assert found, self.out
        return found[1]


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Runs pytest on a file in a process of its own, with this plug-in and pytest-benchmark."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))

    def run(
        text: str,
        *arguments: object,
        plugins: Sequence[str] = ("pytest_benchmark.plugin", "sbnbench.pytest_plugin"),
        fake: bool = True,
    ) -> Session:
        if fake:
            pytester.makeconftest(FAKE)
        pytester.makepyfile(test_it=text)
        options = [part for plugin in plugins for part in ("-p", plugin)]
        return Session(
            pytester.runpytest_subprocess("-v", *options, *arguments, timeout=120)  # type: ignore[arg-type]
        )

    return run


def test_outcomes(session, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    found = session(ALL, "--benchmark-json", tmp_path / "o.json", "-rs")
    assert found.outcomes == {
        "test_faster": "PASSED",
        "test_slower": "FAILED",
        "test_unclear": "INCONCLUSIVE",
        "test_wrong": "FAILED",
        "test_lacking": "SKIPPED",
        "test_without_gate": "PASSED",
        "test_unknown": "FAILED",
    }
    assert found.code == 1

    said = found.reason("test_slower")
    for part in ("gn@eager against bn@aten", "0.500 (0.45–0.55)", "at least 0.952", "1.05 times"):
        assert part in said
    assert "Verdict at 5 %: SLOWER; 5 processes, 15 pairs" in said
    assert "sbnbench doctor --noise" in said
    assert found.reason("test_wrong").startswith("ln@eager: failed-verification: dx differs from")
    assert "Traceback" not in found.out
    assert "During handling" not in found.out
    assert "unknown normalizer 'bm'; did you mean" in found.reason("test_unknown")
    assert "in@eager: unavailable: needs a GPU" in found.out
    assert "gates without an answer" in found.out
    assert re.search(r"test_it\.py::test_unclear: bs@eager against bn@aten, .*too wide", found.out)
    assert "1 inconclusive" in found.out

    entries = {b["name"]: b for b in json.loads((tmp_path / "o.json").read_text())["benchmarks"]}
    assert set(entries) == {"test_faster", "test_slower", "test_unclear", "test_without_gate"}
    fast = entries["test_faster"]
    assert fast["stats"]["data"] == [0.25, 0.5, 0.75] * 5  # the contender's own, and only those
    assert fast["stats"]["median"] == 0.5
    assert fast["extra_info"] == {
        "contender": "bn@eager",
        "baseline": "bn@aten",
        "ratio": 1.5,
        "low": 1.4,
        "high": 1.6,
        "verdict": "FASTER",
        "reason": "1.500 (1.400 … 1.600) lies beyond 1.200, all of it beyond 1.095",
        "processes": 5,
        "rounds": 15,
        "floor": 0.25,
        "gate": "KEPT",
        "limit": 1.2,
    }
    assert entries["test_slower"]["extra_info"]["gate"] == "BROKEN"
    assert entries["test_unclear"]["extra_info"]["gate"] == "UNCLEAR"
    assert "gate" not in entries["test_without_gate"]["extra_info"]
    assert re.search(r"test_faster +\d.* +15 +1\n", found.out)  # the table: 15 rounds


def test_strict_fails_what_is_inconclusive(session) -> None:  # type: ignore[no-untyped-def]
    found = session(ALL, "--sbn-strict", "-k", "unclear or faster")
    assert found.outcomes == {"test_faster": "PASSED", "test_unclear": "FAILED"}
    assert found.reason("test_unclear").startswith("sbn_gate inconclusive: bs@eager")
    lenient = session(ALL, "-k", "unclear")
    assert (lenient.code, lenient.outcomes) == (0, {"test_unclear": "INCONCLUSIVE"})


def test_saving_and_comparing_go_on_working(session) -> None:  # type: ignore[no-untyped-def]
    first = session(ALL, "-k", "faster", "--benchmark-autosave")
    assert first.code == 0
    second = session(ALL, "-k", "faster", "--benchmark-compare", "--benchmark-compare-fail=mean:1%")
    assert second.code == 0
    assert re.search(r"test_faster \(0001_.*\) .*\(1\.0\)", second.out)
    assert re.search(r"test_faster \(NOW\) .*\(1\.0\)", second.out)


def test_disabled_verifies_and_skip_skips(session) -> None:  # type: ignore[no-untyped-def]
    found = session(ALL, "--benchmark-disable", "-k", "slower or wrong or unclear")
    assert found.outcomes == {
        "test_slower": "PASSED",
        "test_unclear": "PASSED",
        "test_wrong": "FAILED",
    }
    skipped = session(ALL, "--benchmark-skip")
    assert set(skipped.outcomes.values()) == {"SKIPPED"}


MISTAKES = {
    "faster_then='bn@aten'": "unknown argument 'faster_then'; did you mean faster_than",
    "'bn@aten'": "write arguments by name, such as faster_than='bn@aten'",
    "": "give one of faster_than",
    "faster_than='bn@aten', not_slower_than='bn@aten'": "give one of faster_than",
    "faster_than='bn@aten', at_least=0.9": "at_least=0.9 is no demand to be faster",
    "faster_than='bn@aten', at_least=1.2, threshold=0.1": "give at_least or threshold, not both",
    "not_slower_than='bn@aten', at_least=1.2": "at_least goes with faster_than",
    "not_slower_than='bn@aten', threshold=-1": "threshold is -1; a number above 0 is wanted",
    "not_slower_than='bn@aten', threshold='five'": "threshold is 'five'; write 5% or 0.05",
    "not_slower_than='bn@aten', seconds=0": "seconds is 0; a number above 0 is wanted",
}


def test_a_marker_that_makes_no_sense_is_an_error_with_its_reason(session) -> None:  # type: ignore[no-untyped-def]
    tests = [
        f"@pytest.mark.sbn_gate({arguments})\n"
        f"def test_{n}(sbn_benchmark):\n    sbn_benchmark('bn@eager', IN)\n"
        for n, arguments in enumerate(MISTAKES)
    ]
    tests.append(
        "@pytest.mark.sbn_gate(faster_than='bn@aten')\ndef test_idle():\n    assert True\n"
    )
    found = session("\n".join([HEAD, *tests]))
    assert found.code == 1
    for n, said in enumerate(MISTAKES.values()):
        assert found.reason(f"test_{n}").startswith(f"sbn_gate: {said}")
    assert "does not use the fixture sbn_benchmark" in found.reason("test_idle")


def test_without_pytest_benchmark_it_says_so_and_disturbs_nobody(session) -> None:  # type: ignore[no-untyped-def]
    text = ALL + "\ndef test_other():\n    assert True\n"
    found = session(text, "-k", "faster or other", plugins=("sbnbench.pytest_plugin",))
    assert found.outcomes == {"test_faster": "ERROR", "test_other": "PASSED"}
    assert found.reason("test_faster").startswith("sbn_benchmark needs pytest-benchmark")


@pytest.mark.slow
def test_no_timing_beside_other_workers(session) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("xdist")
    plugins = ("xdist.plugin", "pytest_benchmark.plugin", "sbnbench.pytest_plugin")
    found = session(ALL, "-n2", "-rs", "-k", "slower or wrong", plugins=plugins)
    assert found.code == 0
    assert "not timed beside 1 other pytest-xdist workers" in found.out
    assert "2 skipped" in found.out
    verified = session(ALL, "-n2", "--benchmark-disable", "-k", "slower or wrong", plugins=plugins)
    assert "1 failed, 1 passed" in verified.out
    alone = session(ALL, "-n1", "-k", "slower or unclear", plugins=plugins)
    assert "1 failed, 1 inconclusive" in alone.out


def test_loading_the_plugin_imports_nothing_heavy(session) -> None:  # type: ignore[no-untyped-def]
    found = session(
        "import sys\ndef test_light():\n"
        "    heavy = {'torch', 'numpy', 'scipy', 'msgspec', 'sbnbench.pytest_gate'}\n"
        "    assert not heavy & set(sys.modules)\n",
        fake=False,
    )
    assert found.outcomes == {"test_light": "PASSED"}


def test_it_is_an_entry_point_of_the_package() -> None:
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())
    points = project["project"]["entry-points"]["pytest11"]
    assert points == {"sbnbench": "sbnbench.pytest_plugin"}


@pytest.mark.slow
def test_a_real_one(session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two threads wait for each other beside a neighbour
    text = HEAD + (
        "@pytest.mark.sbn_gate(not_slower_than='bn@aten', threshold=1.0, seconds=1.2)\n"
        "def test_same(sbn_benchmark):\n    sbn_benchmark('bn@aten', IN, batch=4)\n"
        "@pytest.mark.sbn_gate(faster_than='bn@aten', at_least=2.0, seconds=1.2)\n"
        "def test_not_twice_as_fast(sbn_benchmark):\n    sbn_benchmark('bn@aten', IN, batch=4)\n"
    )
    found = session(text, "--benchmark-json", tmp_path / "o.json", fake=False)
    assert found.outcomes == {"test_same": "PASSED", "test_not_twice_as_fast": "FAILED"}
    entries = {b["name"]: b for b in json.loads((tmp_path / "o.json").read_text())["benchmarks"]}
    info = entries["test_same"]["extra_info"]
    assert info["low"] < info["ratio"] < info["high"]
    assert entries["test_same"]["stats"]["rounds"] == info["rounds"]
    assert entries["test_same"]["stats"]["median"] < 0.01
