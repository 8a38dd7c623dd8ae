"""Reports of a run: one HTML file that can be mailed, and tables for pasting. Measures nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from sbnbench.model import Plan, Record


class Run(Protocol):
    """What a report is made from: the content of a run directory."""

    @property
    def plan(self) -> Plan: ...
    @property
    def environment(self) -> dict[str, Any]: ...
    @property
    def records(self) -> list[Record]: ...
    @property
    def path(self) -> Path | None: ...
    @property
    def problems(self) -> list[str]:
        """What could not be read, in words."""
        ...
