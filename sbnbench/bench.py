"""A contender set up on a workload, with buffers of its own: what gets verified and timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import cycle
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

    @property
    def size(self) -> int:
        """Bytes of x and dy: what a call touches at least."""
        return self.inputs.x.nbytes + self.inputs.dy.nbytes

    def calls(self, direction: Direction, sets: int) -> Callable[[], object]:
        """The call to time, going round `sets` sets of buffers, this bench's own among them."""
        others = [self.again().call(direction) for _ in range(sets - 1)]
        return going_round([self.call(direction), *others])

    def again(self) -> Bench:
        """The same op on other buffers."""
        made = inputs_of(self.contender, self.inputs.workload)
        state = new_state(made.weight, self.state.seed)
        return Bench(self.contender, self.op, made, state, self.repeats)


def going_round(calls: list[Callable[[], object]]) -> Callable[[], object]:
    """A call that makes the next of `calls` each time, from the first again after the last."""
    if len(calls) == 1:
        return calls[0]
    turn = cycle(calls)
    return lambda: next(turn)()


def set_up(contender: Contender, workload: Workload, seed: int) -> Bench:
    """A bench with inputs of its own."""
    made = inputs_of(contender, workload)
    return Bench(contender, build(contender), made, new_state(made.weight, seed))


def inputs_of(contender: Contender, workload: Workload, draw: int = 0) -> Inputs:
    """Inputs that nothing else holds. Their values are made once for all contenders of a block."""
    made, virtual = _real(workload, draw), virtual_rows(contender)
    if virtual:
        made = _virtual(workload, virtual, draw)
    copies = {name: getattr(made, name).clone() for name in ("x", "dy", "weight", "bias")}
    return replace(made, **copies)


_real = lru_cache(maxsize=2)(inputs.make_real)


@lru_cache(maxsize=2)
def _virtual(workload: Workload, rows: int, draw: int) -> Inputs:
    return inputs.with_virtual(_real(workload, draw), rows, draw)


def new_state(like: Tensor, seed: int) -> State:
    """Running statistics of a layer in training, as BatchNorm2d starts them: 0 and 1."""
    return State(running_mean=torch.zeros_like(like), running_var=torch.ones_like(like), seed=seed)
