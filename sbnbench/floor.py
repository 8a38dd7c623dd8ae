"""The floor: the fastest copy of exactly the bytes that a contender must move.

It is timed next to its contender in every round, so floor/contender is the share of what this
machine can do at that moment. A floor computes nothing of use. It is made of

    sweeps   a read-only reduction over the inputs, for reads that no write follows: the passes that
             collect statistics
    a pass   an elementwise operation from the inputs to an output, reading and writing at once

Reads go over buffers of the size of the tensors that the direction reads (x forward; x and dy
backward), as often as it takes: what a contender reads twice, the floor reads twice, and caches may
serve the second time for both. What is written is a fresh tensor, as y and dx are: the allocator
gives all of them the same, warm memory. `fwd_bwd` is the floor of `fwd` followed by that of `bwd`.
Elements are float32 whatever the dtype: bytes count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sbnbench.errors import UnknownName
from sbnbench.inputs import Inputs
from sbnbench.model import Contender, Direction
from sbnbench.registry import normalizers
from sbnbench_kernels.traffic import traffic

_ELEMENT = 4

Call = Callable[[], object]
Ways = dict[str, Call]


@dataclass(frozen=True)
class Moves:
    """Bytes that one direction moves: read and written, over `inputs` tensors of `tensor` bytes."""

    read: int
    written: int
    inputs: int
    tensor: int


@dataclass(frozen=True)
class Traffic:
    """What a contender must move, forward and backward in turn. `known`: not merely assumed."""

    moves: tuple[Moves, ...]
    known: bool

    @property
    def read(self) -> int:
        return sum(m.read for m in self.moves)

    @property
    def written(self) -> int:
        return sum(m.written for m in self.moves)


def traffic_of(contender: Contender, inputs: Inputs, direction: Direction) -> Traffic:
    """What a contender must move in a direction on inputs of this form, virtual rows included.

    A normalizer that the traffic model does not know must at least read its inputs once and write
    its output once.
    """
    shape, tensor, w = tuple(inputs.x.shape), inputs.x.nbytes, inputs.workload
    params = normalizers()[contender.normalizer].resolve(dict(contender.params))
    parts: tuple[Direction, ...] = ("fwd", "bwd") if direction == "fwd_bwd" else (direction,)
    moves, known = [], True
    for part in parts:
        count = 1 if part == "fwd" else 2
        try:
            found = traffic(
                contender.normalizer, params, shape, w.dtype, part, form=w.format, device=w.device
            )
            read, written = found.read, found.written
        except UnknownName:
            known, read, written = False, count * tensor, tensor
        moves.append(Moves(round(read), round(written), count, tensor))
    return Traffic(tuple(moves), known)


@dataclass(frozen=True)
class Steps:
    """How `Moves` are made, in elements: `swept` read only; `operands` tensors of `passed` read,
    and as much as one of them written."""

    swept: int
    operands: int
    passed: int


def steps(moves: Moves) -> Steps:
    """The steps that read and write what `moves` says, to the element (of 4 bytes).

    The pass has as many operands as the reads suffice for, one for each input at most. Reads must
    be no less than writes, as they are for whatever computes an output from inputs of its size.
    """
    read, written = (max(1, n // _ELEMENT) for n in (moves.read, moves.written))
    operands = min(moves.inputs, read // written)
    return Steps(read - operands * written, operands, written)


class Floors:
    """Floors that work in the same buffers. What moves the same bytes has the same floor.

    Where there are several ways to do a step, `time`, the seconds of a call, decides: once for each
    kind of step and size up to a factor of two, among all floors that are given the same `chosen`.
    """

    def __init__(
        self,
        wanted: Sequence[Traffic],
        device: str,
        time: Callable[[Call], float],
        chosen: dict[str, str],
    ) -> None:
        self._time = time
        self._chosen = chosen
        moves = [m for traffic in wanted for m in traffic.moves]
        self._source = torch.ones(max(_room(m) for m in moves), device=device)
        self._made: dict[Traffic, tuple[Call, tuple[str, ...]]] = {
            traffic: self._make(traffic) for traffic in dict.fromkeys(wanted)
        }

    def call(self, traffic: Traffic) -> Call:
        """The copy for `traffic`."""
        return self._made[traffic][0]

    def ways(self, traffic: Traffic) -> tuple[str, ...]:
        """The names of its steps, as they were chosen."""
        return self._made[traffic][1]

    def _make(self, traffic: Traffic) -> tuple[Call, tuple[str, ...]]:
        chosen = [self._fastest(*found) for m in traffic.moves for found in self._todo(m)]
        calls = tuple(call for _, call in chosen)
        call = calls[0] if len(calls) == 1 else partial(_in_turn, calls)
        return call, tuple(name for name, _ in chosen)

    def _todo(self, moves: Moves) -> list[tuple[str, Ways]]:
        """The ways to do each step, under what tells steps of different kinds apart."""
        todo = steps(moves)
        found: list[tuple[str, Ways]] = []
        each = max(1, moves.tensor // _ELEMENT)
        whole, rest = divmod(todo.swept, moves.inputs * each)
        sizes = [moves.inputs * each] * whole + [rest] * bool(rest)
        found += [(f"sweep {n.bit_length()}", sweeps(self._source[:n])) for n in sizes]
        operands = [self._source[i * each :][: todo.passed] for i in range(todo.operands)]
        kind = f"pass {todo.operands} {todo.passed.bit_length()}"
        return [*found, (kind, passes(operands))]

    def _fastest(self, key: str, ways: Ways) -> tuple[str, Call]:
        if key not in self._chosen:
            best = min(ways, key=lambda name: self._time(ways[name])) if len(ways) > 1 else None
            self._chosen[key] = best or next(iter(ways))
        name = self._chosen[key]
        return name, ways[name]


def sweeps(source: Tensor) -> Ways:
    """Ways to read a buffer and write next to nothing."""
    return {"sum": partial(torch.sum, source), "dot": partial(torch.dot, source, source)}


def passes(operands: Sequence[Tensor]) -> Ways:
    """Ways to read one or two buffers and write a new one of the same size."""
    if len(operands) == 2:
        return {"add": partial(torch.add, *operands)}
    (source,) = operands
    ways: Ways = {"clone": source.clone}
    if source.device.type == "cpu":
        # One thread, but less on the way to it: the faster one for small buffers.
        ways["copyto"] = partial(_copyto, source)
    return ways


def _copyto(source: Tensor) -> Tensor:
    made = torch.empty_like(source)
    np.copyto(made.numpy(), source.numpy())
    return made


def _room(moves: Moves) -> int:
    """Elements of the source that a floor needs."""
    each, todo = max(1, moves.tensor // _ELEMENT), steps(moves)
    return max(moves.inputs * each, (todo.operands - 1) * each + todo.passed)


def _in_turn(calls: tuple[Call, ...]) -> None:
    for call in calls:
        call()
