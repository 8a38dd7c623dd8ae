"""The caches of a device: how much they hold, and how to push everything out of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from sbnbench.environment import usable_cores

CPU_FALLBACK = 64 << 20
"""Bytes assumed where the system does not say: more than most last-level caches hold."""

_SYSTEM = Path("/sys/devices/system/cpu")
_UNIT = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Sweep:
    """Reads twice what the caches hold, so that nothing else is left in them.

    It reads rather than writes: caches full of written lines make the next call pay for writing
    them back. On a CPU torch's threads share the buffer, so the caches of every core are swept.
    """

    def __init__(self, device: str) -> None:
        self._buffer = torch.ones(2 * cache_bytes(device) // 4, device=device)

    def __call__(self) -> None:
        self._buffer.sum()


def cache_bytes(device: str) -> int:
    """What the caches that outlive a call hold: a GPU's L2, all L2 and L3 caches of the cores that
    may be used."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(torch.device(device)).L2_cache_size)
    return cpu_cache_bytes()


@cache
def cpu_cache_bytes(system: Path = _SYSTEM) -> int:
    """L2 and L3 of the first `usable_cores()` CPUs as Linux tells, each shared cache once."""
    found: dict[tuple[str, str], int] = {}
    for number in range(usable_cores()):
        for folder in (system / f"cpu{number}" / "cache").glob("index*"):
            try:
                level, shared, size = (
                    (folder / name).read_text().strip()
                    for name in ("level", "shared_cpu_list", "size")
                )
            except OSError:
                continue
            if int(level) >= 2:
                found[level, shared] = int(size.rstrip("KMG")) * _UNIT.get(size[-1], 1)
    return sum(found.values()) or CPU_FALLBACK
