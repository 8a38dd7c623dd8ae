"""What one task does in its process: verify, time, check again, measure the rest."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from time import monotonic
from typing import TYPE_CHECKING, Any

from sbnbench.messages import (
    Calibrated,
    Calibration,
    Doing,
    Event,
    Measured,
    Outcome,
    Progress,
    Spent,
    Task,
)
from sbnbench.model import Block
from sbnbench.nvml import Gpu, gpu

if TYPE_CHECKING:
    from sbnbench.bench import Bench

Send = Callable[[Event], None]


def prepare(task: Task, send: Send) -> None:
    """Make the inputs that take long, once, into the cache."""
    from sbnbench import activations

    activations.prepare(
        task.sources, lambda done, total: send(Progress("activations", done, total))
    )


def run_block(task: Task, send: Send) -> None:
    """Verify (first process), time, check again (first process), measure the error (first)."""
    import torch

    from sbnbench.bench import set_up
    from sbnbench.verify import Repeat

    block = task.block
    assert block is not None
    chance = random.Random(f"{task.seed}/{block.id}/{task.process}")
    # Forked processes share their address-space layout: a piece of memory of random size,
    # kept until the end, moves what is allocated after it.
    padding = torch.empty(chance.randrange(1, 1 << 20), dtype=torch.uint8)
    first = task.process == 0
    # 11 executions against 10 in every sample: an exact 10 %, however few calls a sample has.
    slow = Fraction(1 + task.slowdown).limit_denominator(100)
    standing = Standing(send)
    repeats: dict[str, Repeat] = {}
    spent = Stopwatch()
    # What is allocated first lies differently from what is allocated last, in every process alike
    # if the order were always the same.
    order = [None, *(c for c in block.contenders if c.id in task.contenders)]
    chance.shuffle(order)
    with torch.no_grad():
        for contender in order:
            if contender is None:
                with spent("set-up"):
                    baseline = set_up(block.baseline, block.workload, task.seed)
                baseline.repeats = slow.denominator
                continue
            with standing.guard(contender.id):
                with spent("set-up"):
                    bench = set_up(contender, block.workload, task.seed)
                if first:
                    with spent("verification"):
                        repeats[contender.id] = Repeat(bench, task.seed)
                        standing.passed(contender.id, examine(bench, task.seed))
                bench.repeats = slow.numerator
                standing.benches.append(bench)
        if task.turns:
            from sbnbench.measure.turns import serve

            serve(standing.benches, block, send, sys.stdin.buffer)
            return
        if "latency" in block.measures and standing.benches:
            with spent("latency"):
                timed = measure_latency(
                    baseline, standing, task, block, chance, send, slow.denominator
                )
            # what is inside samples is a part of its own
            spent.seconds["latency"] -= timed
            spent.seconds["timed"] = timed
        if first:
            with spent("verification"):
                for bench in standing.benches:
                    with standing.guard(bench.contender.id):
                        repeats[bench.contender.id].check()
            with spent("other measures"):
                if "memory" in block.measures:
                    measure_memory(standing, block, send)
                if "error" in block.measures:
                    measure_errors(standing, block, task.seed, send)
    send(Spent(spent.seconds))
    del padding


class Stopwatch:
    """Adds up what goes where: `with stopwatch("verification"): …`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        start = monotonic()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + monotonic() - start


class Standing:
    """The contenders still in the race; one that falls is reported and left out."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.benches: list[Any] = []
        self.current = ""

    def guard(self, contender: str) -> Standing:
        self.current = contender
        return self

    def __enter__(self) -> None:
        self.send(Doing(self.current))

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        self.send(Doing(""))
        if error is None or not isinstance(error, Exception):
            return False
        from sbnbench.failures import classify

        status, reason = classify(error)
        self.benches = [b for b in self.benches if b.contender.id != self.current]
        self.send(Outcome(self.current, status, reason))
        return True

    def passed(self, contender: str, found: tuple[dict[str, Any], tuple[str, ...]]) -> None:
        facts, notes = found
        self.send(Outcome(contender, "ok", facts=facts, notes=notes))


def examine(bench: Any, seed: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Verify a bench; facts and notes for its records."""
    from sbnbench.verify import check

    facts: dict[str, Any] = {"verification": check(bench, bench.inputs, seed)}
    notes: tuple[str, ...] = ()
    if hasattr(bench.op, "compile_seconds"):
        facts["compile_seconds"] = bench.op.compile_seconds
    if hasattr(bench.op, "describe"):
        facts["sampled_share"], notes = bench.op.describe(tuple(bench.inputs.x.shape))
    return facts, notes


def measure_latency(
    baseline: Bench,
    standing: Standing,
    task: Task,
    block: Block,
    chance: random.Random,
    send: Send,
    executions: int,
) -> float:
    """Time every direction, a call being so many executions; the seconds inside samples."""
    from sbnbench.clocks import clock_for
    from sbnbench.measure import latency

    device = block.workload.device
    clock = clock_for(device, block.latency)
    watched = gpu_of(device)
    known = task.known or Calibration()
    baselines = latency.partners(baseline, len(standing.benches))
    timed = 0.0
    for step, direction in enumerate(block.directions):
        on_time = throttled(send, step, len(block.directions))
        sampled, seconds = latency.measure(
            baselines,
            standing.benches,
            direction,
            block.latency,
            clock,
            chance,
            on_time,
            watched,
            energy=task.process == 0,
            doing=lambda name: send(Doing(name)),
            known=known,
        )
        timed += seconds
        for found in sampled:
            send(found.divided(executions))
    if task.known is None:
        send(Calibrated(known))
    return timed


def gpu_of(device: str) -> Gpu | None:
    """The GPU to watch while a device is timed; none for a CPU, or where NVML has none to give."""
    import torch

    if not device.startswith("cuda"):
        return None
    properties = torch.cuda.get_device_properties(device)
    index = torch.device(device).index or 0
    return gpu(index, str(getattr(properties, "uuid", "")))[0]


def measure_memory(standing: Standing, block: Block, send: Send) -> None:
    from sbnbench.failures import classify
    from sbnbench.measure.memory import measure_memory as measure

    for bench in standing.benches:
        for direction in block.directions:
            name = bench.contender.id
            try:
                found = measure(bench, direction)
            except Exception as error:
                send(Measured(name, "memory", direction, *classify(error)))
            else:
                send(Measured(name, "memory", direction, "ok", estimates=found))


def measure_errors(standing: Standing, block: Block, seed: int, send: Send) -> None:
    from sbnbench.failures import classify
    from sbnbench.measure.error import measure_error

    for bench in standing.benches:
        name = bench.contender.id
        try:
            found = measure_error(bench.op, bench.contender, block.workload, block.error, seed)
        except Exception as error:
            send(Measured(name, "error", None, *classify(error)))
        else:
            send(Measured(name, "error", None, "ok", "", *found))


def throttled(send: Send, step: int, steps: int) -> Callable[[float], None]:
    """Progress at most ten times a second: a message between two samples costs time."""
    last = monotonic()

    def on_time(fraction: float) -> None:
        nonlocal last
        if monotonic() - last > 0.1:
            last = monotonic()
            send(Progress("timing", step + fraction, steps))

    return on_time
