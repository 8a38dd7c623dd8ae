"""Every launch goes through here, so that the launches an op would make can be listed, compiled
and counted for a workload and a GPU that are not here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Launch:
    """One kernel launch: `arguments` by name, those that are constexprs too."""

    kernel: Any
    programs: int
    num_warps: int
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


_record: list[Launch] | None = None


def launch(kernel: Any, programs: int, num_warps: int, *args: Any, **kwargs: Any) -> None:
    """Run `programs` programs of a kernel; only note them down inside `recording`."""
    if _record is None:
        kernel[(programs,)](*args, num_warps=num_warps, **kwargs)
        return
    given = dict(zip(kernel.arg_names, args, strict=False))
    _record.append(Launch(kernel, programs, num_warps, {**given, **kwargs}))


def is_recording() -> bool:
    return _record is not None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Inside, ops launch nothing and take tensors of any device, `meta` too; their results are
    empty. Gives the list that the launches go to."""
    global _record
    before, _record = _record, []
    try:
        yield _record
    finally:
        _record = before
