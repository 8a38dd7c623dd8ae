"""Fixtures for all tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from sbnbench import cli


class Finished(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def sbnbench(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Finished]:
    """Runs the command line in this process: exit code, output, errors."""

    def call(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["sbnbench", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return Finished(int(end.value.code or 0), captured.out, captured.err)

    return call


LAUNCH = 5e-6
"""Seconds that the host needs for a launch."""
GHZ = 1.6e9


class FakeCuda:
    """A GPU made of numbers: a queue of work in order, on a clock that only work and waits move.

    `host` is the host's time, `free` the time at which the device has done all it was given."""

    def __init__(self) -> None:
        self.host = self.free = 0.0
        self.capturing: list[float] | None = None
        self.replays = 0
        self.captures = 0
        self.allocated = self.peak = 0
        self.log: list[str] = []

    def launch(self, seconds: float, name: str = "kernel") -> None:
        """A kernel of so many seconds."""
        if self.capturing is not None:
            self.capturing.append(seconds)
            return
        self.log.append(name)
        self.host += LAUNCH
        self.free = max(self.free, self.host) + seconds

    def kernel(self, seconds: float) -> Callable[[], None]:
        return lambda: self.launch(seconds)

    def synchronize(self, device: object = None) -> None:
        if self.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.host = max(self.host, self.free)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch  # most tests do without

        fake = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = max(fake.free, fake.host)
                fake.free = self.at

            def query(self) -> bool:
                return fake.host >= self.at

            def synchronize(self) -> None:
                fake.host = max(fake.host, self.at)

            def elapsed_time(self, end: Event) -> float:
                return (end.at - self.at) * 1000

        class Graph:
            work: list[float]

            def replay(self) -> None:
                fake.replays += 1
                fake.launch(sum(self.work), "replay")

        @contextmanager
        def graph(captured: Graph) -> Iterator[None]:
            fake.captures += 1
            fake.capturing = captured.work = []
            try:
                yield
            finally:
                fake.capturing = None

        @contextmanager
        def nothing(*_: object) -> Iterator[None]:
            yield

        stream = SimpleNamespace(wait_stream=lambda other: None)
        replaced: dict[str, Any] = {
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": graph,
            "device": nothing,
            "stream": nothing,
            "Stream": lambda device: stream,
            "current_stream": lambda device: stream,
            "synchronize": self.synchronize,
            "_sleep": lambda cycles: self.launch(cycles / GHZ, "wait"),
            "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=1 << 20),
            "memory_allocated": lambda device: self.allocated,
            "max_memory_allocated": lambda device: self.peak,
            "reset_peak_memory_stats": self._reset,
        }
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def _reset(self, device: object) -> None:
        self.peak = self.allocated


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake
