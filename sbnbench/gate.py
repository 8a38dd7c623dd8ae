"""The gate: is any contender slower than it was? Prints nothing.

`against_revision` runs both versions now, sample by sample in turns, in two sets of processes, and
decides each contender by the interval over processes. `against_run` compares two finished runs by
the ratio to the baseline that each measured within itself, which resolves less; it says how much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from sbnbench.errors import SbnbenchError, UsageError
from sbnbench.measure.order import chance_order
from sbnbench.messages import Ended, Enough, Failed, Outcome, Prepared, Spawned, Taken, Task, Turn
from sbnbench.model import FAILED, Block, Direction, Estimate, Plan, Record, Status, Workload
from sbnbench.pool import Worker, WorkerTimeout
from sbnbench.statistics import Array, Verdict, decide, ratio_of
from sbnbench.stopping import UntilClear
from sbnbench.store import Run

Key = tuple[str, Direction]


class Decision(msgspec.Struct, frozen=True):
    """Old time over new time of one contender, and the verdict: above 1 it has become faster."""

    contender: str
    workload: Workload
    direction: Direction
    status: Status
    verdict: Verdict
    reason: str
    change: Estimate | None = None
    processes: int = 0
    rounds: int = 0
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return self.status in FAILED


class Gate(msgspec.Struct, frozen=True):
    """All decisions, and what a reader must know of how they were made."""

    against: str
    threshold: float
    decisions: tuple[Decision, ...]
    notes: tuple[str, ...] = ()

    def exit_code(self, strict: bool) -> int:
        """1 on a regression, 3 where something failed, 4 where `strict` and UNCLEAR, else 0."""
        if any(d.verdict == "SLOWER" for d in self.decisions):
            return 1
        if any(d.failed for d in self.decisions):
            return 3
        return 4 if strict and any(d.verdict == "UNCLEAR" for d in self.decisions) else 0


class Pairs:
    """What one contender and direction has so far."""

    def __init__(self) -> None:
        self.processes: list[Array] = []
        self.ratios: list[float] = []
        self.seconds = 0.0
        self.now = 0.0

    def add(self, new: float, old: float, spent: float) -> None:
        self.ratios.append(math.log(old / new))
        self.now += spent

    def close(self) -> None:
        """A process has ended."""
        if self.ratios:
            self.processes.append(np.array(self.ratios))
        self.seconds += self.now
        self.ratios, self.now = [], 0.0


def against_revision(
    plan: Plan,
    new: Worker,
    old: Worker,
    rule: UntilClear,
    against: str,
    timeout: float,
    on_block: Callable[[Block, int, int], None] = lambda block, done, total: None,
) -> Gate:
    """Decide every contender of a plan, its version in `new` against the one in `old`."""
    decisions: list[Decision] = []
    for number, block in enumerate(plan.blocks):
        on_block(block, number, len(plan.blocks))
        decisions += _decide_block(block, plan.seed, new, old, rule, timeout)
    return Gate(against, rule.threshold, tuple(decisions))


def _decide_block(
    block: Block, seed: int, new: Worker, old: Worker, rule: UntilClear, timeout: float
) -> list[Decision]:
    pairs: dict[Key, Pairs] = {
        (c.id, d): Pairs() for c in block.contenders for d in block.directions
    }
    fallen: dict[str, Outcome] = {}
    open_keys = set(pairs)
    process = 0
    while open_keys:
        chance = Random(f"{seed}/{block.id}/{process}/gate")
        names = tuple(c.id for c in block.contenders if any(k[0] == c.id for k in open_keys))
        task = Task(block, process, seed, names, turns=True)
        _take_turns((new, old), task, pairs, open_keys, fallen, rule, chance, timeout)
        process += 1
        for key in list(open_keys):
            pairs[key].close()
            found = pairs[key]
            if key[0] in fallen or rule.enough_processes(found.processes, found.seconds):
                open_keys.discard(key)
    return [_decision(block, key, pairs[key], fallen.get(key[0]), rule) for key in pairs]


class _Side:
    """One of the two processes: its loops, and how it answers."""

    def __init__(self, name: str, worker: Worker, task: Task, timeout: float) -> None:
        self.name = name
        self.worker = worker
        self.events = worker.ask(task, timeout)
        self.loops: dict[Key, int] = {}
        self.fallen: dict[str, Outcome] = {}

    def prepare(self) -> None:
        """Read until every call is announced."""
        for event in self.events:
            if isinstance(event, Outcome) and event.status != "ok":
                self.fallen[event.contender] = replace(event, reason=f"{self.name}: {event.reason}")
            elif isinstance(event, Prepared):
                if not event.loops:
                    return
                self.loops[event.contender, event.direction] = event.loops
            elif isinstance(event, Failed):
                raise SbnbenchError(f"{self.name}: {event.reason}")
            elif isinstance(event, Ended):
                raise SbnbenchError(f"{self.name}: {_end(event, self.worker)}")

    def take(self, key: Key, loops: int) -> float:
        self.worker.tell(Turn(*key, loops))
        for event in self.events:
            if isinstance(event, Taken):
                return event.time
            if isinstance(event, Failed):
                raise SbnbenchError(f"{self.name}: {event.reason}")
            if isinstance(event, Ended):
                raise SbnbenchError(f"{self.name}: {_end(event, self.worker)}")
            assert isinstance(event, (Spawned, Outcome, Prepared))
        raise SbnbenchError(f"{self.name} fell silent")

    def end(self) -> None:
        self.worker.tell(Enough())
        for _ in self.events:
            pass


def _end(event: Ended, worker: Worker) -> str:
    return f"the process ended with {event.code}: {worker.last_words(1)}"


def _take_turns(
    workers: tuple[Worker, Worker],
    task: Task,
    pairs: dict[Key, Pairs],
    open_keys: set[Key],
    fallen: dict[str, Outcome],
    rule: UntilClear,
    chance: Random,
    timeout: float,
) -> None:
    """One process on each side: rounds of pairs until each open contender has enough of them."""
    sides = [_Side(n, w, task, timeout) for n, w in zip(("new", "old"), workers, strict=True)]
    try:
        # Who starts first has other memory and waits for the other: by turns, so that it cancels.
        for side in sides[::-1] if task.process % 2 else sides:
            side.prepare()
            fallen.update(side.fallen)
        left = [k for k in open_keys if k[0] not in fallen]
        loops = {k: max(side.loops[k] for side in sides) for k in left}
        left.sort()
        order = chance_order(chance, len(left))
        keys = tuple(left)
        while left:
            for index, old_first in next(order):
                key = keys[index]
                if key not in left:
                    continue
                first = int(old_first)
                start = monotonic()
                times = {n: sides[n].take(key, loops[key]) for n in (first, 1 - first)}
                pairs[key].add(times[0], times[1], monotonic() - start)
            left = [
                k for k in left if not rule.enough_rounds(np.array(pairs[k].ratios), pairs[k].now)
            ]
        for side in sides:
            side.end()
    except SbnbenchError as error:
        status: Status = "timeout" if isinstance(error, WorkerTimeout) else "crashed"
        for worker in workers:
            worker.stop()
        for name in task.contenders:
            fallen.setdefault(name, Outcome(name, status, str(error)))


def _decision(
    block: Block, key: Key, found: Pairs, outcome: Outcome | None, rule: UntilClear
) -> Decision:
    contender, direction = key
    if outcome is not None:
        return Decision(
            contender, block.workload, direction, outcome.status, "UNCLEAR", outcome.reason
        )
    change = ratio_of(found.processes)
    verdict, reason = decide(change, rule.threshold)
    return Decision(
        contender,
        block.workload,
        direction,
        "ok",
        verdict,
        reason,
        change,
        len(found.processes),
        sum(map(len, found.processes)),
        found.seconds,
    )


def against_run(new: Run, old: Run, threshold: float, allow_mixed: bool) -> Gate:
    """Compare two finished runs by each contender's ratio to its baseline, measured in its run.

    The change is ratio_new / ratio_old; both intervals enter it, so it resolves about √2 times
    less than one run does, and whatever treats contender and baseline differently on two machines
    or days is in it. UsageError where machine or versions differ, unless `allow_mixed`.
    """
    differing = _differences(new.environment, old.environment)
    if differing and not allow_mixed:
        raise UsageError(
            f"the runs were made on different ground ({'; '.join(differing)}); "
            "--allow-mixed compares them all the same, labelled"
        )
    before = {_identity(r): r for r in old.records if r.measure == "latency"}
    decisions = []
    halves: list[float] = []
    for record in new.records:
        if record.measure != "latency" or record.contender == record.baseline:
            continue
        earlier = before.get(_identity(record))
        decisions.append(decision := _compare(record, earlier, threshold))
        if decision.change and decision.change.low and decision.change.high:
            halves.append(math.log(decision.change.high / decision.change.low) / 2)
    if not decisions:
        raise UsageError("the runs have no contender in common besides the baseline")
    notes = [f"mixed: {d}" for d in differing]
    if halves:
        notes.append(
            f"two runs resolve changes of ±{100 * float(np.median(halves)):.1f} % in the median; "
            "--against REVISION measures both now, in pairs, and resolves more"
        )
    return Gate(str(old.path or "the other run"), threshold, tuple(decisions), tuple(notes))


def _compare(record: Record, earlier: Record | None, threshold: float) -> Decision:
    base = (record.contender, record.workload, record.direction or "fwd")
    for which, found in (("the other run", earlier), ("this run", record)):
        if found is None or found.status != "ok":
            why = "is not there" if found is None else f"is {found.status}: {found.reason}"
            status: Status = "unavailable" if found is None else found.status
            return Decision(*base, status, "UNCLEAR", f"in {which} it {why}")
    assert earlier is not None
    a, b = record.estimates["ratio"], earlier.estimates["ratio"]
    value = a.value / b.value
    half = math.hypot(_half(a), _half(b))
    change = Estimate(value, value * math.exp(-half), value * math.exp(half))
    return Decision(*base, "ok", *decide(change, threshold), change)


def _half(estimate: Estimate) -> float:
    if not estimate.low or not estimate.high:
        return math.inf
    return math.log(estimate.high / estimate.low) / 2


def _identity(record: Record) -> tuple[Any, ...]:
    return (record.contender, record.baseline, record.workload, record.direction, record.timing)


def _differences(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """What must agree between two runs and does not."""

    def facts(environment: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        machine, versions = environment.get("machine", {}), environment.get("versions", {})
        for name in ("cpu", "usable_cores", "memory_bytes"):
            yield name, machine.get(name)
        for name in ("python", "torch", "triton"):
            yield name, versions.get(name)
        yield "gpus", environment.get("gpus")
        yield "threads", (environment.get("torch") or {}).get("threads")
        yield "allocator", environment.get("allocator")

    pairs = zip(facts(new), facts(old), strict=True)
    return [f"{name} {a} and {b}" for (name, a), (_, b) in pairs if a != b]


def is_run(path: Path) -> bool:
    """Does this path name a run directory rather than a revision?"""
    return (path / "plan.json").is_file()
