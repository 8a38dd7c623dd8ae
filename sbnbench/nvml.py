"""What the driver says of a GPU: clocks, power, temperature, throttling, energy. No torch, no CUDA.

A GPU that withholds something (NotSupported, no permission, lost from the bus) withholds that
alone: the value is missing, its reason is kept, and nothing raises.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

REASONS = {
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x020: "temperature (software)",
    0x040: "temperature (hardware)",
    0x080: "power brake",
}
"""The bits of nvmlClocksEventReasons that slow a busy GPU down. Idleness, set clocks, sync boost
and the display's needs are not among them: they are how the GPU was set up."""

_ASKS_REASONS = (
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",  # its name in older drivers
)


class Gpu:
    """One GPU, by an NVML handle."""

    def __init__(self, handle: Any, pynvml: Any) -> None:
        self._handle = handle
        self._nvml = pynvml

    def state(self) -> dict[str, Any]:
        """Clocks (MHz), power (W), temperature (°C) now; `missing` has the reasons of the rest."""
        nvml, missing = self._nvml, {}
        asked: dict[str, Callable[[], float]] = {
            "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(
                self._handle, nvml.NVML_CLOCK_MEM
            ),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000,
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(
                self._handle, nvml.NVML_TEMPERATURE_GPU
            ),
        }
        found: dict[str, Any] = {}
        for name, ask in asked.items():
            try:
                found[name] = ask()
            except nvml.NVMLError as error:
                missing[name] = str(error)
        if missing:
            found["missing"] = missing
        return found

    def throttled(self) -> tuple[str, ...]:
        """Why the clocks are held down at this moment; empty also where the driver does not say."""
        for name in _ASKS_REASONS:
            try:
                bits = getattr(self._nvml, name)(self._handle)
            except (AttributeError, self._nvml.NVMLError):
                continue
            return tuple(reason for bit, reason in REASONS.items() if bits & bit)
        return ()

    def joules(self) -> float | None:
        """Energy since the driver was loaded, or None. It moves some ten times a second."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        except self._nvml.NVMLError:
            return None


class Watch:
    """Looks at a GPU before, between and after rounds. Without a GPU it sees nothing."""

    def __init__(self, watched: Gpu | None) -> None:
        self._gpu = watched
        self._before = watched.state() if watched else {}
        self._rounds = 0
        self._throttled: dict[str, list[int]] = {}

    def round(self) -> None:
        """Call after each round: labels it where the clocks are held down."""
        for reason in self._gpu.throttled() if self._gpu else ():
            self._throttled.setdefault(reason, []).append(self._rounds)
        self._rounds += 1

    def facts(self) -> dict[str, Any]:
        """States before and after, and the rounds (from 0) that were held down, by reason."""
        if self._gpu is None:
            return {}
        return {"before": self._before, "after": self._gpu.state(), "throttled": self._throttled}


def gpu(index: int, uuid: str = "") -> tuple[Gpu | None, str]:
    """A GPU by its UUID, or else by its index; None, and why, where NVML has none to give.

    CUDA_VISIBLE_DEVICES renumbers CUDA's devices and not NVML's: the UUID tells which is which.
    """
    pynvml, why = _library()
    if pynvml is None:
        return None, why
    try:
        if uuid:
            name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
            return Gpu(pynvml.nvmlDeviceGetHandleByUUID(name), pynvml), ""
        return Gpu(pynvml.nvmlDeviceGetHandleByIndex(index), pynvml), ""
    except pynvml.NVMLError as error:
        return None, f"NVML: {error}"


@cache
def gpus() -> tuple[list[dict[str, Any]], str]:
    """The NVIDIA GPUs, or none and why."""
    pynvml, why = _library()
    if pynvml is None:
        return [], why
    found = []
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            found.append(
                {
                    "index": index,
                    "name": _text(pynvml.nvmlDeviceGetName(handle)),
                    "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                    "driver": _text(pynvml.nvmlSystemGetDriverVersion()),
                }
            )
    except pynvml.NVMLError as error:
        return found, f"NVML: {error}"
    return found, "" if found else "NVML finds no GPU"


def _library() -> tuple[Any, str]:
    try:
        import pynvml
    except ImportError:
        return None, "nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()  # counts its callers; nothing happens the second time
    except pynvml.NVMLError as error:
        return None, f"NVML: {error}"
    return pynvml, ""


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
