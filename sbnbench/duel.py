"""One contender against one baseline, measured until a rule has its answer.

What gates and the test of the machine's own noise are made of: one block with one contender and
one direction, several fresh processes, few at first and more while the answer is unclear.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from sbnbench.blocks import DEFAULT_TIMEOUT, prepare, run_block
from sbnbench.model import Block, Direction, ErrorOptions, LatencyOptions, Record
from sbnbench.observer import Observer
from sbnbench.plan import Filters, Suite, make_plan
from sbnbench.pool import Worker
from sbnbench.statistics import Verdict, decide
from sbnbench.stopping import Precision, UntilClear


class Duel(msgspec.Struct, frozen=True):
    """The record of a duel, and the verdict at the threshold of its rule."""

    record: Record
    verdict: Verdict
    reason: str

    @property
    def processes(self) -> int:
        return len(self.record.samples.get("time", ()))

    @property
    def rounds(self) -> int:
        """Pairs, over all processes."""
        return sum(map(len, self.record.samples.get("time", ())))


def pair(
    contender: str,
    baseline: str,
    source: str,
    direction: Direction,
    *,
    rule: Precision,
    axes: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Block:
    """The block of a duel, checked as a suite's is: UsageError, or Unavailable without its device.

    `source` is `synthetic:64x28x28` or `real:LAYER`; `axes` gives batch (default 1), dtype, format
    and device. A process times for an equal share of the rule's time over all processes it may
    have: an answer that is clear after the first few takes only part of the time.
    """
    suite = Suite(
        title="duel",
        contenders=[contender],
        baseline=baseline,
        directions=(direction,),
        axes={"input": [source], "batch": [1], **{k: [v] for k, v in (axes or {}).items()}},
        latency=LatencyOptions(
            precision=rule.target,
            seconds=rule.max_seconds,
            processes=rule.max_processes,
            min_rounds=rule.min_rounds,
        ),
        error=ErrorOptions(),
        seed=seed,
    )
    return make_plan(suite, Filters(), contender).blocks[0]


def duel(
    block: Block,
    rule: UntilClear,
    worker: Worker,
    *,
    slowdown: float = 0.0,
    seed: int = 0,
    timeout: float = DEFAULT_TIMEOUT,
) -> Duel:
    """Verify the contender of a block made by `pair`, and measure until `rule` has its answer.

    A contender that fails gives a record with its status and reason. `slowdown` makes the
    contender slower than it is by this share, to see whether the difference is found.
    """
    prepare(worker, [block.workload.source], Observer())
    collected = run_block(worker, block, seed, timeout, rule, slowdown=slowdown)
    (record,) = collected.records()
    if "ratio" not in record.estimates:
        return Duel(record, "UNCLEAR", record.reason)
    return Duel(record, *decide(record.estimates["ratio"], rule.threshold))


def verify(block: Block, worker: Worker, *, timeout: float = DEFAULT_TIMEOUT) -> Duel:
    """Verify the contender of a block and time nothing: a record without estimates."""
    prepare(worker, [block.workload.source], Observer())
    untimed = msgspec.structs.replace(block, measures=())
    collected = run_block(worker, untimed, block.workload.seed, timeout, Precision())
    record = collected.blank(block.contenders[0], "latency", block.directions[0])
    return Duel(record, "UNCLEAR", record.reason or "verified, not timed")


@contextmanager
def own_worker() -> Iterator[Worker]:
    """A worker for duels, its log in a temporary folder."""
    with (
        tempfile.TemporaryDirectory(prefix="sbnbench-") as folder,
        Worker(Path(folder) / "worker.log") as worker,
    ):
        yield worker
