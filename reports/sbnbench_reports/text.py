"""The words that a report uses throughout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sbnbench import analyse
from sbnbench.analyse import Conditions, Setting
from sbnbench.model import Direction, Record

DIRECTION: dict[str | None, str] = {
    "fwd": "forward",
    "bwd": "backward",
    "fwd_bwd": "forward + backward",
    None: "any",
}
SIGN: dict[str, str] = {"FASTER": "▲", "SLOWER": "▼", "SAME": "=", "UNCLEAR": "?"}
STATUS: dict[str, str] = {
    "ok": "ok",
    "not-applicable": "not applicable",
    "unavailable": "unavailable",
    "failed-verification": "failed verification",
    "error": "error",
    "crashed": "crashed",
    "timeout": "timeout",
    "out-of-memory": "out of memory",
}


def listing(items: Iterable[object]) -> str:
    """a, b and c."""
    parts = [str(item) for item in items]
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def count(number: int, noun: str) -> str:
    """1 layer, 2 layers, 3 processes."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


def times(value: float) -> str:
    """A ratio: 1.38×, and 0.042× where two decimals would say too little."""
    return f"{value:.2f}×" if value >= 0.1 else f"{value:.2g}×"


def tick(value: float) -> str:
    """A ratio at an axis: 0.7×."""
    return f"{value:g}×"


def plain(value: float) -> str:
    """An error, a pure number: 0.083."""
    return f"{value:.2g}"


def ordered(directions: Iterable[Direction | None]) -> tuple[Direction | None, ...]:
    """Directions, the one that answers are given for first: training's where it was measured."""
    present = set(directions)
    return tuple(d for d in ("fwd_bwd", "fwd", "bwd", None) if d in present)


def main_direction(directions: Iterable[Direction | None]) -> Direction | None:
    return next(iter(ordered(directions)), None)


USUAL = "usual clock, hot"
"""What a timing without words is called beside others."""


def varied(found: Iterable[Conditions]) -> list[str]:
    """Names of the conditions of which a run has more than one."""
    known = list(found)
    names = ("device", "dtype", "format", "timing", "baseline")
    return [n for n in names if len({getattr(c, n) for c in known}) > 1]


def where(conditions: Conditions, names: Sequence[str]) -> str:
    """The named conditions, for headings: `cuda:0, bfloat16`."""
    parts = {
        "baseline": f"against {conditions.baseline}",
        "timing": conditions.timing or USUAL,
    }
    return ", ".join(parts.get(n, str(getattr(conditions, n))) for n in names)


def layer_names(records: Iterable[Record]) -> dict[Setting, str]:
    """What to call each layer of a run: its name and shape, and what else tells it apart."""
    known = list(records)
    names = [n for n in varied({analyse.conditions(r) for r in known}) if n != "baseline"]
    seeds = len({r.workload.seed for r in known}) > 1
    found = {}
    for record in known:
        w = record.workload
        having = analyse.conditions(record)
        parts = [w.layer, *(where(having, [n]).replace("_", " ") for n in names)]
        found[analyse.setting(record)] = ", ".join(parts + ([f"seed {w.seed}"] if seeds else []))
    return found
