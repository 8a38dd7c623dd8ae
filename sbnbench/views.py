"""The tables that commands end with: results as people read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from sbnbench import units
from sbnbench.console import describe, describe_block, table
from sbnbench.model import Block, Plan, Record, format_param

if TYPE_CHECKING:
    from sbnbench.gate import Gate
    from sbnbench.kernel_costs import Costs
    from sbnbench.noise import Noise, Trial

SIGN = {"FASTER": "▲", "SLOWER": "▼", "SAME": "=", "UNCLEAR": "?"}
STYLE = {"FASTER": "green", "SLOWER": "red", "SAME": "", "UNCLEAR": "yellow"}
EXACT = 1e-5
"""An error of the statistics below this is rounding."""


def show_results(console: Console, records: list[Record], threshold: float) -> None:
    """The final tables: contenders by batch, one table a layer, for the widest direction."""
    latency = [r for r in records if r.measure == "latency"]
    if latency:
        direction = next(
            d for d in ("fwd_bwd", "fwd", "bwd") if any(r.direction == d for r in latency)
        )
        _by_batch(
            console,
            [r for r in latency if r.direction == direction],
            f"speed of {direction} against {latency[0].baseline}, 95 % interval",
            lambda r: _speed(r, threshold),
        )
    errors = [r for r in records if r.measure == "error"]
    if errors:
        _by_batch(
            console,
            errors,
            "error of the variance, |ln σ_S²/σ²| against the batch's own, median over channels",
            _error,
        )
    console.print(
        "[green]▲ faster[/]  [red]▼ slower[/]  = same  [yellow]? unclear[/]   "
        f"at a threshold of {units.percent(threshold)}; ratio = baseline's time / contender's"
    )


def show_overhead(console: Console, timing: dict[str, Any]) -> None:
    """The share of the run that was not spent inside samples, and on what."""
    if not timing.get("total"):
        return
    parts = sorted(timing["parts"].items(), key=lambda p: -p[1])
    spent = ", ".join(f"{what} {units.duration(s)}" for what, s in parts if s >= 1)
    console.print(
        f"harness overhead {units.percent(timing['overhead'])} of "
        f"{units.duration(timing['total'])}{f': {spent}' if spent else ''}",
        markup=False,
    )


def _by_batch(console: Console, records: list[Record], title: str, cell: object) -> None:
    assert callable(cell)
    groups: dict[str, list[Record]] = {}
    for record in records:
        w = record.workload
        extra = "".join(f", {v}" for v in (w.dtype, w.format, w.device, record.timing) if v)
        groups.setdefault(f"{w.layer}{extra}", []).append(record)
    for layer, group in sorted(groups.items()):
        batches = sorted({r.workload.batch for r in group})
        rows: dict[str, dict[int, str]] = {}
        for r in group:
            rows.setdefault(r.contender, {})[r.workload.batch] = cell(r)
        table(
            console,
            f"{escape(layer)}: {title}",
            ["contender", *(f"batch {b}" for b in batches)],
            ([escape(name), *(cells.get(b, "") for b in batches)] for name, cells in rows.items()),
        )


def _speed(record: Record, threshold: float) -> str:
    from sbnbench.statistics import decide  # scipy: not for `list` and `--help`

    ratio = record.estimates.get("ratio")
    if record.status != "ok" or ratio is None:
        return f"[dim]{record.status}[/]"
    found, _ = decide(ratio, threshold)
    text = f"{units.ratio(ratio)} {SIGN[found]}"
    return f"[{STYLE[found]}]{text}[/]" if STYLE[found] else text


def _error(record: Record) -> str:
    estimate = record.estimates.get("var_batch_median")
    if record.status != "ok" or estimate is None:
        return f"[dim]{record.status}[/]"
    return "exact" if estimate.value < EXACT else f"{estimate.value:.2g}"


def show_plan(console: Console, plan: Plan) -> None:
    """`--dry-run`: what would be run."""
    console.print(f"{plan.title}\n{plan.description.strip()}\n", markup=False)
    table(
        console,
        f"{len(plan.blocks)} blocks",
        ["block", "workload", "measures", "directions", "contenders"],
        (
            [
                b.id,
                escape(describe_block(b)),
                ", ".join(b.measures),
                ", ".join(b.directions),
                escape(", ".join(c.id for c in b.contenders)),
            ]
            for b in plan.blocks
        ),
    )
    seconds = sum(len(b.directions) * b.latency.seconds for b in plan.blocks)
    console.print(f"measuring time about {units.duration(seconds)}, and verification")


def show_listing(console: Console, found: dict[str, Any], long: bool) -> None:
    """`sbnbench list`."""
    for kind, entries in found.items():
        if isinstance(entries, dict):
            table(
                console,
                kind,
                ["plug-in", "reason"],
                ([escape(a), escape(b)] for a, b in entries.items()),
            )
        elif kind == "normalizers":
            _show_normalizers(console, entries, long)
        else:
            rows = (
                [
                    e["name"],
                    escape(e.get("problem") or e.get("title") or e.get("help") or "available"),
                ]
                for e in entries
            )
            table(console, kind, ["name", ""], rows)


def _show_normalizers(console: Console, entries: list[dict[str, Any]], long: bool) -> None:
    if not long:
        rows = (
            [e["name"], e["kind"], ", ".join(e["backends"]), escape(e["title"]), e["provider"]]
            for e in entries
        )
        table(console, "normalizers", ["name", "kind", "backends", "title", "from"], rows)
        return
    for e in entries:
        console.print(f"[bold]{escape(e['name'])}[/]  {escape(e['title'])}")
        facts = {
            "": e["formula"],
            "source": e["source"],
            "class": f"{e['kind']}: {e['class']}",
            "in training": e["training"],
            "in eval()": e["eval"],
            "state": ", ".join(e["state"]),
            "backends": ", ".join(e["backends"]) or "none",
            **{f"no {name}": why for name, why in e["without"].items()},
            "notes": e["notes"],
        }
        for name, fact in facts.items():
            if fact:
                console.print(f"  {name + ': ' if name else ''}{fact}", markup=False)
        for p in e["params"]:
            default = format_param(p["default"])
            console.print(
                f"  parameter {p['name']} = {default}  in {p['bounds']}  {p['help']}", markup=False
            )
        console.print()


def _facts(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    said = [
        f"{k.removesuffix('_bytes')} {units.size(v) if k.endswith('_bytes') else v}"
        for k, v in value.items()
        if v is not None
    ]
    return "; ".join(said) or "nothing set"


def show_diagnosis(console: Console, found: dict[str, Any]) -> None:
    """`sbnbench doctor`."""
    for name, value in found["environment"].items():
        console.print(f"[bold]{name}[/] {escape(_facts(value))}")
    console.print()
    for kind in ("backends", "extras"):
        rows = (
            [name, escape(problem) if problem else "[green]available[/]"]
            for name, problem in found[kind].items()
        )
        table(console, kind, ["name", ""], rows)
    for name, reason in found["plug-ins that did not load"].items():
        console.print(f"[red]plug-in did not load[/] {escape(name)}: {escape(reason)}")


def gate_progress(console: Console) -> Callable[[Block, int, int], None]:
    """Says which block is being decided; a gate takes minutes."""
    start = monotonic()

    def on_block(block: Block, done: int, total: int) -> None:
        spent = monotonic() - start
        left = f", {units.duration(spent / done * (total - done))} left" if done else ""
        console.print(
            f"[{done + 1}/{total}] {describe_block(block)}{left}",
            markup=False,
        )

    return on_block


GATE_COLUMNS = ("contender", "workload", "direction", "change", "verdict", "why")


def _gate_rows(found: Gate) -> list[tuple[str, ...]]:
    return [
        (
            d.contender,
            describe(d.workload),
            d.direction,
            units.ratio(d.change) if d.change else d.status,
            f"{SIGN[d.verdict]} {d.verdict}",
            d.reason,
        )
        for d in found.decisions
    ]


def show_gate(console: Console, found: Gate) -> None:
    """Every decision, and what they come to."""
    rows = _gate_rows(found)
    styled = [
        [*map(escape, row[:4]), f"[{STYLE[d.verdict] or 'default'}]{row[4]}[/]", escape(row[5])]
        for row, d in zip(rows, found.decisions, strict=True)
    ]
    title = f"against {found.against}, threshold {units.percent(found.threshold)}"
    table(console, escape(title), GATE_COLUMNS, styled)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    counts = Counter(d.verdict for d in found.decisions)
    console.print(", ".join(f"{n} {v}" for v, n in counts.items()), markup=False)


def gate_markdown(found: Gate) -> str:
    """A table to paste into a pull request."""
    rows = [GATE_COLUMNS, ("---",) * len(GATE_COLUMNS), *_gate_rows(found)]
    lines = [f"| {' | '.join(c.replace('|', chr(92) + '|') for c in row)} |" for row in rows]
    head = f"sbnbench gate against `{found.against}`, threshold {units.percent(found.threshold)}"
    return "\n".join([head, "", *lines, *(f"\n{note}" for note in found.notes)])


def noise_progress(console: Console) -> Callable[[int, int, Trial], None]:
    """A line a trial: what was so, what was said, and the time left."""
    start = monotonic()

    def on_trial(done: int, total: int, trial: Trial) -> None:
        truth = f"slower by {units.percent(trial.slowdown)}" if trial.slowdown else "the same"
        left = (monotonic() - start) / done * (total - done)
        console.print(
            f"[{done}/{total}] {truth}: {trial.verdict} {trial.reason}; "
            f"{units.duration(left)} left",
            markup=False,
        )

    return on_trial


def show_noise(console: Console, found: Noise) -> None:
    """Rules against each other, and what the machine resolves."""
    table(
        console,
        f"{found.contender}, {found.workload}; {found.busy} other cores kept busy",
        [
            "rule",
            "false alarms (A/A)",
            f"found (A/B, {units.percent(found.slowdown)} slower)",
            "unclear",
        ],
        (
            [escape(name), f"{false} of {same}", f"{hit} of {slower}", str(unclear)]
            for name, same, false, slower, hit, unclear in found.rows()
        ),
    )
    seconds = sorted(t.seconds for t in found.trials)
    console.print(
        f"a decision took {units.duration(seconds[len(seconds) // 2])} in the median, "
        f"{units.duration(seconds[-1])} at most"
    )
    for budget, threshold in found.resolves:
        console.print(
            f"in {units.duration(budget)} this machine decides at a threshold of "
            f"{units.percent(threshold)}"
        )


def show_kernels(console: Console, found: list[Costs]) -> None:
    """Each contender's launches, and what they move."""
    for costs in found:
        shape = "×".join(map(str, costs.shape))
        table(
            console,
            escape(f"{costs.contender} on {shape} {costs.dtype} {costs.format}, {costs.arch}"),
            (
                *("kernel", "direction", "programs", "warps", "registers", "spills", "shared"),
                *("occupancy", "limited by", "load", "store"),
            ),
            (
                [
                    escape(k.kernel),
                    k.direction,
                    str(k.programs),
                    str(k.warps),
                    str(k.registers),
                    f"[red]{k.spills}[/]" if k.spills else "0",
                    units.size(k.shared_bytes),
                    units.percent(k.occupancy),
                    k.limited_by,
                    f"{k.load_bits} bit",
                    f"{k.store_bits} bit",
                ]
                for k in costs.kernels
            ),
        )
        for t in costs.totals:
            end = f"; at {costs.gpu} no less than {units.seconds(t.seconds)}" if t.seconds else ""
            console.print(
                f"{t.direction}: {t.launches} launches, reads {units.size(t.bytes_read)}, writes "
                f"{units.size(t.bytes_written)}, {t.flops:.3g} operations{end}",
                markup=False,
            )
        console.print()
