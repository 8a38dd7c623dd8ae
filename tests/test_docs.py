"""What the documents promise: examples that run, options that exist, links that lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
PAGES = sorted([*TOP.glob("*.md"), *TOP.glob("docs/**/*.md")])
CI = (TOP / "docs" / "ci.md").read_text()

pytest_plugins = ["pytester"]


def block(name: str) -> str:
    found = re.search(rf"^```\w+ {re.escape(name)}\n(.*?)^```$", CI, re.M | re.S)
    assert found, name
    return found[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(TOP)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not re.match(r"https?://|mailto:", target):
            assert (page.parent / target).exists(), target


def test_decisions_are_short_complete_and_listed() -> None:
    folder = TOP / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    pages = sorted(folder.glob("0*.md"))
    assert [int(p.name[:4]) for p in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        text = page.read_text()
        assert len(text.splitlines()) <= 25
        assert re.findall(r"\*\*(\w+)\.\*\*", text) == ["Context", "Decision", "Consequence"]
        assert f"]({page.name})" in index


def test_the_options_of_the_ci_examples_exist(sbnbench) -> None:  # type: ignore[no-untyped-def]
    used = re.findall(r"sbnbench gate ([^\n>`]*)", CI)
    assert len(used) >= 3
    known = sbnbench("gate", "--help").out
    for line in used:
        for option in re.findall(r"--[a-z-]+", line):
            assert option in known, option


def test_the_ci_files_are_well_formed() -> None:
    subprocess.run(["sh", "-n"], input=block("ci.sh"), text=True, check=True)
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load(block(".github/workflows/speed.yml"))["jobs"]["gates"]
    for step in job["steps"]:
        assert ("uses" in step) != ("run" in step)
        if "run" in step:
            subprocess.run(["sh", "-n"], input=step["run"], text=True, check=True)


def test_the_tests_of_the_example_are_valid_gates(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without timing: the contenders exist, are verified, and the markers make sense."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", ":".join(p for p in sys.path if p))
    pytester.makepyfile(test_speed=block("test_speed.py"))
    plugins = ("-p", "pytest_benchmark.plugin", "-p", "sbnbench.pytest_plugin")
    done = pytester.runpytest_subprocess(*plugins, "--benchmark-disable", timeout=120)
    done.assert_outcomes(passed=2)
