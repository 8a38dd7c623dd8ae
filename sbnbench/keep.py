"""Keep a run as data of a repository: `python -m sbnbench.keep RUN FOLDER`. No torch.

FOLDER gets the plan, the environment and the records without their raw samples, which are the bulk
of a run, and a README.md that is made from them. `make docs` makes that page again.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec

from sbnbench.store import Run, RunWriter, load

PAGE = "README.md"


def keep(run: Run, folder: Path) -> None:
    """Write `run` into `folder`, which must not hold one. StoreError where that cannot be."""
    writer = RunWriter.create(folder, run.plan)
    # Where the run went is the business of whoever ran it.
    command = re.sub(r" --out[ =]\S+", "", str(run.environment.get("command", "")))
    writer.environment(run.environment | {"command": command})
    writer.append(msgspec.structs.replace(record, samples={}) for record in run.records)
    write_page(folder)


def write_page(folder: Path) -> None:
    """The page of the run in `folder`."""
    from sbnbench_reports import kept

    (folder / PAGE).write_text(kept.page(load(folder)), encoding="utf-8")


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m sbnbench.keep RUN FOLDER")
    keep(load(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
