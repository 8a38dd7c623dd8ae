"""A contender set up on a workload, with buffers of its own: what gets verified and timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sbnbench import inputs
from sbnbench.inputs import Inputs, virtual_rows
from sbnbench.model import Contender, Direction, Workload
from sbnbench.registry import build
from sbnbench_kernels.contract import State


@dataclass
class Bench:
    """An op, the tensors it works on, and its state."""

    contender: Contender
    op: Any
    inputs: Inputs
    state: State
    repeats: int = 1
    """Executions that one call makes."""

    def call(self, direction: Direction) -> Callable[[], object]:
        """The call to time. `bwd` runs backward alone, on one forward's saved tensors."""
        once = self._execution(direction)
        if self.repeats == 1:
            return once

        def repeated() -> None:
            for _ in range(self.repeats):
                once()

        return repeated

    def _execution(self, direction: Direction) -> Callable[[], object]:
        i = self.inputs
        forward = partial(self.op.forward, i.x, i.weight, i.bias, self.state)
        if direction == "fwd":
            return forward
        backward = self.op.backward
        if direction == "bwd":
            return partial(backward, i.dy, forward()[1])
        return lambda: backward(i.dy, forward()[1])


def set_up(contender: Contender, workload: Workload, seed: int) -> Bench:
    """A bench with freshly made inputs."""
    made = inputs.make(workload, virtual_rows(contender))
    return Bench(contender, build(contender), made, new_state(made.weight, seed))


def new_state(like: Tensor, seed: int) -> State:
    """Running statistics of a layer in training, as BatchNorm2d starts them: 0 and 1."""
    return State(running_mean=torch.zeros_like(like), running_var=torch.ones_like(like), seed=seed)
