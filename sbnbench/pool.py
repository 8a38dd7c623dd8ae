"""The worker of `worker.py` as seen from the parent: start, ask, time out, replace."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import IO

import msgspec

from sbnbench.errors import SbnbenchError
from sbnbench.messages import Ended, Enough, Event, Ready, Spawned, Task, Turn

QUIET = {"KINETO_LOG_LEVEL": "99"}
"""The profiler that counts memory would announce every start."""
ONE_COMPILER = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
"""One compile process each, and no pool that a fork would tear apart."""
KEPT_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=0x7fffffffffffffff:"
    "glibc.malloc.tcache_count=0"
}
"""glibc keeps what is freed and finds it again, as PyTorch's allocator does on a GPU. By its
defaults a tensor above 32 MB is mapped anew each time and the kernel clears its pages inside the
timed call, which takes longer than most normalizers (docs/decisions/0014)."""
START_SECONDS = 120.0
"""Importing torch from a cold disk takes up to a minute."""


class WorkerTimeout(SbnbenchError):
    """A task took longer than it may."""


class Worker:
    """One worker process; started when first asked, and anew after it died."""

    def __init__(self, log: Path, environment: dict[str, str] | None = None) -> None:
        self.log = log
        self.environment = environment or {}
        self.ready: Ready | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._child: int | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> Ready:
        """Start the process and wait until torch is imported there."""
        if self._process is not None and self._process.poll() is None and self.ready:
            return self.ready
        self.stop()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sbnbench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**QUIET, **KEPT_MEMORY, **os.environ, **ONE_COMPILER, **self.environment},
                # Ctrl-C is the parent's to handle
                start_new_session=True,
            )
        self._events = queue.SimpleQueue()
        assert self._process.stdout is not None
        threading.Thread(
            target=_read, args=(self._process.stdout, self._events), daemon=True
        ).start()
        event = self._next(START_SECONDS)
        if not isinstance(event, Ready):
            raise SbnbenchError(f"the worker did not start:\n{self.last_words()}")
        self.ready = event
        return event

    def ask(self, task: Task, timeout: float) -> Iterator[Event]:
        """What the worker says of a task, up to and with Ended.

        The process of the task is killed when it takes longer than `timeout` seconds, and
        WorkerTimeout raised. Where the worker itself dies, Ended carries its exit code.
        """
        self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(msgspec.json.encode(task) + b"\n")
            self._process.stdin.flush()
        end = monotonic() + timeout
        while True:
            event = self._next(end - monotonic())
            if event is None:
                code = self._process.wait()
                self.stop()
                yield Ended(code)
                return
            if isinstance(event, Spawned):
                self._child = event.pid
            yield event
            if isinstance(event, Ended):
                self._child = None
                return

    def tell(self, message: Turn | Enough) -> None:
        """Answer a task in turns, while its events are being read."""
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # Ended will say so
            self._process.stdin.write(msgspec.json.encode(message) + b"\n")
            self._process.stdin.flush()

    def _next(self, timeout: float) -> Event | None:
        try:
            return self._events.get(timeout=max(0.0, timeout))
        except queue.Empty:
            self.stop()
            raise WorkerTimeout("took longer than its --timeout and was stopped") from None

    def stop(self) -> None:
        """End the worker and whatever task it has."""
        if self._process is None:
            return
        for pid in filter(None, (self._child, self._process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process = self.ready = self._child = None

    def last_words(self, lines: int = 6) -> str:
        """The end of what the worker wrote to standard error."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.strip().splitlines()[-lines:])


def _read(pipe: IO[bytes], events: queue.SimpleQueue[Event | None]) -> None:
    decoder = msgspec.json.Decoder(Event)
    with contextlib.suppress(ValueError, OSError, msgspec.DecodeError):  # killed in mid-line
        for line in pipe:
            events.put(decoder.decode(line))
    events.put(None)
