"""What a Triton contender will cost before one owns the GPU: its launches, compiled and counted.

Nothing is run and no GPU is needed. The predicted time is the roofline at the GPU's data-sheet
bandwidth, or at a measured one: a lower bound, to which launches come on top.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sbnbench.errors import UsageError
from sbnbench.model import Contender
from sbnbench.registry import build, normalizers


class KernelCost(msgspec.Struct, frozen=True):
    """One launch, as built for one architecture. Bytes a program (shared) or a thread (local)."""

    kernel: str
    direction: str
    programs: int
    warps: int
    registers: int
    spills: int
    local_bytes: int
    shared_bytes: int
    occupancy: float
    limited_by: str
    load_bits: int
    store_bits: int


class Cost(msgspec.Struct, frozen=True):
    """Bytes, operations and the predicted time of one direction."""

    direction: str
    launches: int
    bytes_read: float
    bytes_written: float
    flops: float
    seconds: float | None


class Costs(msgspec.Struct, frozen=True):
    """All of a contender on a workload."""

    contender: str
    shape: tuple[int, ...]
    dtype: str
    format: str
    arch: str
    gpu: str
    kernels: tuple[KernelCost, ...]
    totals: tuple[Cost, ...]


def collect(
    contender: Contender,
    shape: tuple[int, ...],
    dtype: str,
    form: str,
    arch: str,
    gpu: str,
    bandwidth: float | None,
) -> Costs:
    """The costs of one contender on an input (N, C, *spatial), virtual rows added.

    `arch` may be empty where `gpu` names a model, whose architecture it then is. `bandwidth` in
    B/s, as measured, takes the place of the data sheet's.
    """
    from sbnbench_kernels.traffic import traffic
    from sbnbench_kernels.triton import gpus, missing

    if reason := missing():
        raise UsageError(f"the kernels cannot be compiled here: {reason}")
    from sbnbench_kernels.triton import cases, static
    from sbnbench_kernels.triton.budget import cache_folder

    model = gpus.find_gpu(gpu) if gpu else None
    arch = arch or (model.arch if model else "sm_90")
    if model and model.arch != arch:
        raise UsageError(f"--gpu {gpu} is {model.arch}, --arch says {arch}")
    gpus.occupancy(arch, 1, 0, 1)  # refuses an unknown architecture before anything is compiled
    params = normalizers()[contender.normalizer].resolve(dict(contender.params))
    virtual = params.get("num_virtual", 0)
    whole = (shape[0] + int(virtual), *shape[1:])
    op: Any = build(contender)
    kernels: list[KernelCost] = []
    totals: list[Cost] = []
    for direction in ("fwd", "bwd"):
        launches = cases.record(op, whole, dtype, form, direction)
        for launch in launches:
            r = static.report(static.source_of(launch), arch, cache_folder())
            o = gpus.occupancy(arch, r.registers, r.shared, r.num_warps)
            kernels.append(
                KernelCost(
                    cases.variant(launch),
                    direction,
                    launch.programs,
                    r.num_warps,
                    r.registers,
                    r.spills,
                    r.local,
                    r.shared,
                    o.share,
                    o.limit,
                    r.widest_load,
                    r.widest_store,
                )
            )
        moved = traffic(
            contender.normalizer, params, whole, dtype, direction, form=form, device="cuda"
        )
        seconds = None
        if bandwidth is not None:
            seconds = moved.moved / bandwidth
        elif model is not None:
            seconds = gpus.predicted_seconds(moved, model)
        totals.append(
            Cost(direction, len(launches), moved.read, moved.written, moved.flops, seconds)
        )
    name = gpu or ("a measured bandwidth" if bandwidth else "")
    return Costs(contender.id, whole, dtype, form, arch, name, tuple(kernels), tuple(totals))


def triton_contenders() -> list[Contender]:
    """Every normalizer that has a Triton backend, at its defaults."""
    return [Contender(n.name, "triton") for n in normalizers().values() if "triton" in n.backends]
