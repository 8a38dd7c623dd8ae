"""The page of a run that is kept in a repository, from its records alone."""

from __future__ import annotations

from typing import Any

from sbnbench import units
from sbnbench_reports import Run, costs


def page(run: Run) -> str:
    """Markdown: what was measured where and when, the costs, then every layer."""
    lines = [
        f"# {run.plan.title}",
        "",
        "Made from the records in this folder by `make docs`. Raw samples are left out.",
        "",
        *(f"- {term}: {value}" for term, value in origin(run.environment)),
        "",
        "▲ FASTER ▼ SLOWER = SAME ? UNCLEAR at a threshold of 5 %; ratio = baseline's time ÷ "
        "contender's, with its 95 % interval. Floor and time are sums over the layers, one call on "
        "each; ratios and shares of the floor are geometric means.",
        "",
        "## Contenders",
        "",
        *costs.tables(run),
        "## Layers",
        "",
        *costs.by_layer(run),
    ]
    return "\n".join(lines).rstrip() + "\n"


def origin(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """Machine, date, commit, versions and command of a run."""
    machine, versions = environment.get("machine", {}), environment.get("versions", {})
    gpus = environment.get("gpus")
    names = ", ".join(g["name"] for g in gpus) if isinstance(gpus, list) else ""
    timing = environment.get("timing", {})
    facts = [
        ("Machine", f"{machine.get('cpu', '')}, {machine.get('usable_cores', '?')} cores"),
        ("GPU", names),
        ("Date", str(environment.get("date", ""))[:10]),
        ("Commit", f"`{environment.get('commit', '')}`"),
        ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items() if k in _VERSIONS)),
        ("Command", f"`{environment.get('command', '')}`"),
        ("Took", units.duration(timing["total"]) if timing else ""),
    ]
    return [(term, value) for term, value in facts if value]


_VERSIONS = ("python", "torch", "triton")
