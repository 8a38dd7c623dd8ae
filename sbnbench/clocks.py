"""How a call is timed. A clock times `loops` calls in a row and gives seconds a call.

    perf_counter   host time; a GPU is waited for before and after, so launches count
    cuda-events    device time between two events, with every call queued before the first event
                   comes to pass, so gaps between launches do not count (cuda_clocks.py)
    cuda-graph     the same over one replay of a graph of all calls: no launches at all

Hot, a call finds in the caches what its last turn left there. Cold, the caches hold nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import repeat
from time import perf_counter
from typing import Any, Protocol

import torch

from sbnbench.caches import Sweep
from sbnbench.model import LatencyOptions

Call = Callable[[], object]


class Clock(Protocol):
    """Times calls; a fake one in tests makes the whole engine deterministic."""

    name: str
    resolution: float
    """Smallest step of the clock together with its own cost, in seconds."""
    single: bool
    """A sample is one call, because a second one would find the caches warm."""

    def time(self, call: Call, loops: int) -> float:
        """Seconds a call, over `loops` calls in a row."""
        ...

    def sets(self, size: int) -> int:
        """Sets of buffers, of `size` bytes each, that calls must go round to find caches cold."""
        ...

    def remark(self, call: Call) -> str:
        """What a reader must know of how this call was timed."""
        ...


class PerfCounter:
    """Wall clock of the host, from an idle device to an idle device."""

    name = "perf_counter"
    resolution = 1e-7

    def __init__(self, device: str = "cpu", sweep: Callable[[], None] | None = None) -> None:
        self._wait = _wait_for(device)
        self._sweep = sweep
        self.single = sweep is not None

    def time(self, call: Call, loops: int) -> float:
        if self._sweep:
            self._sweep()
        rounds = repeat(None, loops)  # the cheapest loop Python has: a few ns a turn
        self._wait()
        start = perf_counter()
        for _ in rounds:
            call()
        self._wait()
        return (perf_counter() - start) / loops

    def sets(self, size: int) -> int:
        return 1

    def remark(self, call: Call) -> str:
        return ""


def clock_for(device: str, options: LatencyOptions = LatencyOptions()) -> Clock:  # noqa: B008
    """The clock that the options ask for; `auto` is perf_counter on a CPU, events on a GPU."""
    cuda = device.startswith("cuda")
    kind = options.clock
    if kind == "auto":
        kind = "cuda-events" if cuda else "perf_counter"
    cold = options.cache == "cold"
    if kind == "perf_counter":
        return PerfCounter(device, Sweep(device) if cold else None)
    from sbnbench import cuda_clocks

    if kind == "cuda-events":
        return cuda_clocks.Events(device, Sweep(device) if cold else None)
    return cuda_clocks.Graphs(device, cold)


def settle(clock: Clock, calls: Iterable[Call], device: str) -> tuple[Clock, str]:
    """A clock that can time all of these calls, and why it is not the one asked for.

    A call that cannot be captured in a graph has the whole group timed by events: a ratio of times
    of two clocks would compare the clocks.
    """
    from sbnbench import cuda_clocks

    if not isinstance(clock, cuda_clocks.Graphs):
        return clock, ""
    for call in calls:
        if problem := clock.problem(call):
            sweep: Any = Sweep(device) if clock.cold else None
            return cuda_clocks.Events(device, sweep), f"no CUDA graph could be captured: {problem}"
    return clock, ""


def _wait_for(device: str) -> Callable[[], object]:
    if device.startswith("cuda"):
        return lambda: torch.cuda.synchronize(torch.device(device))
    return lambda: None
