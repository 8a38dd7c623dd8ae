"""Plan to records: blocks in turn, several fresh processes each, written block by block.

Prints nothing; an Observer hears what happens. A crash, a hang or an exception becomes records
with a status and a reason, and the run goes on.
"""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any

from sbnbench import environment
from sbnbench.assemble import Collected
from sbnbench.errors import SbnbenchError
from sbnbench.messages import Ended, Failed, Progress, Task
from sbnbench.model import Block, Plan, Record
from sbnbench.observer import Observer
from sbnbench.pool import Worker, WorkerTimeout
from sbnbench.store import Run, RunWriter

DEFAULT_TIMEOUT = 600.0


def execute(
    plan: Plan,
    path: Path,
    *,
    resume: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
    observer: Observer | None = None,
) -> Run:
    """Run a plan into the directory `path` and give the run.

    With `resume` the run in `path` is gone on with: its finished blocks are kept. Ctrl-C leaves
    with KeyboardInterrupt, every finished block on disk.
    """
    observer = observer or Observer()
    if resume:
        writer, run = RunWriter.resume(path)
        records, todo = run.records, run.missing()
    else:
        writer, records, todo = RunWriter.create(path, plan), [], list(plan.blocks)
    observer.started(plan, todo)
    log = path / "worker.log"
    begun = monotonic()
    with Worker(log) as worker:
        facts = run.environment if resume else environment.describe()
        facts |= worker.start().facts
        writer.environment(facts)
        _prepare(worker, sorted({b.workload.source for b in todo}), observer)
        spent: dict[str, float] = {}
        for block in todo:
            observer.block_started(block)
            start = monotonic()
            found, parts = run_block(worker, block, plan.seed, timeout, observer)
            writer.append(found)
            records.extend(found)
            observer.block_done(block, found, monotonic() - start)
            for what, seconds in parts.items():
                spent[what] = spent.get(what, 0.0) + seconds
        facts["timing"] = timing(spent, monotonic() - begun, facts.get("timing"))
        writer.environment(facts)
    if log.exists() and not log.stat().st_size:
        log.unlink()
    return Run(plan, facts, records, path)


def run_block(
    worker: Worker, block: Block, seed: int, timeout: float, observer: Observer
) -> tuple[list[Record], dict[str, float]]:
    """All processes of a block, the failing ones included; records, and what the time went to."""
    collected = Collected(block)
    processes = block.latency.processes if "latency" in block.measures else 1
    for process in range(processes):
        standing = collected.standing()
        if not standing:
            break
        task = Task(block, process, seed, standing)
        problem = ""
        try:
            for event in worker.ask(task, timeout):
                collected.take(event)
                if isinstance(event, Progress):
                    done = (process + event.done / event.total) / processes
                    observer.block_progress(block, done)
                elif isinstance(event, Failed):
                    problem = event.reason
                elif isinstance(event, Ended) and event.code:
                    _fallen(collected, event, problem, worker)
        except WorkerTimeout as error:
            collected.drop("timeout", f"{error} ({timeout:g} s)")
    return collected.records(), collected.spent


def timing(
    spent: dict[str, float], total: float, before: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What the time of a run went to, in seconds; `before` is the part that is resumed.

    `overhead` is the share of `total` that was not inside samples. `parts` name it as far as the
    workers told; the rest is starting them, and writing records.
    """
    before = before or {"total": 0.0, "timed": 0.0, "parts": {}}
    parts = {k: v for k, v in spent.items() if k != "timed"}
    parts["start and records"] = total - sum(spent.values())
    total += before["total"]
    timed = spent.get("timed", 0.0) + before["timed"]
    return {
        "total": total,
        "timed": timed,
        "overhead": 1 - timed / total if total else 0.0,
        "parts": {
            k: parts.get(k, 0.0) + before["parts"].get(k, 0.0) for k in {**before["parts"], **parts}
        },
    }


def _fallen(collected: Collected, event: Ended, problem: str, worker: Worker) -> None:
    if problem:
        collected.drop("error", problem)
    elif event.code == -9:
        collected.drop("out-of-memory", "the process was killed (SIGKILL): most often no memory")
    else:
        collected.drop("crashed", f"the process ended with {event.code}: {worker.last_words(1)}")


def _prepare(worker: Worker, sources: list[str], observer: Observer) -> None:
    """Make inputs that no cache has yet; without them no block can run."""
    for event in worker.ask(Task(sources=tuple(sources)), timeout=DEFAULT_TIMEOUT):
        if isinstance(event, Progress):
            observer.preparing(event.what, event.done, event.total)
        elif isinstance(event, Failed):
            raise SbnbenchError(f"the inputs could not be made: {event.reason}")
        elif isinstance(event, Ended) and event.code:
            raise SbnbenchError(f"the inputs could not be made: {worker.last_words(1)}")
