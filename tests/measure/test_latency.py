"""The engine on a fake clock: who is timed next to whom, how often, and with what."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from sbnbench import floor
from sbnbench.bench import Bench, set_up
from sbnbench.measure import latency
from sbnbench.measure.latency import partners
from sbnbench.model import LatencyOptions, Workload
from sbnbench.nvml import Gpu
from sbnbench.registry import parse_contender

WORKLOAD = Workload("synthetic", 2, 4, (4, 4))
OPTIONS = LatencyOptions(seconds=1e-9, min_rounds=6)
SECONDS = {"bn@aten": 1.0, "bn@eager": 4.0, "fs@eager": 2.0}
FLOOR = 0.5


class FakeClock:
    """A call takes the seconds that SECONDS give its bench, anything else FLOOR."""

    name = "fake"
    resolution = 1e-9
    single = False

    def __init__(self, benches: list[Bench], sets: int = 1) -> None:
        self.known: dict[int, str] = {}
        self.order: list[str] = []
        self.made = sets
        for bench in benches:
            bench.call = self._named(bench)  # type: ignore[method-assign]
            bench.again = lambda bench=bench: bench  # type: ignore[method-assign,misc]

    def _named(self, bench: Bench) -> Callable[..., Any]:
        def call(direction: str) -> Callable[[], object]:
            def run() -> None:
                pass

            run.of = bench.contender.id  # type: ignore[attr-defined]
            return run

        return call

    def time(self, call: Any, loops: int) -> float:
        name = getattr(call, "of", "floor")
        self.order.append(name)
        return SECONDS.get(name, FLOOR)

    def sets(self, size: int) -> int:
        return self.made

    def remark(self, call: Any) -> str:
        return f"about {call.of}" if getattr(call, "of", "") == "fs@eager" else ""


def benches(*names: str) -> list[Bench]:
    return [set_up(parse_contender(name), WORKLOAD, 0) for name in names]


def measure(made: list[Bench], clock: Any, **options: Any) -> Any:
    baselines = partners(made[0], len(made) - 1)
    return latency.measure(baselines, made[1:], "fwd", OPTIONS, clock, random.Random(1), **options)


def run(*names: str, clock: Any = None, gpu: Any = None, energy: bool = False) -> Any:
    made = benches("bn@aten", *names)
    used = clock or FakeClock(made)
    found = measure(made, used, gpu=gpu, energy=energy)
    return used, *found


def test_every_contender_runs_next_to_its_baseline_and_both_beside_its_floor() -> None:
    clock, sampled, _ = run("bn@eager", "fs@eager")
    assert [s.contender for s in sampled] == ["bn@eager", "fs@eager"]
    for s in sampled:
        assert s.time == [SECONDS[s.contender]] * 6
        assert s.baseline == [1.0] * 6
        assert s.floor is not None
        assert s.floor.time == [FLOOR] * 6
    rounds = clock.order[-6 * 2 * 3 :]
    turns = list(zip(rounds[::3], rounds[1::3], rounds[2::3], strict=True))
    assert all(len({"bn@aten", "floor"} & set(turn)) == 2 for turn in turns)
    assert all(turn[1] != "floor" for turn in turns)
    for contender in ("bn@eager", "fs@eager"):
        own = [tuple(name == contender for name in turn) for turn in turns if contender in turn]
        floors = [turn[0] == "floor" for turn in turns if contender in turn]
        assert len(own) == 6
        assert sum(floors) == 3
        # After the floor as often as the baseline is.
        after = [mine[1] if floor else mine[0] for mine, floor in zip(own, floors, strict=True)]
        assert 0 < sum(after) < 6


def test_seconds_inside_samples_count_all_three() -> None:
    _, sampled, timed = run("bn@eager", "bn@eager")
    assert all(s.loops == s.baseline_loops == 1 for s in sampled)
    assert timed == pytest.approx(6 * 2 * (4.0 + 1.0 + FLOOR))


def test_each_floor_has_buffers_of_its_own_where_caches_hold_more_than_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []

    class Counted(floor.Floors):
        def __init__(self, wanted: Any, *rest: Any) -> None:
            made.append(len(wanted))
            super().__init__(wanted, *rest)

    monkeypatch.setattr(latency, "Floors", Counted)
    run("bn@eager", "fs@eager")
    assert made == [1, 1]
    made.clear()
    monkeypatch.setattr(latency, "cache_bytes", lambda device: 0)
    run("bn@eager", "fs@eager")
    assert made == [2]


def test_remarks_of_the_clock_go_to_whom_they_concern() -> None:
    _, (bn, fs), _ = run("bn@eager", "fs@eager")
    assert bn.remarks == ()
    assert fs.remarks == ("about fs@eager",)
    assert fs.clock == "fake"


def test_a_floor_that_cannot_be_made_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise MemoryError("can't allocate")

    monkeypatch.setattr(latency, "Floors", no_room)
    _, (bn,), _ = run("bn@eager")
    assert bn.floor is None
    assert bn.time == [4.0] * 6
    assert "no floor was timed: can't allocate" in bn.remarks


def test_a_single_call_a_sample_where_the_clock_says_so() -> None:
    made = benches("bn@aten", "bn@eager")
    clock = FakeClock(made)
    clock.single = True
    sampled, _ = measure(made, clock)
    assert sampled[0].loops == 1


def test_loops_go_round_all_sets_of_buffers() -> None:
    made = benches("bn@aten", "bn@eager")
    clock = FakeClock(made, sets=4)
    sampled, _ = measure(made, clock)
    assert sampled[0].loops == sampled[0].baseline_loops == 4
    floors = [name for name in clock.order if name == "floor"]
    assert len(floors) >= 6


def test_sets_of_buffers_are_distinct() -> None:
    (bench,) = benches("bn@aten")
    seen = []
    bench.op = type("Op", (), {"forward": lambda self, x, *_: seen.append(x.data_ptr())})()
    call = bench.calls("fwd", 3)
    for _ in range(6):
        call()
    assert len(set(seen)) == 3
    assert seen[:3] == seen[3:]


class Throttling(Gpu):
    def __init__(self) -> None:
        self.rounds = 0

    def state(self) -> dict[str, Any]:
        return {"power_w": 100.0}

    def throttled(self) -> tuple[str, ...]:
        self.rounds += 1
        return ("power cap",) if self.rounds == 3 else ()

    def joules(self) -> float | None:
        return None


def test_throttled_rounds_are_labelled_and_kept() -> None:
    _, (bn,), _ = run("bn@eager", gpu=Throttling())
    assert bn.gpu["throttled"] == {"power cap": [2]}
    assert len(bn.time) == 6
    assert bn.joules is None


def test_the_floor_of_the_fake_engine_is_the_real_one() -> None:
    """What the other tests replace is only the clock."""
    _, (bn,), _ = run("bn@eager")
    tensor = 2 * 4 * 16 * 4
    assert (bn.floor.read, bn.floor.written, bn.floor.known) == (2 * tensor, tensor, True)
    assert set(bn.floor.ways) <= {"sum", "dot", "clone", "copyto"}
    assert floor.steps(floor.Moves(2 * tensor, tensor, 1, tensor)).swept == tensor // 4


def test_each_contender_has_a_baseline_with_buffers_of_its_own() -> None:
    made = benches("bn@aten", "bn@eager", "fs@eager")
    seen: dict[str, set[int]] = {}
    now = "warming"

    def watched(bench: Bench) -> Any:
        forward = bench.op.forward

        def run(x: Any, *rest: Any) -> Any:
            seen.setdefault(f"{now} {bench.contender.id}", set()).add(x.data_ptr())
            return forward(x, *rest)

        return run

    for bench in made:
        bench.op.forward = watched(bench)

    class Watching(FakeClock):
        def time(self, call: Any, loops: int) -> float:
            call()
            return 1e-3

    clock = Watching([])
    measure(made, clock)
    assert len(seen["warming bn@aten"]) == 2


def test_baseline_contender_and_floor_make_the_same_number_of_loops() -> None:
    made = benches("bn@aten", "bn@eager")
    asked: list[tuple[str, int]] = []

    class Quick(FakeClock):
        def time(self, call: Any, loops: int) -> float:
            name = getattr(call, "of", "floor")
            asked.append((name, loops))
            return {"bn@aten": 1e-5, "bn@eager": 1e-3}.get(name, 1e-4)

    sampled, _ = measure(made, Quick(made))
    assert sampled[0].loops == sampled[0].baseline_loops > 1
    assert {name for name, _ in asked[-3:]} == {"bn@aten", "bn@eager", "floor"}
    assert len({loops for _, loops in asked[-3:]}) == 1
