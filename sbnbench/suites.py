"""Suites by name: those that ship, and those that other packages register. No torch."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint
from importlib.resources import files
from pathlib import Path
from typing import Any

from sbnbench.registry import Registry


@cache
def suites() -> Registry[Path]:
    """Name → TOML file. A plug-in's entry point in `sbnbench.suites` gives a path to one."""
    registry: Registry[Path] = Registry("suite")
    for path in sorted(Path(str(files("sbnbench_suites"))).glob("*.toml")):
        registry.add(path.stem, path, "sbnbench")

    def take(point: EntryPoint, found: Any, provider: str) -> None:
        path = Path(found)
        if not path.is_file():
            raise FileNotFoundError(f"no such suite file: {path}")
        registry.add(point.name, path, provider)

    registry.load_plugins("sbnbench.suites", take)
    return registry


def find(name_or_path: str) -> Path:
    """A registered suite's file, or the user's own file where the text looks like one."""
    if name_or_path in suites():
        return suites()[name_or_path]
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        return Path(name_or_path)
    return suites()[name_or_path]
