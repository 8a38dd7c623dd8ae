"""An eager op with explicit forward and backward, compiled as it stands.

Both are traced over tensors alone: what State carries goes in as arguments, what `saved` carries
comes out as results, and what is no tensor (a flag, a size, a dtype) is compiled in and kept beside
the program.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from sbnbench_kernels.contract import State
from sbnbench_kernels.inductor.compiled import Compiled, Layout, Program, layout


class Slot(NamedTuple):
    """A tensor's place in a structure: the forward's argument at `place`, or its result."""

    is_argument: bool
    place: int


class Recorded:
    """A compiled forward, what its `saved` looks like, and the backwards that go with it."""

    def __init__(self) -> None:
        self.program: Program
        self.leaves: list[Any] = []
        self.spec: TreeSpec
        self.advance = 0
        self.backwards: dict[Layout | None, tuple[Program, list[Any], TreeSpec]] = {}


class Saved(NamedTuple):
    """The tensors of the eager op's `saved`; `recorded` knows where in it they belong."""

    tensors: tuple[Tensor, ...]
    recorded: Recorded


class Traced(Compiled):
    """Mixin that comes before the eager op among the bases."""

    def numbers(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """Further arguments: what changes from step to step, under the names by which the traced
        forward finds them in `State.extra`."""
        return {}

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, Any]:
        if hasattr(self, "_extra"):
            self._extra(x, state)
        extra = {**state.extra, **self.numbers(x, state)} if state.training else state.extra
        momentum = state.momentum if state.training else 0.0
        share = None
        if momentum is None:  # the cumulative average: another number each step
            like = x if state.running_mean is None else state.running_mean
            share = torch.full((), 1 / (state.step + 1), dtype=like.dtype, device=x.device)
        given = (x, weight, bias, state.running_mean, state.running_var, share, *extra.values())
        key = (state.training, momentum, tuple(extra), *map(layout, given))
        recorded = self.programs.get(key)
        if recorded is None:
            recorded = self._record(given, tuple(extra), state)
            self.programs[key] = recorded
        y, *new = recorded.program([t for t in given if t is not None])
        state.step += recorded.advance
        tensors: Iterator[Any] = (
            given[leaf.place] if leaf.is_argument else new[leaf.place]
            for leaf in recorded.leaves
            if isinstance(leaf, Slot)
        )
        return y, Saved(tuple(tensors), recorded)

    def backward(self, dy: Tensor, saved: Any) -> Any:
        tensors, recorded = saved
        key = layout(dy)
        found = recorded.backwards.get(key)
        if found is None:
            found = recorded.backwards[key] = self._record_backward(dy, saved)
        program, leaves, spec = found
        results = program([dy, *tensors])
        return tree_unflatten(
            [results[leaf.place] if isinstance(leaf, Slot) else leaf for leaf in leaves], spec
        )

    def _record(
        self, given: Sequence[Tensor | None], names: Sequence[str], state: State
    ) -> Recorded:
        recorded = Recorded()

        def function(*arguments: Tensor | None) -> Sequence[Tensor]:
            x, weight, bias, mean, var, share, *extra = arguments
            momentum: Any = state.momentum if share is None else share
            traced = State(
                mean,
                var,
                momentum,
                state.training,
                state.seed,
                0,
                dict(zip(names, extra, strict=True)),  # type: ignore[arg-type]
            )
            y, kept = super(Traced, self).forward(x, weight, bias, traced)  # type: ignore[misc]
            new: list[Tensor] = []
            leaves, recorded.spec = tree_flatten(kept)
            recorded.leaves = [_place(leaf, arguments, new) for leaf in leaves]
            recorded.advance = traced.step
            return [y, *new]

        recorded.program = self.compile(function, given)
        return recorded

    def _record_backward(self, dy: Tensor, saved: Saved) -> tuple[Program, list[Any], TreeSpec]:
        tensors, recorded = saved
        found: list[Any] = []

        def function(dy: Tensor, *arguments: Tensor) -> Sequence[Tensor]:
            left = iter(arguments)
            leaves = [next(left) if isinstance(leaf, Slot) else leaf for leaf in recorded.leaves]
            kept = tree_unflatten(leaves, recorded.spec)
            new: list[Tensor] = []
            leaves, spec = tree_flatten(super(Traced, self).backward(dy, kept))  # type: ignore[misc]
            found[:] = [[_place(leaf, (), new) for leaf in leaves], spec]
            return new

        program = self.compile(function, (dy, *tensors))
        return program, found[0], found[1]


def _place(leaf: Any, arguments: Sequence[Tensor | None], new: list[Tensor]) -> Any:
    """The leaf's slot where it is a tensor; a new one is appended to `new`."""
    if not isinstance(leaf, Tensor):
        return leaf
    for index, argument in enumerate(arguments):
        if leaf is argument:
            return Slot(True, index)
    new.append(leaf)
    return Slot(False, len(new) - 1)
