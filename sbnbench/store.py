"""The run directory: plan.json, environment.json, records.jsonl, report.html. No torch.

A block's records are appended with one write and synced, so a run that is stopped at any moment
keeps every finished block; a torn last line is the only damage, and is cut off on resume.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sbnbench.errors import StoreError
from sbnbench.model import PER_DIRECTION, SCHEMA, Block, Plan, Record

if TYPE_CHECKING:
    import pandas as pd

PLAN, ENVIRONMENT, RECORDS, REPORT = (
    "plan.json",
    "environment.json",
    "records.jsonl",
    "report.html",
)


@dataclass(frozen=True)
class Run:
    """What a run directory holds. `problems` names lines that could not be read."""

    plan: Plan
    environment: dict[str, Any]
    records: list[Record]
    path: Path | None = None
    problems: list[str] = field(default_factory=list)

    def to_pandas(self) -> pd.DataFrame:
        """One row a record, estimates in columns `ratio`, `ratio_low`, `ratio_high`, …"""
        import pandas as pd

        return pd.DataFrame([flat(record) for record in self.records])

    def report(self, path: str | os.PathLike[str] | None = None, threshold: float = 0.05) -> Path:
        """Write the HTML report, into the run directory by default, and say where it is.

        `threshold` is the smallest relative change that its verdicts count.
        """
        from sbnbench_reports import html

        if path is None and self.path is None:
            raise StoreError("this run has no directory; give report() a path")
        target = Path(path) if path is not None else (self.path or Path()) / REPORT
        html.write(self, target, threshold)
        return target

    def _repr_html_(self) -> str:
        from sbnbench_reports import html

        return html.fragment(self)

    def missing(self) -> list[Block]:
        """The blocks that have not all their records yet."""
        have = {record.key for record in self.records}
        return [b for b in self.plan.blocks if not expected(b) <= have]


def expected(block: Block) -> set[tuple[str, str, str, str]]:
    """The keys of all records that a finished block has."""
    keys = set()
    for contender in block.contenders:
        for measure in block.measures:
            for direction in block.directions if measure in PER_DIRECTION else ("",):
                keys.add((block.id, contender.id, measure, direction))
    return keys


def flat(record: Record) -> dict[str, Any]:
    """A record as one flat row: for tables, CSV and data frames."""
    w = record.workload
    row: dict[str, Any] = {
        "contender": record.contender,
        "layer": w.layer,
        "batch": w.batch,
        "dtype": w.dtype,
        "format": w.format,
        "device": w.device,
        "measure": record.measure,
        "direction": record.direction,
        "status": record.status,
        "reason": record.reason,
    }
    for name, estimate in record.estimates.items():
        row[name] = estimate.value
        row[f"{name}_low"] = estimate.low
        row[f"{name}_high"] = estimate.high
    row["notes"] = "; ".join(record.notes)
    row["block"] = record.block
    return row


class RunWriter:
    """Writes one run directory; created new, or taken up again with `resume`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, plan: Plan) -> RunWriter:
        """A new run directory, which must not hold a run already."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            if (path / PLAN).exists():
                raise StoreError(
                    f"{path} already holds a run; choose another --out, or go on with "
                    f"`sbnbench run --resume {path}`"
                )
            write_atomically(path / PLAN, _pretty(plan))
        except OSError as error:
            raise StoreError(f"cannot write to {path}: {error.strerror or error}") from error
        return cls(path)

    @classmethod
    def resume(cls, path: Path) -> tuple[RunWriter, Run]:
        """An unfinished run, its half-written blocks and torn lines dropped."""
        run = load(path)
        open_blocks = {block.id for block in run.missing()}
        kept = [r for r in run.records if r.block not in open_blocks]
        lines = b"".join(msgspec.json.encode(r) + b"\n" for r in kept)
        write_atomically(path / RECORDS, lines)
        return cls(path), Run(run.plan, run.environment, kept, path)

    def environment(self, facts: dict[str, Any]) -> None:
        write_atomically(self.path / ENVIRONMENT, _pretty(facts))

    def append(self, records: Iterable[Record]) -> None:
        """Add a finished block's records, durably, in one write."""
        data = b"".join(msgspec.json.encode(r) + b"\n" for r in records)
        try:
            with (self.path / RECORDS).open("ab", buffering=0) as file:
                file.write(data)
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(
                f"cannot write {self.path / RECORDS}: {error.strerror or error}; free some space "
                f"and go on with `sbnbench run --resume {self.path}`"
            ) from error


def load(path: str | os.PathLike[str]) -> Run:
    """A run directory as written. Lines that cannot be read are named and left out."""
    folder = Path(path)
    if not (folder / PLAN).is_file():
        raise StoreError(f"{folder} is no run directory: it has no {PLAN}")
    plan = _decode(folder / PLAN, Plan)
    if plan.schema != SCHEMA:
        raise StoreError(f"{folder}: schema {plan.schema}; this sbnbench reads schema {SCHEMA}")
    environment = (
        _decode(folder / ENVIRONMENT, dict[str, Any]) if (folder / ENVIRONMENT).exists() else {}
    )
    records: list[Record] = []
    problems: list[str] = []
    decoder = msgspec.json.Decoder(Record)
    raw = (folder / RECORDS).read_bytes() if (folder / RECORDS).exists() else b""
    for number, line in enumerate(raw.splitlines(), 1):
        try:
            records.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            problems.append(f"{RECORDS} line {number} left out: {error}")
    for key, times in Counter(r.key for r in records).items():
        if times > 1:
            problems.append(f"{RECORDS}: {' '.join(filter(None, key))} is there {times} times")
    return Run(plan, environment, records, folder, problems)


def _decode(path: Path, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: {error}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _pretty(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"
