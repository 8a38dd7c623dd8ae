"""pytest plug-in: gates in a test file, on top of pytest-benchmark.

    @pytest.mark.sbn_gate(faster_than="bn@aten", at_least=1.2)
    def test_fs(sbn_benchmark):
        sbn_benchmark("fs[ratio=1/16]@inductor", "synthetic:64x28x28", batch=32)

pytest loads this module in every environment that has sbnbench, so nothing heavy is imported here:
the rest is in `pytest_gate.py`, imported when a test asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sbnbench.pool import Worker
    from sbnbench.pytest_gate import SbnBenchmark

MARKER = "sbn_gate"
FIXTURE = "sbn_benchmark"
INCONCLUSIVE = "sbn_inconclusive"
"""Name of the property of a test's report that tells why its gate was unclear."""

MARKER_HELP = (
    f"{MARKER}(faster_than=None, at_least=1.05, not_slower_than=None, threshold=0.05, seconds=6): "
    "what sbn_benchmark demands of the contender against the baseline"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("sbnbench").addoption(
        "--sbn-strict", action="store_true", help="Fail tests whose sbn_gate is inconclusive."
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER_HELP)
    there = config.getoption("benchmark_disable", None) is not None
    config.pluginmanager.register(WithBenchmark() if there else WithoutBenchmark())


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker(MARKER)
    if marker is None:
        return
    from sbnbench.pytest_gate import mistake_in

    mistake = mistake_in(marker)
    if FIXTURE not in getattr(item, "fixturenames", ()):
        mistake = f"the test does not use the fixture {FIXTURE}: nothing is gated"
    if mistake:
        pytest.fail(f"{MARKER}: {mistake}", pytrace=False)


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    if report.when == "call" and report.passed and _why_unclear(report):
        return "inconclusive", "u", "INCONCLUSIVE"
    return None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = terminalreporter.getreports("inconclusive")
    if reports:
        terminalreporter.section("gates without an answer (--sbn-strict fails them)")
        for report in reports:
            terminalreporter.line(f"{report.nodeid}: {_why_unclear(report)}")


def _why_unclear(report: pytest.TestReport) -> str:
    return next((str(v) for name, v in report.user_properties if name == INCONCLUSIVE), "")


@pytest.fixture(scope="session")
def _sbn_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One worker for all tests: it imports torch once, and forks for every measurement."""
    from sbnbench.pool import Worker

    with Worker(tmp_path_factory.mktemp("sbnbench") / "worker.log") as worker:
        yield worker


class WithBenchmark:
    """The fixture where pytest-benchmark is there."""

    @pytest.fixture
    def sbn_benchmark(
        self, benchmark: Any, request: pytest.FixtureRequest, _sbn_worker: Worker
    ) -> SbnBenchmark:
        """Verifies a contender, measures it against a baseline, and gates it by `sbn_gate`."""
        from sbnbench.pytest_gate import SbnBenchmark

        node = request.node

        def when_unclear(why: str) -> None:
            node.user_properties.append((INCONCLUSIVE, why))

        return SbnBenchmark(
            benchmark, node.config, _sbn_worker, node.get_closest_marker(MARKER), when_unclear
        )


class WithoutBenchmark:
    """What there is with `-p no:benchmark`."""

    @pytest.fixture
    def sbn_benchmark(self) -> None:
        """Says that pytest-benchmark is missing."""
        pytest.fail(
            f"{FIXTURE} needs pytest-benchmark, which is switched off (-p no:benchmark) or was "
            "not loaded; to leave measuring out, use --benchmark-skip or --benchmark-disable",
            pytrace=False,
        )
