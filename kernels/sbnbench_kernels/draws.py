"""Random numbers for positions: made on the host, a function of (seed, step) alone.

They come from a counter-based generator (Philox), so that a draw comes back after a resume, and no
device is ever synchronised. They are made `BLOCK` steps at a time and kept on the device, so that a
step costs a slice and no transfer.

A compiler cannot trace a generator, and a step that is a Python number would have it compile again
at every step. Under torch.compile and torch.export the same functions are therefore operators of
PyTorch (`sbnbench::now`, `tick`, `start`, `corners`, `elements`, `noise`), opaque to it: seed
and step are read from a clock while the graph runs, and one graph serves all steps. Their Python
body may not become part of a CUDA graph, which would replay one draw for ever; they are tagged so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch._library.fake_impl import allocate_size
from torch.utils._python_dispatch import _get_current_dispatch_mode

BLOCK = 256
"""Steps drawn at a time: 1 MB of corners at batch 256, and 1/256 of a draw's cost a step."""

SEEDS = 1 << 63
"""Seeds are taken modulo this."""

P = ParamSpec("P")
R = TypeVar("R")

_TAG = torch.Tag.cudagraph_unsafe


def make_clock(seed: int, step: int = 0) -> Tensor:
    """Seed and step as a compiled graph reads them: (2,) int64 on the host. It is never written to,
    so that what a graph computes again in its backward reads the same."""
    with torch._C._DisableFuncTorch():
        return torch.tensor([seed % SEEDS, step], dtype=torch.int64, device="cpu")


def fold(seed: int, number: int) -> int:
    """A 63-bit seed from two integers (splitmix64's finalizer)."""
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & (2**64 - 1)
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & (2**64 - 1)
    return (z ^ (z >> 31)) >> 1


def now(clock: Tensor, by_rank: bool) -> tuple[int, int]:
    """Seed and step of the next call; `by_rank` gives each process but the first a seed of its
    own where torch.distributed is initialized."""
    return _now_op(clock, by_rank) if torch.compiler.is_compiling() else _now(clock, by_rank)


def tick(clock: Tensor) -> Tensor:
    """The clock one step later."""
    return _tick_op(clock) if torch.compiler.is_compiling() else _tick(clock)


def start(seed: int, step: int, room: int) -> int:
    """A whole number in 0 … room."""
    if not torch.compiler.is_compiling():
        return _start(seed, step, room)
    # A compiler takes an operator's device from a tensor.
    drawn: int = _start_op(torch.empty(0, device="cpu"), seed, step, room)
    return drawn


def corners(
    seed: int, step: int, rows: int, room: tuple[int, ...], device: torch.device, shared: bool
) -> Tensor:
    """(rows, D) int64, column d in 0 … room[d]; all rows alike if `shared`."""
    if not torch.compiler.is_compiling():
        return _corners(seed, step, rows, room, device, shared)
    drawn: Tensor = _corners_op(seed, step, rows, room, device, shared)
    return drawn


def elements(seed: int, step: int, total: int, count: int, device: torch.device) -> Tensor:
    """(count,) int64 in 0 … total−1, without replacement.

    A random set is drawn once a block and turned by a random shift each step: every step's set is
    uniform among all sets of its size, and no step transfers indices to the device.
    """
    if not torch.compiler.is_compiling():
        return _elements(seed, step, total, count, device)
    drawn: Tensor = _elements_op(seed, step, total, count, device)
    return drawn


def noise(seed: int, step: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal float32 of `shape`, made on the device from a seed given by the host."""
    if not torch.compiler.is_compiling():
        return _noise(seed, step, shape, device)
    drawn: Tensor = _noise_op(seed, step, shape, device)
    return drawn


def _now(clock: Tensor, by_rank: bool) -> tuple[int, int]:
    seed, step = clock.tolist()
    rank = _rank() if by_rank else 0
    return (fold(seed, rank) if rank else seed), step


def _tick(clock: Tensor) -> Tensor:
    seed, step = clock.tolist()
    return make_clock(seed, step + 1)


def _rank() -> int:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0
    return distributed.get_rank()


def _start(seed: int, step: int, room: int) -> int:
    index, offset = divmod(step, BLOCK)
    return _starts(seed, index, room)[offset]


def _corners(
    seed: int, step: int, rows: int, room: tuple[int, ...], device: torch.device, shared: bool
) -> Tensor:
    index, offset = divmod(step, BLOCK)
    drawn = _corner_block(seed, index, 1 if shared else rows, room, device)[offset]
    return drawn.expand(rows, -1) if shared else drawn


def _elements(seed: int, step: int, total: int, count: int, device: torch.device) -> Tensor:
    index, _ = divmod(step, BLOCK)
    shift = _start(seed ^ 0x5EED, step, total - 1)
    return (_element_set(seed, index, total, count, device) + shift) % total


def _noise(seed: int, step: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(fold(seed, step))
    return torch.randn(shape, generator=generator, device=device)


def kept(size: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Keeps a function's last `size` results, but none made under a transform of torch.func or a
    dispatch mode such as FakeTensorMode: such tensors mean nothing outside it."""

    def decorate(make: Callable[P, R]) -> Callable[P, R]:
        remembered = lru_cache(maxsize=size)(make)

        @wraps(make)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            within = torch._C._are_functorch_transforms_active() or _get_current_dispatch_mode()
            return make(*args, **kwargs) if within else remembered(*args, **kwargs)  # type: ignore[arg-type]

        return call

    return decorate


def _generator(seed: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed % (1 << 64), index], np.uint64)))


@lru_cache(maxsize=256)
def _starts(seed: int, index: int, room: int) -> list[int]:
    return [int(n) for n in _generator(seed, index).integers(0, room + 1, size=BLOCK)]


@kept(128)
def _corner_block(
    seed: int, index: int, rows: int, room: tuple[int, ...], device: torch.device
) -> tuple[Tensor, ...]:
    limits = np.array(room, dtype=np.int64) + 1
    draws = _generator(seed, index).integers(0, limits, size=(BLOCK, rows, len(room)))
    return torch.from_numpy(draws).to(device).unbind()


@kept(16)
def _element_set(seed: int, index: int, total: int, count: int, device: torch.device) -> Tensor:
    chosen = _generator(seed, index).choice(total, size=count, replace=False, shuffle=False)
    return torch.from_numpy(np.sort(chosen)).to(device)


def _unknown() -> int:
    """A number that is known when the graph runs. Not `new_dynamic_size`, which breaks the graph
    unless fullgraph=True: no size depends on this one."""
    number: int = allocate_size(torch.library.get_ctx()._shape_env)  # type: ignore[no-untyped-call]
    return number


@torch.library.custom_op("sbnbench::now", mutates_args=(), tags=_TAG)
def _now_op(clock: Tensor, by_rank: bool) -> tuple[int, int]:
    return _now(clock, by_rank)


@_now_op.register_fake
def _(clock: Tensor, by_rank: bool) -> tuple[int, int]:
    return _unknown(), _unknown()


@torch.library.custom_op("sbnbench::tick", mutates_args=(), tags=_TAG)
def _tick_op(clock: Tensor) -> Tensor:
    return _tick(clock)


@_tick_op.register_fake
def _(clock: Tensor) -> Tensor:
    return torch.empty_like(clock)


@torch.library.custom_op("sbnbench::start", mutates_args=(), tags=_TAG)
def _start_op(device: Tensor, seed: int, step: int, room: int) -> int:
    return _start(seed, step, room)


@_start_op.register_fake
def _(device: Tensor, seed: int, step: int, room: int) -> int:
    return _unknown()


@torch.library.custom_op("sbnbench::corners", mutates_args=(), tags=_TAG)
def _corners_op(
    seed: int, step: int, rows: int, room: list[int], device: torch.device, shared: bool
) -> Tensor:
    # A copy: a compiled graph may write to what it was given.
    drawn = _corners(seed, step, rows, tuple(room), device, shared)
    return drawn.clone(memory_format=torch.contiguous_format)


@_corners_op.register_fake
def _(
    seed: int, step: int, rows: int, room: list[int], device: torch.device, shared: bool
) -> Tensor:
    return torch.empty(rows, len(room), dtype=torch.int64, device=device)


@torch.library.custom_op("sbnbench::elements", mutates_args=(), tags=_TAG)
def _elements_op(seed: int, step: int, total: int, count: int, device: torch.device) -> Tensor:
    return _elements(seed, step, total, count, device)


@_elements_op.register_fake
def _(seed: int, step: int, total: int, count: int, device: torch.device) -> Tensor:
    return torch.empty(count, dtype=torch.int64, device=device)


@torch.library.custom_op("sbnbench::noise", mutates_args=(), tags=_TAG)
def _noise_op(seed: int, step: int, shape: list[int], device: torch.device) -> Tensor:
    return _noise(seed, step, tuple(shape), device)


@_noise_op.register_fake
def _(seed: int, step: int, shape: list[int], device: torch.device) -> Tensor:
    return torch.empty(shape, device=device)
