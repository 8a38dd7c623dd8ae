"""Plan to records: blocks in turn, several fresh processes each, written block by block.

Prints nothing; an Observer hears what happens. A crash, a hang or an exception becomes records
with a status and a reason, and the run goes on.
"""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any

from sbnbench import environment
from sbnbench.blocks import DEFAULT_TIMEOUT, fixed, prepare, run_block
from sbnbench.model import Plan
from sbnbench.observer import Observer
from sbnbench.pool import Worker
from sbnbench.store import Run, RunWriter


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
        prepare(worker, sorted({b.workload.source for b in todo}), observer)
        spent: dict[str, float] = {}
        for block in todo:
            observer.block_started(block)
            start = monotonic()
            rule = fixed(block.latency)
            collected = run_block(worker, block, plan.seed, timeout, rule, observer)
            found, parts = collected.records(), collected.spent
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
