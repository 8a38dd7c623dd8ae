"""Peak memory: the most bytes that a call holds at one time beyond those held before it.

Inputs, parameters and running statistics are there before and do not count; the output, what
forward saves for backward, and every temporary do. `bwd` runs on one forward's saved tensors, which
are there before it too; `fwd_bwd` contains them.

On a GPU, PyTorch's allocator counts. On a CPU its allocator tells the profiler of every allocation,
those inside an operator included; the peak is that of their running sum. What libraries allocate
past PyTorch is in neither.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd.profiler import profile

from sbnbench.bench import Bench
from sbnbench.model import Direction, Estimate


def measure_memory(bench: Bench, direction: Direction) -> dict[str, Estimate]:
    """`peak_memory` of a direction, in bytes; exact, so without an interval."""
    call = bench.call(direction)
    call()  # tables, workspaces and compiled code that stay are not a call's own
    device = bench.inputs.workload.device
    peak = _peak_cuda(call, device) if device.startswith("cuda") else _peak_cpu(call)
    return {"peak_memory": Estimate(peak, unit="B")}


def _peak_cuda(call: Callable[[], object], device: str) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    kept = call()
    torch.cuda.synchronize(device)
    del kept
    return int(torch.cuda.max_memory_allocated(device)) - before


def _peak_cpu(call: Callable[[], object]) -> int:
    with profile(profile_memory=True) as profiler:
        kept = call()
    del kept
    results = profiler.kineto_results
    assert results is not None
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda c: c[0]):
        held += change
        peak = max(peak, held)
    return peak
