"""What `sbnbench list` shows, as plain data. No torch."""

from __future__ import annotations

from typing import Any

from sbnbench.environment import backends
from sbnbench.errors import UnknownName
from sbnbench.model import Normalizer
from sbnbench.nvml import gpus
from sbnbench.plan import read_suite
from sbnbench.registry import normalizers
from sbnbench.suites import suites

MEASURES = {
    "latency": "time of forward, backward and both, in pairs against the baseline",
    "memory": "most bytes that a call allocates at one time, forward, backward and both",
    "error": "estimated mean and variance against the full batch's and the population's",
}


def collect(what: str) -> dict[str, Any]:
    """The asked-for part, or all of it; each entry with what it is and why it is not available."""
    makers = {
        "normalizers": lambda: [_normalizer(n) for n in normalizers().values()],
        "backends": lambda: [
            {"name": name, "problem": problem} for name, problem in backends().items()
        ],
        "suites": _suites,
        "measures": lambda: [{"name": n, "help": h} for n, h in MEASURES.items()],
        "devices": _devices,
    }
    if what not in (*makers, "all"):
        raise UnknownName("list", what, (*makers, "all"))
    found: dict[str, Any] = {k: make() for k, make in makers.items() if what in (k, "all")}
    problems = {**normalizers().problems, **suites().problems}
    if problems:
        found["plug-ins that did not load"] = problems
    return found


def _normalizer(normalizer: Normalizer) -> dict[str, Any]:
    return {
        "name": normalizer.name,
        "title": normalizer.title,
        "kind": normalizer.kind,
        "backends": list(normalizer.backends),
        "without": normalizer.without,
        "formula": normalizer.formula,
        "source": normalizer.source,
        "provider": normalizer.provider,
        "notes": normalizer.notes,
        "params": [
            {
                "name": p.name,
                "default": p.default,
                "bounds": p.bounds(),
                "help": p.help,
            }
            for p in normalizer.params
        ],
    }


def _suites() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "title": read_suite(path).title,
            "provider": suites().provider(name),
            "path": str(path),
        }
        for name, path in suites().items()
    ]


def _devices() -> list[dict[str, Any]]:
    found, why = gpus()
    listed: list[dict[str, Any]] = [{"name": "cpu", "problem": ""}]
    listed += [{"name": f"cuda:{g['index']}", "title": g["name"], "problem": ""} for g in found]
    return listed if found else [*listed, {"name": "cuda", "problem": why}]
