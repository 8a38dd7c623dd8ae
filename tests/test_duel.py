"""Duels on this machine: is a difference that was put in found, and one that is not there not?"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sbnbench import blocks, duel
from sbnbench.errors import Unavailable, UsageError
from sbnbench.messages import Ended, Failed, Outcome, Sampled, Spawned, Task
from sbnbench.model import Direction
from sbnbench.pool import Worker
from sbnbench.stopping import UntilClear

RULE = UntilClear.at(0.2, max_seconds=1.2)
SOURCE = "synthetic:8x8x8"


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with duel.own_worker() as found:
        yield found


def test_a_known_slowdown_is_what_the_ratio_shows(worker: Worker) -> None:
    block = duel.pair("bn@aten", "bn@aten", SOURCE, "fwd", rule=RULE)
    found = duel.duel(block, RULE, worker, slowdown=1.0)
    assert found.record.status == "ok"
    assert found.verdict == "SLOWER"
    assert found.record.estimates["ratio"].value == pytest.approx(0.5, rel=0.2)
    assert found.rounds >= RULE.min_processes * RULE.min_rounds


class Scripted:
    """A worker whose processes say what a script has for them; remembers what it was asked."""

    def __init__(self, ratios: list[float], codes: tuple[int, ...] = ()) -> None:
        self.ratios, self.codes = ratios, codes
        self.tasks: list[Task] = []

    def ask(self, task: Task, timeout: float) -> Iterator[object]:
        yield Spawned(1)
        if task.block is None:
            yield Ended(0)
            return
        number = len(self.tasks)
        self.tasks.append(task)
        name, direction = task.contenders[0], task.block.directions[0]
        if number == 0:
            yield Outcome(name, "ok")
        if "latency" in task.block.measures:
            base = [1.0 + 0.001 * (i % 3) for i in range(20)]
            yield Sampled(name, direction, [b / self.ratios[number] for b in base], base, 1, 1)
        yield Ended(0)

    def last_words(self, lines: int) -> str:
        return ""


def run(worker: Scripted, direction: Direction = "fwd") -> duel.Duel:
    block = duel.pair("bn@eager", "bn@aten", SOURCE, direction, rule=UntilClear.at(0.05, 12.0))
    return duel.duel(block, UntilClear.at(0.05, 12.0), worker)  # type: ignore[arg-type]


def test_five_processes_are_enough_where_the_answer_is_clear() -> None:
    worker = Scripted([1.5] * 12)
    found = run(worker)
    assert found.verdict == "FASTER"
    assert [t.process for t in worker.tasks] == list(range(5))


def test_more_processes_are_started_while_it_is_unclear_and_never_more_than_twelve() -> None:
    worker = Scripted([0.9, 1.1] * 6)
    assert run(worker).verdict == "UNCLEAR"
    assert len(worker.tasks) == 12
    settled = Scripted([1.0, 1.12, *[1.06] * 10])
    assert run(settled).verdict != "UNCLEAR"
    assert 5 < len(settled.tasks) < 12


def test_each_process_has_an_equal_share_of_the_time() -> None:
    block = duel.pair("bn@eager", "bn@aten", SOURCE, "fwd", rule=UntilClear.at(0.05, 12.0))
    assert block.latency.seconds / block.latency.processes == pytest.approx(1.0)


def test_verifying_alone_takes_one_process_and_no_time() -> None:
    worker = Scripted([1.0])
    block = duel.pair("bn@eager", "bn@aten", SOURCE, "fwd", rule=RULE)
    found = duel.verify(block, worker)  # type: ignore[arg-type]
    assert found.record.status == "ok"
    assert found.record.estimates == {}
    assert len(worker.tasks) == 1


def test_a_baseline_that_is_missing_here_makes_the_duel_unavailable() -> None:
    class Lacking(Scripted):
        def ask(self, task: Task, timeout: float) -> Iterator[object]:
            yield Spawned(1)
            if task.block is not None:
                yield Failed("needs a GPU", "unavailable")
            yield Ended(0 if task.block is None else 1)

    found = run(Lacking([]))
    assert (found.record.status, found.record.reason) == ("unavailable", "needs a GPU")


def test_processes_that_say_nothing_do_not_go_on_for_ever() -> None:
    class Silent(Scripted):
        def ask(self, task: Task, timeout: float) -> Iterator[object]:
            self.tasks.append(task)
            yield Ended(0)

    worker = Silent([])
    assert run(worker).record.status == "error"
    assert len(worker.tasks) <= 13


def test_a_suite_has_as_many_processes_as_it_says() -> None:
    worker = Scripted([0.9, 1.1] * 6)
    block = duel.pair("bn@eager", "bn@aten", SOURCE, "fwd", rule=RULE)
    options = type(block.latency)(processes=3)
    block = type(block)(
        block.workload, block.contenders, block.baseline, block.measures, block.directions,
        options, block.error,
    )  # fmt: skip
    blocks.run_block(worker, block, 0, 9.0, blocks.fixed(options))  # type: ignore[arg-type]
    assert len(worker.tasks) == 3


def test_mistakes_are_said_before_anything_is_started() -> None:
    with pytest.raises(UsageError, match="unknown normalizer 'bm'"):
        duel.pair("bm@aten", "bn@aten", SOURCE, "fwd", rule=RULE)
    with pytest.raises(UsageError, match="is no input"):
        duel.pair("bn@aten", "bn@aten", "64x28", "fwd", rule=RULE)
    with pytest.raises(Unavailable, match="no device cuda:99"):
        duel.pair("bn@aten", "bn@aten", SOURCE, "fwd", rule=RULE, axes={"device": "cuda:99"})
