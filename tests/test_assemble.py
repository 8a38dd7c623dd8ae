"""From messages to records: the floor, the GPU, memory, what the time went to."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from sbnbench.assemble import Collected
from sbnbench.execute import timing
from sbnbench.messages import FloorSampled, Measured, Outcome, Sampled, Spent
from sbnbench.model import (
    Block,
    Contender,
    Direction,
    ErrorOptions,
    LatencyOptions,
    Record,
    Workload,
)
from sbnbench.store import expected

BN, FS = Contender("bn", "aten"), Contender("fs", "eager")
BLOCK = Block(
    Workload("synthetic", 2, 4, (4, 4)),
    (BN, FS),
    BN,
    ("latency", "memory", "error"),
    ("fwd", "bwd"),
    LatencyOptions(),
    ErrorOptions(),
)
ROUNDS = 12


def sampled(drift: float = 1.0, floor: bool = True, **changes: Any) -> Sampled:
    """The contender at half the floor's speed, on a machine that is `drift` times as slow."""
    found = FloorSampled([drift] * ROUNDS, 640, 320, True, ("sum", "clone"))
    time, baseline = [2.0 * drift] * ROUNDS, [3.0 * drift] * ROUNDS
    made = Sampled("fs@eager", "fwd", time, baseline, 4, 2, "fake", found if floor else None)
    return replace(made, **changes)


def record(*events: Any, measure: str = "latency", direction: Direction | None = "fwd") -> Record:
    collected = Collected(BLOCK)
    for event in (Outcome("fs@eager", "ok"), Outcome("bn@aten", "ok"), *events):
        collected.take(event)
    return next(
        r
        for r in collected.records()
        if (r.contender, r.measure, r.direction) == ("fs@eager", measure, direction)
    )


def test_attainable_is_the_floors_time_over_the_contenders() -> None:
    found = record(*[sampled()] * 3)
    attainable = found.estimates["attainable"]
    assert attainable.value == pytest.approx(0.5)
    assert attainable.low == attainable.high == pytest.approx(0.5)
    assert (found.estimates["floor_time"].value, found.estimates["floor_time"].unit) == (1.0, "s")
    assert found.samples["floor"] == [[1.0] * ROUNDS] * 3
    assert found.facts["floor"] == {
        "bytes_read": 640,
        "bytes_written": 320,
        "bytes_known": True,
        "ways": [("sum", "clone")] * 3,
    }
    assert found.facts["clock"] == "fake"
    assert found.notes == ()


def test_a_machine_slower_in_one_process_changes_no_share() -> None:
    found = record(sampled(1.0), sampled(1.5), sampled(0.7))
    assert found.estimates["attainable"].value == pytest.approx(0.5)
    assert found.estimates["attainable"].high == pytest.approx(0.5)


def test_processes_that_differ_widen_the_interval() -> None:
    slow = sampled(time=[4.0] * ROUNDS)
    found = record(sampled(), sampled(), slow).estimates["attainable"]
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.25 < 0.5 < found.high


def test_a_process_without_a_floor_leaves_the_record_without() -> None:
    found = record(sampled(), sampled(floor=False, remarks=("no floor was timed: no memory",)))
    assert "attainable" not in found.estimates
    assert "ratio" in found.estimates
    assert found.notes == ("no floor was timed: no memory",)


def test_assumed_bytes_are_said() -> None:
    known = sampled().floor
    assert known is not None
    found = record(replace(sampled(), floor=replace(known, known=False)))
    assert found.facts["floor"]["bytes_known"] is False
    assert any("traffic is not known" in note for note in found.notes)


def test_faster_than_the_floor_is_said() -> None:
    fast = [sampled(time=[0.5] * ROUNDS)] * 3
    assert any("faster than its floor" in note for note in record(*fast).notes)


def test_throttled_rounds_are_noted_and_kept() -> None:
    seen = {"before": {"power_w": 1.0}, "after": {}, "throttled": {"power cap": [0, 2]}}
    both = {**seen, "throttled": {"power cap": [2], "power brake": [2, 3]}}
    found = record(sampled(gpu=seen), sampled(gpu=both), sampled(gpu={**seen, "throttled": {}}))
    assert "clocks held down in 4 of 36 rounds: power brake, power cap" in found.notes
    assert [len(p) for p in found.samples["time"]] == [ROUNDS] * 3
    assert found.facts["gpu"][1]["throttled"] == both["throttled"]


def test_energy_is_in_joules() -> None:
    seen = {"before": {}, "after": {}, "throttled": {}}
    found = record(sampled(gpu=seen, joules=0.03), sampled(gpu=seen))
    assert found.estimates["energy"].value == pytest.approx(0.03)
    assert found.estimates["energy"].unit == "J"
    assert "energy" not in record(sampled(gpu=seen)).estimates


def test_a_call_of_several_executions_is_divided_wherever_it_was_taken() -> None:
    whole = sampled(joules=0.3)
    ten = whole.divided(10)
    assert (ten.time, ten.baseline, ten.loops) == ([0.2] * ROUNDS, [0.3] * ROUNDS, 40)
    assert ten.floor is not None
    assert ten.floor.time == [1.0] * ROUNDS
    assert ten.joules == pytest.approx(0.03)
    assert whole.divided(1) is whole


def test_memory_is_a_record_for_each_direction() -> None:
    from sbnbench.model import Estimate

    estimate = Estimate(4096.0, unit="B")
    found = record(
        Measured("fs@eager", "memory", "bwd", "ok", estimates={"peak_memory": estimate}),
        measure="memory",
        direction="bwd",
    )
    assert found.estimates == {"peak_memory": estimate}
    collected = Collected(BLOCK)
    assert {r.key for r in collected.records()} == expected(BLOCK)
    assert len(expected(BLOCK)) == 2 * (2 + 2 + 1)


def test_a_measure_that_failed_says_why() -> None:
    found = record(
        Measured("fs@eager", "memory", "fwd", "out-of-memory", "no room"), measure="memory"
    )
    assert (found.status, found.reason) == ("out-of-memory", "no room")


def test_seconds_of_all_processes_add_up() -> None:
    collected = Collected(BLOCK)
    for _ in range(3):
        collected.take(Spent({"timed": 2.0, "set-up": 0.5}))
    assert collected.spent == {"timed": 6.0, "set-up": 1.5}


def test_overhead_is_what_was_not_inside_samples() -> None:
    found = timing({"timed": 8.0, "verification": 1.0}, 10.0)
    assert found["overhead"] == pytest.approx(0.2)
    assert found["parts"] == {"verification": 1.0, "start and records": pytest.approx(1.0)}


def test_the_timing_of_a_resumed_run_counts_both_parts() -> None:
    before = timing({"timed": 8.0, "verification": 1.0}, 10.0)
    found = timing({"timed": 8.0, "set-up": 2.0}, 10.0, before)
    assert (found["total"], found["timed"]) == (20.0, 16.0)
    assert found["overhead"] == pytest.approx(0.2)
    assert sum(found["parts"].values()) + found["timed"] == pytest.approx(found["total"])
