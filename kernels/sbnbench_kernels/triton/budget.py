"""What every kernel may use, as recorded, and the comparison with what it uses.

The file is written by `python -m sbnbench_kernels.triton.budget`, after a change that is meant to
change it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import triton
from sbnbench_kernels.triton import cases, static
from sbnbench_kernels.triton.static import KernelReport

FILE = Path(__file__).with_name("budget.json")

SLACK_REGISTERS = 16
"""Registers that another version of the compiler may need more."""
SLACK_SHARED = 1024
"""Bytes of shared memory, likewise."""

Entry = tuple[str, str, str, str]
"""Variant, dtype, format, architecture."""


def cache_folder() -> Path:
    """Where reports are kept, by content."""
    return Path(tempfile.gettempdir()) / "sbnbench-kernel-reports"


def compile_kernel(
    name: str,
    arch: str,
    dtype: str = "bfloat16",
    format: str = "contiguous",  # noqa: A002
) -> KernelReport:
    """The report of one kernel's variant; `cases.kernels` lists their names."""
    launch = cases.kernels(dtype, format)[name]
    return static.report(static.source_of(launch), arch, cache_folder())


def _compile(entry: Entry) -> KernelReport:
    name, dtype, format, arch = entry  # noqa: A001
    return compile_kernel(name, arch, dtype, format)


def entries(architectures: Iterable[str] = static.ARCHITECTURES) -> list[Entry]:
    """All that is built."""
    rows = [(name, dtype, format) for name, dtype, format, _ in cases.matrix()]  # noqa: A001
    return [(*row, arch) for row in rows for arch in architectures]


def reports(wanted: list[Entry], processes: int = 2) -> dict[Entry, KernelReport]:
    """Builds what is not in the cache, in as many processes."""
    if processes == 1:
        return {entry: _compile(entry) for entry in wanted}
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return dict(zip(wanted, pool.map(_compile, wanted, chunksize=8), strict=True))


def width(report: KernelReport) -> tuple[int, int, int]:
    """Bits of the widest load, and of the widest and the narrowest store."""
    return report.widest_load, report.widest_store, min(report.stores, default=0)


def problems(entry: Entry, report: KernelReport, budget: dict[str, list[int]]) -> list[str]:
    """What is wrong with a build: spills, local memory, narrow accesses, more than the budget."""
    name = entry[0]
    found = []
    if report.spills or report.local:
        found.append(f"{report.spills} accesses to {report.local} bytes of local memory")
    load, store, narrowest = width(report)
    kernel = name.split(":")[0]
    if kernel in cases.ELEMENTWISE and (load < 128 or narrowest < 128):
        found.append(f"loads of {load} bits, stores of {narrowest} to {store}")
    key = "/".join(entry)
    if key not in budget:
        return [*found, "no budget"]
    registers, shared, *_ = budget[key]
    if report.registers > registers + SLACK_REGISTERS:
        found.append(f"{report.registers} registers, the budget is {registers}")
    if report.shared > shared + SLACK_SHARED:
        found.append(f"{report.shared} bytes of shared memory, the budget is {shared}")
    return found


def load() -> dict[str, list[int]]:
    """Entry to registers, shared memory, warps, bits of the widest load and store."""
    budget: dict[str, list[int]] = json.loads(FILE.read_text())["kernels"]
    return budget


def main() -> None:
    """Writes the budget file."""
    rows = {
        "/".join(entry): [r.registers, r.shared, r.num_warps, r.widest_load, r.widest_store]
        for entry, r in sorted(reports(entries()).items())
    }
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
    FILE.write_text(
        f'{{"triton": "{triton.__version__}",\n"fields": ["registers a thread", '
        '"shared bytes a program", "warps", "bits of the widest load", "of the widest store"],\n'
        f'"kernels": {{\n{lines}\n}}}}\n'
    )


if __name__ == "__main__":
    main()
