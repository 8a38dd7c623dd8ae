"""What a user sees in the terminal. The only module that knows rich."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from time import monotonic

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from sbnbench import units
from sbnbench.model import FAILED, Block, Plan, Record, Workload
from sbnbench.observer import Observer

PIPED_WIDTH = 200
"""Columns where nobody looks: wide enough that a table is never cut."""


def make_console(stderr: bool = False) -> Console:
    """A console: styled on a terminal, plain and wide in a pipe. rich honours NO_COLOR itself."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPED_WIDTH
    return Console(stderr=stderr, highlight=False, width=width)


def table(
    console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    """A table; cells are rich markup."""
    console.print(f"[bold]{title}[/]")
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        shown.add_column(column, overflow="fold", no_wrap=index == 0)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    console.print()


class PlainObserver(Observer):
    """One line a block, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.total = self.done = 0
        self.start = monotonic()
        self.said = 0.0

    def __enter__(self) -> PlainObserver:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def started(self, plan: Plan, todo: list[Block]) -> None:
        self.total = len(todo)
        self.console.print(f"{plan.title}: {len(todo)} blocks", markup=False)

    def preparing(self, what: str, done: float, total: float) -> None:
        if monotonic() - self.said > 2 or done >= total:
            self.said = monotonic()
            self.console.print(f"preparing {what}: {done:.0f} of {total:.0f}", markup=False)

    def block_done(self, block: Block, records: list[Record], seconds: float) -> None:
        self.done += 1
        spent = monotonic() - self.start
        left = spent / self.done * (self.total - self.done)
        failed = sum(r.status in FAILED for r in records)
        self.console.print(
            f"[{self.done}/{self.total}] {describe_block(block)}: {units.duration(seconds)}"
            f"{f', {failed} failed' if failed else ''}; {units.duration(left)} left",
            markup=False,
        )


class LiveObserver(Observer):
    """A progress bar with the block, the time gone and the time left."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]} left"),
            console=console,
            transient=True,
        )
        self.task: TaskID | None = None
        self.total = self.done = 0
        self.start = monotonic()

    def __enter__(self) -> LiveObserver:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def started(self, plan: Plan, todo: list[Block]) -> None:
        self.total = len(todo)
        self.task = self.progress.add_task("starting", total=self.total, count="", left="?")

    def preparing(self, what: str, done: float, total: float) -> None:
        self._show(f"preparing {what}", 0.0, f"{done:.0f}/{total:.0f}", "a moment")
        self.start = monotonic()

    def block_started(self, block: Block) -> None:
        self._block = block
        self.block_progress(block, 0.0)

    def block_progress(self, block: Block, fraction: float) -> None:
        at = self.done + fraction
        spent = monotonic() - self.start
        left = units.duration(spent / at * (self.total - at)) if at > 0.3 else "?"
        self._show(describe_block(block), at, f"{self.done + 1}/{self.total}", left)

    def block_done(self, block: Block, records: list[Record], seconds: float) -> None:
        self.done += 1

    def _show(self, what: str, at: float, count: str, left: str) -> None:
        assert self.task is not None
        self.progress.update(
            self.task, description=escape(what), completed=at, count=count, left=left
        )


def describe(w: Workload, timing: str = "") -> str:
    """A workload in a line: `_blocks.3._bn1 144×28×28, batch 4, float32`."""
    usual = ("contiguous", "cpu", "")
    extra = "".join(f", {v}" for v in (w.format, w.device, timing) if v not in usual)
    return f"{w.layer}, batch {w.batch}, {w.dtype}{extra}"


def describe_block(block: Block) -> str:
    """Its workload, and its timing where that is not the usual one."""
    return describe(block.workload, block.latency.timing)


def observer(console: Console) -> LiveObserver | PlainObserver:
    """The watcher that fits: a bar on a terminal, lines in a pipe."""
    return LiveObserver(console) if console.is_terminal else PlainObserver(console)
