"""A run as Markdown, to paste into an issue or a pull request."""

from __future__ import annotations

from sbnbench import analyse, units
from sbnbench.analyse import THRESHOLD, Comparison
from sbnbench.model import Record
from sbnbench_reports import Run, text
from sbnbench_reports.answer import answer


def table(run: Run, threshold: float = THRESHOLD) -> str:
    """Tables to paste into GitHub: contenders down, batch sizes across, one a layer and direction.

    A cell is the ratio to the baseline, its half-width, and the verdict's sign.
    """
    found = analyse.comparisons(run.records, threshold)
    judged = {c.record.key: c for c in found}
    latency = [r for r in run.records if r.measure == "latency"]
    lines = [f"## {_escape(run.plan.title)}", ""]
    lines += [sentence + "\n" for sentence in answer(run, threshold)]
    lines += ["▲ FASTER ▼ SLOWER = SAME ? UNCLEAR; ratio = baseline's time ÷ contender's.", ""]
    names = text.layer_names(run.records)
    for (layer, baseline, direction), own in analyse.group(
        latency, lambda r: (analyse.setting(r), r.baseline, r.direction)
    ).items():
        batches = sorted({r.workload.batch for r in own})
        heading = f"{names[layer]}, {text.DIRECTION[direction]}, against {baseline}"
        lines += [f"### {_escape(heading)}", ""]
        lines.append("| contender | " + " | ".join(f"batch {b}" for b in batches) + " |")
        lines.append("| :-- |" + " --: |" * len(batches))
        for contender, cells in analyse.group(own, lambda r: r.contender).items():
            by_batch = {r.workload.batch: r for r in cells}
            texts = [_cell(by_batch.get(b), judged) for b in batches]
            lines.append(f"| {_escape(contender)} | " + " | ".join(texts) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(record: Record | None, judged: dict[tuple[str, str, str, str], Comparison]) -> str:
    if record is None:
        return "missing"
    if record.key not in judged:
        return text.STATUS[record.status] if record.status != "ok" else "no ratio"
    comparison = judged[record.key]
    return f"{units.ratio(comparison.ratio)} {text.SIGN[comparison.judgement.verdict]}"


def _escape(words: str) -> str:
    """Text that Markdown prints as it is."""
    for sign in "\\`*_[]<>|":
        words = words.replace(sign, "\\" + sign)
    return words
