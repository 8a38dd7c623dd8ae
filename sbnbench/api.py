"""The Python interface: the same path as the command line, for notebooks and scripts."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from sbnbench import duel, gate, kernel_costs, suites, trees
from sbnbench.blocks import DEFAULT_TIMEOUT
from sbnbench.errors import StoreError, UsageError
from sbnbench.execute import execute
from sbnbench.model import Block, Plan
from sbnbench.noise import Noise, Trial, examine
from sbnbench.observer import Observer
from sbnbench.plan import Filters, axis_values, input_of, make_plan, read_suite
from sbnbench.pool import Worker
from sbnbench.registry import parse_contender
from sbnbench.stopping import UntilClear
from sbnbench.store import Run, flat, load, write_atomically

__all__ = ["execute_plan", "export", "load", "plan", "run"]

execute_plan = execute


def run(
    suite: str,
    *,
    device: str = "",
    dtype: str = "",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    keyword: str = "",
    mode: Sequence[str] = (),
    axes: Mapping[str, Any] | None = None,
    latency: dict[str, str] | None = None,
    quick: bool = False,
    seed: int | None = None,
    out: str | os.PathLike[str] | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    observer: Observer | None = None,
) -> Run:
    """Run a suite by name or file and give the run.

    `only` and `skip` name contenders as on the command line; `axes` is e.g. {"batch": [1, 2]},
    `latency` e.g. {"clock": "cuda-graph", "cache": "cold"}.
    The run directory is `out`, or runs/SUITE-DATE. `run.to_pandas()` gives a data frame,
    `run.report()` writes the HTML report, and a notebook displays it.

    >>> found = sbnbench.run("micro-batch", device="cpu", only=["bn", "fs"])  # doctest: +SKIP
    """
    texts = {k: v if isinstance(v, str) else ",".join(map(str, v)) for k, v in (axes or {}).items()}
    texts |= {k: v for k, v in (("dtype", dtype), ("device", device)) if v}
    filters = Filters(
        texts, tuple(only), tuple(skip), keyword, tuple(mode), latency or {}, quick, seed
    )
    made = plan(suite, filters)
    path = Path(out) if out else default_path(suite)
    return execute(made, path, timeout=timeout, observer=observer)


def default_path(suite: str) -> Path:
    """runs/SUITE-DATE in the current folder."""
    return Path("runs") / f"{Path(suite).stem}-{datetime.now():%Y%m%d-%H%M%S}"


def plan(suite: str, filters: Filters) -> Plan:
    """The plan of a suite by name or file, filtered."""
    path = suites.find(suite)
    return make_plan(read_suite(path, filters.quick), filters, path.stem)


def gate_revision(
    suite: str,
    against: str,
    filters: Filters,
    threshold: float = 0.05,
    seconds: float = 20.0,
    timeout: float = DEFAULT_TIMEOUT,
    on_block: Callable[[Block, int, int], None] = lambda block, done, total: None,
) -> gate.Gate:
    """Every contender of a suite, as the working tree has it, against a git revision of it."""
    made = plan(suite, filters)
    rule = UntilClear.at(threshold, seconds)
    with (
        TemporaryDirectory(prefix="sbnbench-gate-") as logs,
        trees.side_by_side(against, Path.cwd()) as (new, old),
        Worker(Path(logs) / "new.log", new) as new_worker,
        Worker(Path(logs) / "old.log", old) as old_worker,
    ):
        return gate.against_revision(made, new_worker, old_worker, rule, against, timeout, on_block)


def gate_runs(
    new: str | os.PathLike[str],
    old: str | os.PathLike[str],
    threshold: float = 0.05,
    allow_mixed: bool = False,
) -> gate.Gate:
    """Two finished runs, by each contender's ratio to the baseline within its run."""
    return gate.against_run(load(new), load(old), threshold, allow_mixed)


def noise(
    contender: str = "bn@aten",
    source: str = "synthetic:64x28x28",
    batch: int = 32,
    trials: int = 10,
    threshold: float = 0.05,
    seconds: float = 6.0,
    rivals: bool = True,
    busy: int = 0,
    on_trial: Callable[[int, int, Trial], None] = lambda done, total, trial: None,
) -> Noise:
    """What this machine can decide: a contender against itself, as it is and slowed down."""
    rule = UntilClear.at(threshold, seconds)
    block = duel.pair(contender, contender, source, "fwd_bwd", rule=rule, axes={"batch": batch})
    with duel.own_worker() as worker:
        return examine(
            block,
            worker,
            trials=trials,
            threshold=threshold,
            seconds=seconds,
            rivals=rivals,
            busy=busy,
            on_trial=on_trial,
        )


def kernels(
    name: str = "",
    source: str = "synthetic:64x56x56",
    batch: int = 32,
    dtype: str = "bfloat16",
    form: str = "contiguous",
    arch: str = "",
    gpu: str = "",
    bandwidth: float | None = None,
) -> list[kernel_costs.Costs]:
    """What Triton contenders will cost on a GPU that is not here; `bandwidth` in GB/s.

    All contenders that have kernels, or the one named. UsageError, UnknownName for what is none.
    """
    _, channels, spatial = input_of(source, "--input")
    axis_values("dtype", dtype, "--dtype")
    axis_values("format", form, "--format")
    if dtype == "float64":
        raise UsageError("--dtype float64: the kernels take float32, bfloat16 and float16")
    wanted = [parse_contender(name, "triton")] if name else kernel_costs.triton_contenders()
    for contender in wanted:
        if contender.backend != "triton":
            raise UsageError(f"{contender.id}: only the backend triton is compiled ahead of time")
    rate = bandwidth * 1e9 if bandwidth else None
    return [
        kernel_costs.collect(c, (batch, channels, *spatial), dtype, form, arch, gpu, rate)
        for c in wanted
    ]


def as_json(found: msgspec.Struct | list[kernel_costs.Costs]) -> str:
    """Decisions as JSON text."""
    return msgspec.json.format(msgspec.json.encode(found), indent=1).decode()


def export(found: Run, as_json: Path | None, as_csv: Path | None) -> None:
    """Write a run's records as JSON (whole) or CSV (flat, without raw samples)."""
    try:
        if as_json:
            write_atomically(as_json, msgspec.json.encode(found.records) + b"\n")
        if as_csv:
            rows = [flat(r) for r in found.records]
            columns = dict.fromkeys(name for row in rows for name in row)
            with as_csv.open("w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)
    except OSError as error:
        raise StoreError(f"cannot write {error.filename}: {error.strerror}") from error
