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


CLASSES = {
    "A": "drop-in for BatchNorm",
    "B": "replaces norm and activation",
    "C": "needs weights, other layers or phases",
}


def _normalizer(normalizer: Normalizer) -> dict[str, Any]:
    training, inference = _behaviour(normalizer)
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
        "class": CLASSES[normalizer.kind],
        "training": training,
        "eval": inference,
        "state": _state(normalizer) if normalizer.backends else [],
        "params": [
            {
                "name": p.name,
                "kind": p.kind,
                "default": p.default,
                "bounds": p.bounds(),
                "help": p.help,
            }
            for p in normalizer.params
        ],
    }


def _behaviour(normalizer: Normalizer) -> tuple[str, str]:
    """What a layer does in training and in eval(), but for what the notes say."""
    if not normalizer.running:
        return "by the formula; nothing is carried from call to call", "as in training"
    if normalizer.param("redraw"):
        training = "by the sample's statistics, drawn anew every `redraw` steps"
    else:
        training = "by the formula"
    return f"{training}; updates the running statistics", "by the running statistics"


def _state(normalizer: Normalizer) -> list[str]:
    """The keys of a layer's state_dict."""
    running = ("running_mean", "running_var", "num_batches_tracked") if normalizer.running else ()
    return ["weight", "bias", *running, *(f"extra_{name}" for name in normalizer.keeps)]


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
