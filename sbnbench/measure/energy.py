"""Energy of a call, from the counter of the whole GPU.

The counter moves some ten times a second, far too seldom for a sample. So the call is repeated from
one of its steps to another, a tenth of a second later or more: both ends are then known to within
one batch of calls. What else the GPU consumes meanwhile, idling included, is in the figure.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import torch

from sbnbench.nvml import Gpu

SECONDS = 0.1
"""Shortest time between the two steps of the counter: a batch of 0.4 ms at either end is 1 %."""
PATIENCE = 1.0
"""A counter that has not moved after so long does not count."""


def joules_a_call(
    gpu: Gpu | None,
    call: Callable[[], object],
    batch: int,
    device: str,
    now: Callable[[], float] = monotonic,
) -> float | None:
    """Joules a call, `batch` calls between two looks at the counter; None where nothing counts."""
    if gpu is None or gpu.joules() is None:
        return None

    def step(least: float) -> tuple[float, int] | None:
        """The counter's first step after `least` seconds, and the calls made until then."""
        begun, calls, before = now(), 0, gpu.joules()
        while True:
            for _ in range(batch):
                call()
            torch.cuda.synchronize(device)
            calls += batch
            found, gone = gpu.joules(), now() - begun
            if found is None or before is None or gone > least + PATIENCE:
                return None
            if found > before and gone >= least:
                return found, calls
            if gone < least:
                before = found

    start = step(0.0)
    end = step(SECONDS) if start else None
    if start is None or end is None:
        return None
    return (end[0] - start[0]) / end[1]
