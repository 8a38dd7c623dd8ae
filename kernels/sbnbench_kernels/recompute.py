"""Forwards that are computed a second time, by activation checkpointing.

A checkpoint runs its layers again during backward. A layer that draws positions or keeps averages
must then repeat what it did: the same draw from the same averages, and nothing counted twice. The
state a call began with is therefore kept while it may be run again, and found by where the call
stands in the graph: autograd numbers its nodes in the order in which they are made, and a
recomputation runs inside the node whose backward asked for it.

`use_reentrant=True`: the first run makes no graph, inside the checkpoint's node, so its calls are
the first ones with a number from that node's on. `use_reentrant=False`: the first run makes the
graph under hooks for saved tensors, and backward begins in its last node, so its calls are those
of the region that holds the last call up to that node's number. This holds for any order of
forwards and backwards, several calls of a layer in a region, and regions recomputed more than
once. It does not for a reentrant checkpoint inside another.

A compiled graph recomputes by itself, from a seed and a step that it saved: nothing is kept then.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from sbnbench_kernels.contract import State

KEPT = 256
"""Calls kept a layer: more forwards than any schedule runs ahead of their backwards."""


class _Call(NamedTuple):
    number: int
    region: int | None
    """Counts checkpoints with hooks; None for a call without a graph."""
    state: State


class Replay:
    """The calls of one layer that may be run again."""

    def __init__(self) -> None:
        self._calls: deque[_Call] = deque(maxlen=KEPT)
        self._region = 0
        self._hook: Callable[[], Any] = lambda: None
        self._running: tuple[int, int] | None = None
        self._position = 0

    def __reduce__(self) -> tuple[type[Replay], tuple[()]]:
        # A copied or unpickled layer has no graph to go back to.
        return Replay, ()

    def record(self, state: State) -> None:
        """Keeps a copy of `state`, with which a call is about to run, if it may run again."""
        if torch.compiler.is_compiling():
            return
        hook, graph = _pack_hook(), torch.is_grad_enabled()
        if hook is None and graph:
            return
        number = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        if not graph:
            self._calls.append(_Call(number - 1, None, copy_state(state)))
            return
        if self._hook() is not hook:
            self._region += 1
            self._hook = weakref.ref(hook)
        self._calls.append(_Call(number, self._region, copy_state(state)))

    def find(self) -> State | None:
        """The state of the call that is being run again, None where this call is a new one."""
        if torch.compiler.is_compiling():
            return None
        task = torch._C._current_graph_task_id()
        node = torch._C._current_autograd_node() if task != -1 else None
        if node is None:
            return None
        number = node._sequence_nr()
        if _pack_hook() is None:
            calls = [c for c in self._calls if c.region is None and c.number >= number]
        else:
            before = [c for c in self._calls if c.region is not None and c.number <= number]
            calls = [c for c in before if c.region == before[-1].region]
        self._position = self._position + 1 if self._running == (task, number) else 0
        self._running = (task, number)
        return copy_state(calls[self._position].state) if self._position < len(calls) else None


def copy_state(state: State) -> State:
    """A state of its own, tensors included."""

    def copy(t: torch.Tensor | None) -> torch.Tensor | None:
        return None if t is None else t.detach().clone()

    return State(
        copy(state.running_mean),
        copy(state.running_var),
        state.momentum,
        state.training,
        state.seed,
        state.step,
        {name: t.detach().clone() for name, t in state.extra.items()},
    )


def _pack_hook() -> Any:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks[0] if hooks else None
