"""The child process that runs blocks: `python -m sbnbench.worker`.

It imports torch once and forks a fresh process for every task, so each task has an address space
of its own (placement in memory biases a contender by per cents) at the price of milliseconds
instead of a second of imports. It never computes anything itself: a process that has started
OpenMP threads or CUDA must not be forked. Where there is no fork, it serves one task and ends.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, BinaryIO

import msgspec

from sbnbench.messages import Ended, Failed, Ready, Spawned, Task
from sbnbench.task import Send, prepare, run_block

NEEDED = (
    "torch.fx.experimental.symbolic_shapes",  # a quarter of a second in every first autograd.grad
    "sbnbench.measure.error",
    "sbnbench.measure.latency",
    "sbnbench.measure.memory",
    "sbnbench.verify",
    "sbnbench_kernels.aten.batch",
    "sbnbench_kernels.aten.grouped",
    "sbnbench_kernels.eager.grouped",
    "sbnbench_kernels.eager.sampled",
)
"""What nearly every task imports. Of plug-ins nothing: what they do is each task's own risk."""


def main() -> int:
    """Serve tasks from standard input until it closes."""
    # Standard output is the channel: what libraries print goes to standard error instead.
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    send = sender(channel)
    die_with_parent()
    send(Ready(import_everything()))
    # What is imported stays: no task need look through it for garbage.
    gc.collect()
    gc.freeze()
    decoder = msgspec.json.Decoder(Task)
    for line in sys.stdin.buffer:
        task = decoder.decode(line)
        if not hasattr(os, "fork"):
            send(Spawned(os.getpid()))
            send(Ended(run(task, send)))
            return 0
        if task.sources:
            name_cache(task.sources)
        if task.block and any(c.backend == "inductor" for c in task.block.contenders):
            get_compiler_ready()
        pid = os.fork()
        if pid == 0:
            die_with_parent()
            os._exit(run(task, send))
        send(Spawned(pid))
        _, status = os.waitpid(pid, 0)
        send(Ended(os.waitstatus_to_exitcode(status)))
    return 0


def die_with_parent() -> None:
    """Have the kernel end this process when its parent is killed (Linux): an orphan that goes on
    computing would disturb whatever is measured next."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def sender(channel: BinaryIO) -> Send:
    return lambda event: (channel.write(msgspec.json.encode(event) + b"\n"), None)[1]


def import_everything() -> dict[str, Any]:
    """Import what a task needs, and say what torch knows of itself."""
    import torch

    for module in NEEDED:
        import_module(module)
    return {
        "torch": {
            "version": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "mkldnn": torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
            "cuda": torch.version.cuda,
        },
        "allocator": os.environ.get("GLIBC_TUNABLES", "") or "defaults",
    }


def run(task: Task, send: Send) -> int:
    """Run one task in this process: 0, or 1 where the task itself could not be run."""
    try:
        if task.block is None:
            prepare(task, send)
        else:
            run_block(task, send)
    except Exception as error:
        from sbnbench.failures import classify

        traceback.print_exc(file=sys.stderr)
        status, reason = classify(error)
        send(Failed(reason, status))
        return 1
    return 0


def name_cache(sources: Sequence[str]) -> None:
    """Hash what activations are made of, once for all tasks; who needs it says what is missing."""
    from sbnbench import activations
    from sbnbench.layers import layer_of

    with suppress(Exception):
        for layer in filter(None, map(layer_of, sources)):
            activations.folder(layer)


@cache
def get_compiler_ready() -> None:
    """What Inductor does once in a process, once for all tasks; who needs it says what fails."""
    from sbnbench_kernels.inductor.compiled import get_ready

    with suppress(Exception):
        get_ready()
    gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
