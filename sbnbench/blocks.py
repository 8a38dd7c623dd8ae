"""One block: fresh processes one after the other, until its stopping rule has enough.

Prints nothing. A crash, a hang or an exception becomes the outcome of the contenders it hit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sbnbench.assemble import Collected
from sbnbench.errors import SbnbenchError
from sbnbench.messages import Doing, Ended, Event, Failed, Outcome, Progress, Task
from sbnbench.model import Block, LatencyOptions
from sbnbench.observer import Observer
from sbnbench.pool import Worker, WorkerTimeout
from sbnbench.stopping import Precision

DEFAULT_TIMEOUT = 600.0


def fixed(options: LatencyOptions) -> Precision:
    """The rule of a suite: `processes` processes, neither fewer nor more.

    Every block of a report then costs the same; what stays imprecise is labelled so.
    """
    return Precision(
        target=options.precision,
        min_rounds=options.min_rounds,
        max_seconds=options.seconds,
        min_processes=options.processes,
        max_processes=options.processes,
    )


def run_block(
    worker: Worker,
    block: Block,
    seed: int,
    timeout: float,
    rule: Precision,
    observer: Observer | None = None,
    slowdown: float = 0.0,
) -> Collected:
    """What the processes of a block said, the failing ones included.

    Each process times for `block.latency.seconds / block.latency.processes`. There is one where
    nothing is timed, otherwise as many as `rule` asks for.
    """
    observer = observer or Observer()
    collected = Collected(block)
    timed = "latency" in block.measures
    expected = rule.min_processes if timed else 1
    process = 0
    most = rule.max_processes if timed else 1
    while process < most and (standing := collected.standing()):
        if process and _enough(collected, rule):
            break
        task = Task(block, process, seed, standing, slowdown=slowdown, known=collected.known)

        def on_progress(fraction: float, process: int = process) -> None:
            observer.block_progress(block, min(1.0, (process + fraction) / expected))

        fate = _run_process(worker, task, timeout, collected, on_progress)
        if fate is not None and fate.contender:
            collected.take(fate)  # the others go again without it
            continue
        if fate is not None:
            collected.drop(fate.status, fate.reason)
        process += 1
    return collected


def _run_process(
    worker: Worker,
    task: Task,
    timeout: float,
    collected: Collected,
    on_progress: Callable[[float], None],
) -> Outcome | None:
    """One process of a block; how it failed, and through which contender where that is known.

    Of a process that failed, only what it said of contenders by name is kept.
    """
    said: list[Event] = []
    at_work = ""
    problem: Failed | None = None
    fate: Outcome | None = None
    try:
        for event in worker.ask(task, timeout):
            if isinstance(event, Outcome):
                collected.take(event)
            elif isinstance(event, Doing):
                at_work = event.contender
            elif isinstance(event, Progress):
                on_progress(event.done / event.total)
            elif isinstance(event, Failed):
                problem = event
            elif isinstance(event, Ended):
                fate = _fate(event, problem, at_work, worker) if event.code else None
            else:
                said.append(event)
    except WorkerTimeout as error:
        return Outcome(at_work, "timeout", f"{error} ({timeout:g} s)")
    if fate is None:
        for event in said:
            collected.take(event)
    return fate


def _enough(collected: Collected, rule: Precision) -> bool:
    """Whether no contender that stands needs another process, in any direction."""
    options = collected.block.latency
    for contender in collected.standing():
        for direction in collected.block.directions:
            processes = collected.log_ratios(contender, direction)
            spent = len(processes) * options.seconds / options.processes
            if rule.enough_processes(processes, spent) is None:
                return False
    return True


def _fate(event: Ended, problem: Failed | None, at_work: str, worker: Worker) -> Outcome:
    if problem:
        return Outcome("", problem.status, problem.reason)
    if event.code == -9:
        why = "the process was killed (SIGKILL): most often no memory"
        return Outcome(at_work, "out-of-memory", why)
    why = f"the process ended with {event.code}: {worker.last_words(1)}"
    return Outcome(at_work, "crashed", why)


def prepare(worker: Worker, sources: Sequence[str], observer: Observer) -> None:
    """Make inputs that no cache has yet; without them no block can run."""
    for event in worker.ask(Task(sources=tuple(sources)), timeout=DEFAULT_TIMEOUT):
        if isinstance(event, Progress):
            observer.preparing(event.what, event.done, event.total)
        elif isinstance(event, Failed):
            raise SbnbenchError(f"the inputs could not be made: {event.reason}")
        elif isinstance(event, Ended) and event.code:
            raise SbnbenchError(f"the inputs could not be made: {worker.last_words(1)}")
