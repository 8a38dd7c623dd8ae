"""What the parent and a worker say to each other: one JSON object a line. No torch.

Parent to worker: Task. Worker to parent: Ready once, then per task Spawned, any number of
Progress, Outcome, Sampled and Measured, Spent, at most one Failed, and Ended. A task in turns is
answered by Prepared for each call, and then by Taken for each Turn, until Enough.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sbnbench.model import Block, Direction, Estimate, Status


class Calibration(msgspec.Struct):
    """What the first process of a block finds out for those after it: loops of each call, and the
    fastest way of each kind of step of a floor. Filled in place."""

    loops: dict[str, int] = {}
    ways: dict[str, str] = {}


class Task(msgspec.Struct, frozen=True):
    """Run a block once in a fresh process, or (without a block) prepare inputs.

    `process` counts the processes of the block. The first verifies and measures the error; the
    others time what it left: `contenders` are the ids still standing.
    """

    block: Block | None = None
    process: int = 0
    seed: int = 0
    contenders: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    turns: bool = False
    """Time one sample at each Turn, rather than pairs of its own."""
    slowdown: float = 0.0
    """Make the contenders, not the baseline, slower than they are by this share: 0.1 is 10 %."""
    known: Calibration | None = None
    """What an earlier process of the block has calibrated."""


class Turn(msgspec.Struct, frozen=True, tag=True):
    """Take one sample of a call, of `loops` calls in a row."""

    contender: str
    direction: Direction
    loops: int


class Enough(msgspec.Struct, frozen=True, tag=True):
    """No more turns: end the task."""


class Prepared(msgspec.Struct, frozen=True, tag=True):
    """A call is warm, and a sample of it wants this many loops."""

    contender: str
    direction: Direction
    loops: int


class Taken(msgspec.Struct, frozen=True, tag=True):
    """The sample of a Turn, in seconds a call."""

    time: float


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker has imported torch and takes tasks."""

    facts: dict[str, Any]


class Spawned(msgspec.Struct, frozen=True, tag=True):
    """A fresh process has begun the task."""

    pid: int


class Progress(msgspec.Struct, frozen=True, tag=True):
    """`done` of `total` of what `what` names."""

    what: str
    done: float
    total: float


class Doing(msgspec.Struct, frozen=True, tag=True):
    """From now on this contender alone is at work; with no name, all of them are. Whoever was at
    work when a process died or hung is to blame for it."""

    contender: str


class Outcome(msgspec.Struct, frozen=True, tag=True):
    """How a contender stood the verification: `ok`, or why it is not timed."""

    contender: str
    status: Status
    reason: str = ""
    facts: dict[str, Any] = {}
    notes: tuple[str, ...] = ()


class FloorSampled(msgspec.Struct, frozen=True):
    """Seconds a call of a contender's floor, next to the contender's, and what the floor is."""

    time: list[float]
    read: int
    written: int
    known: bool
    ways: tuple[str, ...]


class Sampled(msgspec.Struct, frozen=True, tag=True):
    """Pairs of one contender and one direction, in seconds a call."""

    contender: str
    direction: Direction
    time: list[float]
    baseline: list[float]
    loops: int
    baseline_loops: int
    clock: str = "perf_counter"
    floor: FloorSampled | None = None
    gpu: dict[str, Any] = {}
    """What `nvml.Watch` saw."""
    joules: float | None = None
    """Energy of a call."""
    remarks: tuple[str, ...] = ()

    def divided(self, executions: int) -> Sampled:
        """The same, where each call was this many executions."""
        if executions == 1:
            return self
        return msgspec.structs.replace(
            self,
            time=[t / executions for t in self.time],
            baseline=[t / executions for t in self.baseline],
            loops=self.loops * executions,
            baseline_loops=self.baseline_loops * executions,
            joules=self.joules and self.joules / executions,
        )


class Measured(msgspec.Struct, frozen=True, tag=True):
    """What a measure other than latency found for one contender."""

    contender: str
    measure: str
    direction: Direction | None
    status: Status
    reason: str = ""
    estimates: dict[str, Estimate] = {}
    samples: dict[str, list[list[float]]] = {}
    facts: dict[str, Any] = {}


class Spent(msgspec.Struct, frozen=True, tag=True):
    """Seconds that a task spent, by what they went to; `timed` are those inside samples."""

    seconds: dict[str, float]


class Calibrated(msgspec.Struct, frozen=True, tag=True):
    """What the first process of a block has calibrated."""

    found: Calibration


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The task as a whole could not be run; no contender is to blame."""

    reason: str
    status: Status = "error"


class Ended(msgspec.Struct, frozen=True, tag=True):
    """The process of a task is gone: `code` is its exit code, negative for a signal."""

    code: int


Event = (
    Ready
    | Spawned
    | Progress
    | Doing
    | Outcome
    | Sampled
    | Measured
    | Spent
    | Prepared
    | Taken
    | Calibrated
    | Failed
    | Ended
)
"""Anything a worker says."""
