"""What the parent and a worker say to each other: one JSON object a line. No torch.

Parent to worker: Task. Worker to parent: Ready once, then per task Spawned, any number of
Progress, Outcome, Sampled and Errors, at most one Failed, and Ended. A task in turns is answered
by Prepared for each call, and then by Taken for each Turn, until Enough.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sbnbench.model import Block, Direction, Estimate, Status


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


class Outcome(msgspec.Struct, frozen=True, tag=True):
    """How a contender stood the verification: `ok`, or why it is not timed."""

    contender: str
    status: Status
    reason: str = ""
    facts: dict[str, Any] = {}
    notes: tuple[str, ...] = ()


class Sampled(msgspec.Struct, frozen=True, tag=True):
    """Pairs of one contender and one direction, in seconds a call."""

    contender: str
    direction: Direction
    time: list[float]
    baseline: list[float]
    loops: int
    baseline_loops: int

    def divided(self, executions: int) -> Sampled:
        """The same, where each call was this many executions."""
        if executions == 1:
            return self
        return Sampled(
            self.contender,
            self.direction,
            [t / executions for t in self.time],
            [t / executions for t in self.baseline],
            self.loops * executions,
            self.baseline_loops * executions,
        )


class Errors(msgspec.Struct, frozen=True, tag=True):
    """The estimation error of one contender."""

    contender: str
    status: Status
    reason: str = ""
    estimates: dict[str, Estimate] = {}
    samples: dict[str, list[list[float]]] = {}
    facts: dict[str, Any] = {}


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The task as a whole could not be run; no contender is to blame."""

    reason: str
    status: Status = "error"


class Ended(msgspec.Struct, frozen=True, tag=True):
    """The process of a task is gone: `code` is its exit code, negative for a signal."""

    code: int


Event = Ready | Spawned | Progress | Outcome | Sampled | Errors | Prepared | Taken | Failed | Ended
"""Anything a worker says."""
