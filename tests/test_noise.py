"""`doctor --noise`: what it counts, what it concludes, with a machine that is made up."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import psutil
import pytest

from sbnbench import noise
from sbnbench.duel import Duel, own_worker, pair
from sbnbench.model import Record
from sbnbench.noise import RivalTrial, Trial, busy_cores, examine, resolution
from sbnbench.statistics import decide, paired_ratio
from sbnbench.stopping import UntilClear


def make_block() -> Any:
    rule = UntilClear.at(0.05, 6.0)
    return pair("bn@aten", "bn@aten", "synthetic:4x5x5", "fwd", rule=rule, axes={"batch": 4})


def machine(monkeypatch: pytest.MonkeyPatch, placement: float, bias: float = 0.0) -> None:
    """Decisions come from a machine whose processes lie `placement` apart."""
    draw = np.random.default_rng(3)

    def fake(block: Any, rule: UntilClear, worker: Any, *, slowdown: float, seed: int) -> Duel:
        baseline = [list(np.exp(draw.normal(0, 0.02, 40))) for _ in range(5)]
        times = [
            list(np.array(b) * (1 + slowdown) * np.exp(draw.normal(bias, placement)))
            for b in baseline
        ]
        ratio = paired_ratio(baseline, times)
        record = Record(
            block.id, "bn@aten", "latency", "ok", block.workload, "bn@aten", "fwd",
            estimates={"ratio": ratio}, samples={"time": times, "baseline": baseline},
        )  # fmt: skip
        return Duel(record, *decide(ratio, rule.threshold))

    monkeypatch.setattr(noise, "duel", fake)


def run(trials: int = 20) -> noise.Noise:
    return examine(make_block(), None, trials=trials, threshold=0.05, seconds=6.0, rivals=False)  # type: ignore[arg-type]


def test_a_quiet_machine_decides_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 0.003)
    ((_, same, false, slower, hit, unclear),) = run().rows()
    assert (same, false, slower, hit, unclear) == (20, 0, 20, 20, 0)


def test_a_biased_machine_is_told_on_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 0.003, bias=0.08)  # the contender's place is always the worse one
    ((_, same, false, *_),) = run().rows()
    assert false == same


def test_a_wild_machine_says_unclear_rather_than_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 0.06)
    ((_, same, false, _, _, unclear),) = run().rows()
    assert unclear > same / 2
    assert false <= 1


def test_resolution_gets_finer_with_time_and_holds_what_it_says() -> None:
    spreads = [(4, 0.01**2)] * 50
    thresholds = [resolution(spreads, 1.0, t) for t in (10.0, 30.0, 60.0)]
    assert thresholds == sorted(thresholds, reverse=True)
    draw = np.random.default_rng(0)
    threshold, processes = thresholds[0], 10
    right = 0
    for _ in range(400):
        for slowdown, verdict in ((0.0, "SAME"), (2 * threshold, "SLOWER")):
            centres = draw.normal(-np.log1p(slowdown), 0.01, processes)
            ones = [[1.0] * 8] * processes
            times = [[float(np.exp(-c))] * 8 for c in centres]
            right += decide(paired_ratio(ones, times), threshold)[0] == verdict
    assert right >= 0.94 * 800


def test_rivals_are_counted_beside() -> None:
    trial = Trial(0.0, "SAME", "", 0.0, 1.0, 5)
    theirs = tuple(RivalTrial("r", s, bool(s) or n == 0) for s in (0.0, 0.1) for n in range(4))
    found = noise.Noise("c", "w", 0.05, 0.1, 0, (trial,), theirs, ())
    assert found.rows()[1] == ("r", 4, 1, 4, 4, 0)


def test_a_slow_down_is_really_planted_and_runs_alone_are_seconds_an_execution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # With two threads a call this short has two speeds, one for each process.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    block = make_block()
    with own_worker() as worker:
        quick = noise._run_alone(block, worker, 0.0, 1)
        slow = noise._run_alone(block, worker, 1.0, 1)
    assert len(quick) > 10
    # The shortest: the two were timed one after the other, whatever else ran beside one of them.
    assert np.min(slow) / np.min(quick) == pytest.approx(2.0, rel=0.5)


def test_busy_cores_are_busy_and_end() -> None:
    before = set(psutil.Process().children())
    with busy_cores(1):
        (child,) = set(psutil.Process().children()) - before
        time.sleep(0.5)
        assert child.cpu_times().user > 0.1
    assert not child.is_running()
