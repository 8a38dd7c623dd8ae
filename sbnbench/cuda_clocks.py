"""Device time, between CUDA events. Calls are queued ahead: the device is kept busy until the host
has launched everything, so that no gap between two launches is counted. (Gaps of a few µs have
been read as a regression of 30 %, triton #6066.)

What keeps it busy is a kernel that waits, of a length that is looked at every time: when the first
event has come to pass before the last call was launched, the wait is doubled and the sample taken
again. A long `zero_()` before each call does the same by accident, for as many launches as happen
to fit, and fills the caches with lines that the next call must write back (triton #404).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sbnbench.caches import cache_bytes

Call = Callable[[], object]

WAIT_CYCLES = 1 << 17
"""First length of the waiting kernel: some 80 µs at 1.6 GHz, a dozen launches."""
MOST_CYCLES = 1 << 24
"""Longest: some 10 ms. What cannot be queued ahead in that time waits for the device itself, or is
longer than the launch queue (about a thousand launches); it is timed with its gaps, and says so."""
WARM_UP = 3
"""Calls before a capture: allocations and autotuning must be over."""


class Events:
    """Time on the device between two events."""

    name = "cuda_events"
    resolution = 5e-7  # the documented resolution of cudaEventElapsedTime

    def __init__(self, device: str, sweep: Callable[[], None] | None = None) -> None:
        self.device = torch.device(device)
        self.single = sweep is not None
        self._sweep = sweep
        self._cycles = WAIT_CYCLES
        self._gapped: dict[int, Call] = {}

    def time(self, call: Call, loops: int) -> float:
        def queue() -> None:
            for _ in range(loops):
                call()

        return self._between(queue, call) / loops

    def sets(self, size: int) -> int:
        return 1

    def remark(self, call: Call) -> str:
        if id(call) not in self._gapped:
            return ""
        return "launches could not be queued ahead of the device: gaps between them count"

    def _between(self, queue: Callable[[], None], call: Call) -> float:
        """Seconds that the device takes for what `queue` launches on behalf of `call`."""
        while True:
            start, end = (_event() for _ in range(2))
            torch.cuda.synchronize(self.device)
            with torch.cuda.device(self.device):
                if self._sweep:
                    self._sweep()
                _sleep(self._cycles)
                start.record()
                queue()
                ahead = not start.query()
                end.record()
            end.synchronize()
            if not ahead and self._cycles >= MOST_CYCLES:
                self._gapped[id(call)] = call
                self._cycles = WAIT_CYCLES
            if ahead or id(call) in self._gapped:
                return float(start.elapsed_time(end)) / 1000
            self._cycles *= 2


class Graphs(Events):
    """Time of one replay of a graph that holds all the calls of a sample.

    Cold, the calls in a graph go round so many sets of buffers that each finds its own long gone
    from the caches. What a call decides on the host, such as where to sample, is decided when it is
    captured.
    """

    name = "cuda_graph"

    def __init__(self, device: str, cold: bool) -> None:
        super().__init__(device)
        self.cold = cold
        self._graphs: dict[int, tuple[int, Call, Any]] = {}

    def time(self, call: Call, loops: int) -> float:
        held = self._graphs.get(id(call))
        if held is None or held[0] != loops:
            self._graphs.pop(id(call), None)  # its memory first
            self._graphs[id(call)] = loops, call, self._capture(call, loops)
        return self._between(self._graphs[id(call)][2].replay, call) / loops

    def sets(self, size: int) -> int:
        if not self.cold:
            return 1
        wanted = 2 * cache_bytes(str(self.device)) / max(1, size)
        return 1 << max(0, int(wanted)).bit_length()

    def problem(self, call: Call) -> str:
        """Why a call cannot be captured; empty where it can."""
        try:
            self._capture(call, 1)
        except Exception as error:  # capture fails in as many ways as there are calls
            return " ".join(str(error).split())[:200] or type(error).__name__
        return ""

    def _capture(self, call: Call, loops: int) -> Any:
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                call()
        torch.cuda.current_stream(self.device).wait_stream(side)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(loops):
                call()
        graph.replay()  # the first replay uploads it
        return graph


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _sleep(cycles: int) -> None:
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
