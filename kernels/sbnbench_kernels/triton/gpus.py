"""GPUs as tables: what fits on a multiprocessor, and how long moving bytes takes. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from sbnbench.errors import UnknownName
from sbnbench_kernels.traffic import Traffic


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one multiprocessor. CUDA C++ Programming Guide, Technical Specifications per
    Compute Capability; shared memory in bytes, with the system's share a block."""

    warps: int
    blocks: int
    shared: int
    registers: int = 65536
    register_unit: int = 256
    """Registers are given to a warp in multiples of this."""
    shared_unit: int = 128
    shared_reserved: int = 1024


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(warps=64, blocks=32, shared=164 * 1024),
    "sm_86": Multiprocessor(warps=48, blocks=16, shared=100 * 1024),
    "sm_89": Multiprocessor(warps=48, blocks=24, shared=100 * 1024),
    "sm_90": Multiprocessor(warps=64, blocks=32, shared=228 * 1024),
    "sm_100": Multiprocessor(warps=64, blocks=32, shared=228 * 1024),
}


@dataclass(frozen=True)
class Gpu:
    """A model: architecture, multiprocessors, DRAM bandwidth in B/s and float32 operations/s
    (without tensor cores), from NVIDIA's data sheets of the model named."""

    name: str
    arch: str
    multiprocessors: int
    bandwidth: float
    float32: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a10", "sm_86", 72, 600e9, 31.2e12),
        Gpu("a100-40gb", "sm_80", 108, 1555e9, 19.5e12),
        Gpu("a100-80gb", "sm_80", 108, 2039e9, 19.5e12),
        Gpu("l4", "sm_89", 58, 300e9, 30.3e12),
        Gpu("l40s", "sm_89", 142, 864e9, 91.6e12),
        Gpu("h100-pcie", "sm_90", 114, 2.0e12, 51e12),
        Gpu("h100-sxm", "sm_90", 132, 3.35e12, 67e12),
        Gpu("h200", "sm_90", 132, 4.8e12, 67e12),
        Gpu("b200", "sm_100", 148, 8.0e12, 75e12),
    )
}
"""SXM modules where nothing else is said."""


@dataclass(frozen=True)
class Occupancy:
    """Programs of a kernel that share a multiprocessor, and what stops one more."""

    programs: int
    warps: int
    share: float
    """Of the warps that a multiprocessor can hold."""
    limit: str


def occupancy(arch: str, registers: int, shared: int, num_warps: int) -> Occupancy:
    """From registers a thread, shared memory a program in bytes, and warps a program."""
    if arch not in MULTIPROCESSORS:
        raise UnknownName("architecture", arch, MULTIPROCESSORS)
    m = MULTIPROCESSORS[arch]
    of_warp = _up(max(registers, 1) * 32, m.register_unit)
    of_program = _up(shared + m.shared_reserved, m.shared_unit)
    fits = {
        "warps": m.warps // num_warps,
        "programs": m.blocks,
        "registers": m.registers // of_warp // num_warps,
        "shared memory": m.shared // of_program,
    }
    programs = min(fits.values())
    limit = next(name for name, count in fits.items() if count == programs)
    return Occupancy(programs, programs * num_warps, programs * num_warps / m.warps, limit)


def predicted_seconds(traffic: Traffic, gpu: Gpu) -> float:
    """The roofline: the longer of moving the bytes and making the operations. A lower bound, to
    which launches come on top; with values in a cache even that may be undercut."""
    return max(traffic.moved / gpu.bandwidth, traffic.flops / gpu.float32)


SHORT = {"a100": "a100-80gb", "h100": "h100-sxm"}
"""What people say, and the model that is meant."""


def find_gpu(name: str) -> Gpu:
    """By name; UnknownName with suggestions."""
    name = SHORT.get(name, name)
    if name not in GPUS:
        raise UnknownName("GPU", name, GPUS)
    return GPUS[name]


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
