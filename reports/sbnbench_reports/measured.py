"""What was measured, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sbnbench import analyse, units
from sbnbench.analyse import Setting
from sbnbench.model import Block, Record
from sbnbench_reports import Run
from sbnbench_reports.text import DIRECTION, count, listing


def measured(run: Run, layers: Mapping[Setting, str]) -> list[tuple[str, str]]:
    """What was measured, as terms and texts."""
    blocks = run.plan.blocks
    workloads = [block.workload for block in blocks]
    latency = [block.latency for block in blocks if "latency" in block.measures]
    draws = sorted({block.error.draws for block in blocks if "error" in block.measures})
    facts = [
        ("Suite", run.plan.suite + (" (quick)" if run.plan.quick else "")),
        ("Layers", "; ".join(layers.values())),
        ("Batch sizes", listing(sorted({w.batch for w in workloads}))),
        ("Directions", listing(DIRECTION[d] for d in _unique(blocks, "directions"))),
        ("Type, format, device", "; ".join(dict.fromkeys(
            f"{w.dtype}, {w.format.replace('_', ' ')}, {w.device}" for w in workloads
        ))),
        ("Baseline", listing(dict.fromkeys(block.baseline.id for block in blocks))),
        ("Latency", "; ".join(dict.fromkeys(  # clocks and caches are among the layers' names
            f"at most {o.seconds:g} s a direction and block, in {count(o.processes, 'process')}; "
            f"aim: an interval of ±{units.percent(o.precision)}" for o in latency
        ))),
        ("Error", f"averaged over {listing(draws)} batches" if draws else ""),
        ("Order", f"random, seed {run.plan.seed}"),
    ]  # fmt: skip
    return [(term, value) for term, value in facts if value]


def _unique(blocks: Iterable[Block], name: str) -> list[Any]:
    return list(dict.fromkeys(item for block in blocks for item in getattr(block, name)))


@dataclass(frozen=True)
class Entrant:
    """A contender as it was run: the share it sampled, its largest deviation from float64."""

    contender: str
    share: str
    deviation: str


def entrants(records: Iterable[Record]) -> list[Entrant]:
    """What the records' facts say of each contender."""
    found = []
    for contender, own in analyse.group(records, lambda r: r.contender).items():
        shares = [r.facts["sampled_share"] for r in own if "sampled_share" in r.facts]
        deviations = [
            deviation
            for r in own
            for deviation in dict(r.facts.get("verification", {})).values()
            if isinstance(deviation, float)
        ]
        share = (
            list(dict.fromkeys(units.percent(s) for s in (min(shares), max(shares))))
            if shares
            else []
        )
        found.append(
            Entrant(contender, " to ".join(share), f"{max(deviations):.1g}" if deviations else "")
        )
    return found
