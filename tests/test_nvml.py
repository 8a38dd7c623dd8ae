"""NVML against a made-up library: what it says, what it refuses, and a GPU that is gone."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from sbnbench import nvml
from sbnbench.nvml import Gpu, Watch


class Refused(Exception):
    pass


class Library(ModuleType):
    """pynvml with one GPU. Names in `refuses` raise; `bits` are the reasons of the clocks."""

    NVMLError = Refused
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.refuses: dict[str, str] = {}
        self.bits = 0
        self.asked: list[Any] = []
        answers: dict[str, Any] = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: 1,
            "nvmlDeviceGetHandleByIndex": lambda index: f"handle {index}",
            "nvmlDeviceGetHandleByUUID": lambda uuid: f"handle of {uuid}",
            "nvmlDeviceGetName": lambda handle: b"NVIDIA Model",
            "nvmlDeviceGetMemoryInfo": lambda handle: type("Info", (), {"total": 1 << 30}),
            "nvmlSystemGetDriverVersion": lambda: "570.1",
            "nvmlDeviceGetClockInfo": lambda handle, kind: {1: 1980, 2: 2619}[kind],
            "nvmlDeviceGetPowerUsage": lambda handle: 421_500,
            "nvmlDeviceGetTemperature": lambda handle, kind: 61,
            "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: self.bits,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: self.bits,
            "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 12_345,
        }
        for name, answer in answers.items():
            setattr(self, name, self._guarded(name, answer))

    def _guarded(self, name: str, answer: Any) -> Any:
        def ask(*arguments: Any) -> Any:
            self.asked.append((name, *arguments))
            if name in self.refuses:
                raise Refused(self.refuses[name])
            return answer(*arguments)

        return ask


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Library()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    nvml.gpus.cache_clear()
    yield made
    nvml.gpus.cache_clear()


def opened(index: int = 0, uuid: str = "") -> Gpu:
    found, why = nvml.gpu(index, uuid)
    assert found is not None, why
    return found


def test_state_in_plain_units(library: Library) -> None:
    assert opened().state() == {
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 2619,
        "power_w": 421.5,
        "temperature_c": 61,
    }
    assert opened().joules() == 12.345


def test_a_gpu_is_found_by_its_uuid(library: Library) -> None:
    opened(3, "abc")
    assert ("nvmlDeviceGetHandleByUUID", "GPU-abc") in library.asked
    opened(3, "MIG-abc")
    assert ("nvmlDeviceGetHandleByUUID", "MIG-abc") in library.asked
    opened(3)
    assert ("nvmlDeviceGetHandleByIndex", 3) in library.asked


@pytest.mark.parametrize("reason", ["Not Supported", "Insufficient Permissions", "GPU is lost"])
def test_what_is_refused_is_missing_with_its_reason(library: Library, reason: str) -> None:
    library.refuses = {"nvmlDeviceGetPowerUsage": reason}
    state = opened().state()
    assert "power_w" not in state
    assert state["missing"] == {"power_w": reason}
    assert state["sm_clock_mhz"] == 1980


def test_a_gpu_that_is_lost_raises_nothing(library: Library) -> None:
    found = opened()
    watch = Watch(found)
    library.refuses = {name: "GPU is lost" for name in vars(library) if name.startswith("nvmlD")}
    watch.round()
    facts = watch.facts()
    assert facts["before"]["sm_clock_mhz"] == 1980
    assert set(facts["after"]) == {"missing"}
    assert facts["throttled"] == {}
    assert found.joules() is None


def test_rounds_are_labelled_with_what_held_the_clocks_down(library: Library) -> None:
    watch = Watch(opened())
    for bits in (0, 0x004, 0x004 | 0x040, 0x001 | 0x002 | 0x010 | 0x100):
        library.bits = bits
        watch.round()
    assert watch.facts()["throttled"] == {"power cap": [1, 2], "temperature (hardware)": [2]}


def test_an_older_driver_knows_the_reasons_by_their_older_name(library: Library) -> None:
    library.refuses = {"nvmlDeviceGetCurrentClocksEventReasons": "Function Not Found"}
    library.bits = 0x008
    assert opened().throttled() == ("hardware slowdown",)
    del library.nvmlDeviceGetCurrentClocksEventReasons
    assert opened().throttled() == ("hardware slowdown",)


def test_no_gpu_to_watch_is_no_facts() -> None:
    watch = Watch(None)
    watch.round()
    assert watch.facts() == {}


def test_the_list_of_gpus(library: Library) -> None:
    assert nvml.gpus() == (
        [{"index": 0, "name": "NVIDIA Model", "memory_bytes": 1 << 30, "driver": "570.1"}],
        "",
    )


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        ({"nvmlInit": "Driver Not Loaded"}, "NVML: Driver Not Loaded"),
        ({"nvmlDeviceGetCount": "GPU is lost"}, "NVML: GPU is lost"),
        ({"nvmlDeviceGetName": "Unknown Error"}, "NVML: Unknown Error"),
    ],
)
def test_no_gpus_and_why(library: Library, refused: dict[str, str], why: str) -> None:
    library.refuses = refused
    assert nvml.gpus() == ([], why)


def test_a_handle_that_is_refused(library: Library) -> None:
    library.refuses = {"nvmlDeviceGetHandleByIndex": "No Permission"}
    assert nvml.gpu(0) == (None, "NVML: No Permission")


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    nvml.gpus.cache_clear()
    assert nvml.gpus() == ([], "nvidia-ml-py is not installed")
    nvml.gpus.cache_clear()
