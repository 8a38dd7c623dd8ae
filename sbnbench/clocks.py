"""How a call is timed. A clock times `loops` calls in a row and gives seconds a call."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from time import perf_counter
from typing import Protocol

import torch


class Clock(Protocol):
    """Times calls; a fake one in tests makes the whole engine deterministic."""

    name: str
    resolution: float
    """Smallest step of the clock together with its own cost, in seconds."""

    def time(self, call: Callable[[], object], loops: int) -> float:
        """Seconds a call, over `loops` calls in a row."""
        ...


class PerfCounter:
    """Wall clock of the host, for devices that run a call to its end before it returns."""

    name = "perf_counter"
    resolution = 1e-7

    def time(self, call: Callable[[], object], loops: int) -> float:
        rounds = repeat(None, loops)  # the cheapest loop Python has: a few ns a turn
        start = perf_counter()
        for _ in rounds:
            call()
        return (perf_counter() - start) / loops


class CudaEvents:
    """Time on the device between two events, the calls queued ahead of them."""

    name = "cuda_events"
    resolution = 5e-7  # the documented resolution of cudaEventElapsedTime

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def time(self, call: Callable[[], object], loops: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(self.device)
        start.record()
        for _ in range(loops):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000 / loops


def clock_for(device: str) -> Clock:
    """The clock that fits a device."""
    return CudaEvents(device) if device.startswith("cuda") else PerfCounter()
