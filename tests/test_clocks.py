"""Clocks: what counts and what does not, on a faked GPU and on the host."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from sbnbench import caches, clocks, cuda_clocks
from sbnbench.clocks import PerfCounter, clock_for, settle
from sbnbench.model import LatencyOptions


class Steps:
    """A host clock that only calls move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(clocks, "perf_counter", lambda: self.now)

    def call(self) -> None:
        self.now += 0.25


def test_a_sample_is_seconds_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch)
    assert PerfCounter().time(steps.call, 8) == 0.25


def test_cold_sweeps_before_every_sample_and_outside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, order = Steps(monkeypatch), []

    def sweep() -> None:
        order.append("sweep")
        steps.now += 100

    def call() -> None:
        order.append("call")
        steps.call()

    clock = PerfCounter(sweep=sweep)
    assert clock.single
    assert [clock.time(call, 1), clock.time(call, 1)] == [0.25, 0.25]
    assert order == ["sweep", "call"] * 2


def test_the_clock_costs_less_than_a_thousandth_of_the_shortest_sample() -> None:
    """An empty call: what is left is the reading of the clock, and the turns of the loop."""
    clock, loops = PerfCounter(), 20_000

    def nothing() -> None:
        pass

    start = time.process_time()
    for _ in range(loops):
        nothing()
    bare = (time.process_time() - start) / loops
    turn = min(clock.time(nothing, loops) for _ in range(20))
    reading = min(clock.time(nothing, 1) for _ in range(1000)) - turn
    assert reading <= 0.001 * LatencyOptions().sample_seconds
    assert turn < 2 * bare + 5e-8  # a loop that does more than call would show here


def test_events_count_work_and_no_gaps_between_launches(cuda) -> None:  # type: ignore[no-untyped-def]
    """Kernels of 1 µs behind launches of 5 µs: one after the other they would take 5 µs each."""
    clock = cuda_clocks.Events("cuda:0")
    assert clock.time(cuda.kernel(1e-6), 100) == pytest.approx(1e-6)
    assert clock.remark(cuda.kernel) == ""


def test_without_the_wait_gaps_would_count(cuda, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The test above can fail."""
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    assert cuda_clocks.Events("cuda:0").time(cuda.kernel(1e-6), 100) > 4e-6


def test_what_waits_for_the_device_is_timed_with_its_gaps_and_says_so(cuda) -> None:  # type: ignore[no-untyped-def]
    clock = cuda_clocks.Events("cuda:0")

    def call() -> None:
        cuda.launch(1e-6)
        cuda.synchronize()

    assert clock.time(call, 10) >= 5e-6
    assert "gaps" in clock.remark(call)
    before = len(cuda.log)
    clock.time(call, 10)
    assert cuda.log[before:].count("wait") == 1  # it is not tried again and again
    other = cuda.kernel(1e-6)
    assert clock.time(other, 10) == pytest.approx(1e-6)
    assert clock.remark(other) == ""


def test_cold_events_sweep_before_the_wait(cuda) -> None:  # type: ignore[no-untyped-def]
    clock = cuda_clocks.Events("cuda:0", lambda: cuda.launch(1e-3, "sweep"))
    assert clock.single
    assert clock.time(cuda.kernel(1e-6), 1) == pytest.approx(1e-6)
    assert cuda.log[:3] == ["sweep", "wait", "kernel"]


def test_no_clock_zeroes_memory_to_empty_a_cache() -> None:
    for module in (caches, clocks, cuda_clocks):
        code = Path(module.__file__).read_text().replace("`zero_()`", "")
        assert "zero" not in code


def test_a_graph_holds_all_calls_of_a_sample_and_is_captured_once(cuda) -> None:  # type: ignore[no-untyped-def]
    clock = cuda_clocks.Graphs("cuda:0", cold=False)
    call = cuda.kernel(1e-6)
    assert clock.time(call, 50) == pytest.approx(1e-6)
    assert clock.time(call, 50) == pytest.approx(1e-6)
    assert cuda.captures == 1
    assert clock.time(call, 100) == pytest.approx(1e-6)
    assert cuda.captures == 2
    assert clock.sets(1000) == 1


def test_cold_graphs_go_round_more_than_the_cache_holds(cuda) -> None:  # type: ignore[no-untyped-def]
    clock = cuda_clocks.Graphs("cuda:0", cold=True)
    for size in (1, 1000, 1 << 19, 1 << 22):
        assert clock.sets(size) * size > 2 << 20
        assert clock.sets(size) & (clock.sets(size) - 1) == 0  # loops are powers of two


def test_one_call_that_cannot_be_captured_has_all_timed_by_events(cuda) -> None:  # type: ignore[no-untyped-def]
    good = cuda.kernel(1e-6)
    graphs = cuda_clocks.Graphs("cuda:0", cold=False)
    assert settle(graphs, [good], "cuda:0") == (graphs, "")
    clock, why = settle(graphs, [good, cuda.synchronize], "cuda:0")
    assert clock.name == "cuda_events"
    assert "not permitted when stream is capturing" in why
    clock.time(good, 4)
    assert settle(PerfCounter(), [cuda.synchronize], "cpu")[1] == ""


def test_the_clock_that_is_asked_for(cuda, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(clocks, "Sweep", lambda device: f"sweep of {device}")

    def name(device: str, clock: str, cache: str = "hot") -> tuple[str, bool]:
        found = clock_for(device, LatencyOptions(clock=clock, cache=cache))  # type: ignore[arg-type]
        return found.name, found.single

    assert name("cpu", "auto") == ("perf_counter", False)
    assert name("cpu", "auto", "cold") == ("perf_counter", True)
    assert name("cuda:0", "auto") == ("cuda_events", False)
    assert name("cuda:0", "perf_counter") == ("perf_counter", False)
    assert name("cuda", "cuda-events", "cold") == ("cuda_events", True)
    assert name("cuda", "cuda-graph", "cold") == ("cuda_graph", False)


def test_perf_counter_waits_for_a_gpu(cuda, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(clocks, "perf_counter", lambda: cuda.host)
    assert PerfCounter("cuda").time(cuda.kernel(1e-3), 2) == pytest.approx(1e-3, rel=0.01)


def cpu(folder: Path, number: int, *levels: tuple[int, str, str]) -> None:
    for index, (level, shared, size) in enumerate(levels):
        entry = folder / f"cpu{number}" / "cache" / f"index{index}"
        entry.mkdir(parents=True)
        for name, text in (("level", level), ("shared_cpu_list", shared), ("size", size)):
            (entry / name).write_text(f"{text}\n")


def test_caches_of_a_cpu_count_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "usable_cores", lambda: 2)
    for number in (0, 1, 2):
        private = (1, str(number), "48K"), (2, str(number), "2048K")
        cpu(tmp_path, number, *private, (3, "0-2", "32M"))
    assert caches.cpu_cache_bytes(tmp_path) == (2 * 2 + 32) << 20


def test_a_machine_that_does_not_say_has_a_usual_cache(tmp_path: Path) -> None:
    assert caches.cpu_cache_bytes(tmp_path / "none") == caches.CPU_FALLBACK


def test_a_sweep_reads_twice_what_the_caches_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "cpu_cache_bytes", lambda: 4096)
    sweep = caches.Sweep("cpu")
    sweep()
    assert sweep._buffer.nbytes == 8192
