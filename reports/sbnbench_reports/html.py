"""One self-contained HTML file: nothing is fetched, and without scripts nothing is missing."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sbnbench import __version__, analyse, units
from sbnbench.analyse import THRESHOLD, VERDICTS, Setting
from sbnbench.model import Record
from sbnbench_reports import Run, answer, palette, svg, tables, text
from sbnbench_reports.figures import Figure, Look, errors, latencies, ratios
from sbnbench_reports.front import speed_against_error
from sbnbench_reports.measured import entrants, measured
from sbnbench_reports.standings import standings

MOST_LAYERS = 4
"""Layers that get figures; a report with those of every layer could not be mailed."""


def render(run: Run, threshold: float = THRESHOLD) -> str:
    """The report of a run, a whole HTML document. `threshold`: the smallest change that counts."""
    return _templates().get_template("report.html.j2").render(_context(run, threshold))


def write(run: Run, path: Path | str, threshold: float = THRESHOLD) -> Path:
    """Render to `path`, replacing it in one step: a reader never sees half a report."""
    path = Path(path)
    page = render(run, threshold)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        os.chmod(name, 0o644)  # mkstemp makes private files, but a report is made to be shared
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def fragment(run: Run, threshold: float = THRESHOLD) -> str:
    """The report for a notebook's cell. A frame of its own, so that it restyles nothing."""
    return (
        f'<iframe title="{escape(run.plan.title)}" srcdoc="{escape(render(run, threshold))}" '
        'style="width:100%;height:80vh;min-height:480px;border:0;border-radius:6px"></iframe>'
    )


def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("sbnbench_reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "names": _names,
        "percent": units.percent,
        "interval": units.interval,
        "times": text.times,
        "fact": _fact,
        "label": _label,
        "breakable": _breakable,
        "svg": Markup,
    }
    return templates


def _names(sentence: str) -> Markup:
    """Escaped text whose `names` are set as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(Markup.escape(sentence))))


def _breakable(name: str) -> Markup:
    """An escaped contender's id that a narrow column may break where its parts join."""
    return Markup(re.sub(r"(,)|(@)", r"\1<wbr>\2", str(Markup.escape(name))))


def _context(run: Run, threshold: float) -> dict[str, Any]:
    """Everything the template prints, in the order of its sections."""
    records = run.records
    found = analyse.comparisons(records, threshold)
    notes = tables.notes(records)
    layers = text.layer_names(records)
    labels = tables.Labels(layers, {tables.alike(note.texts[0]): note.number for note in notes})
    styles = palette.styles(_contenders(run), _baseline(run))
    return {
        "run": run,
        "plan": run.plan,
        "version": __version__,
        "threshold": threshold,
        "verdicts": VERDICTS,
        "direction": text.DIRECTION,
        "sign": text.SIGN,
        "styles": styles,
        "baselines": {r.baseline for r in records},
        "symbols": Markup(
            "".join(svg.symbol(s.index, s.hue, s.marker, s.dash) for s in styles.values())
        ),
        "hues": {
            "light": Markup(palette.variables(palette.LIGHT)),
            "dark": Markup(palette.variables(palette.DARK)),
        },
        "byline": _byline(run),
        "answer": answer.answer(run, threshold),
        "outcome": answer.outcome(run),
        "standings": standings(found, threshold),
        "measured": measured(run, layers),
        "entrants": entrants(records),
        "rows": tables.verdict_rows(records, found, labels),
        "sections": _sections(run, layers, Look(styles, threshold)),
        "most_layers": MOST_LAYERS,
        "layers": layers,
        "error_rows": tables.error_rows(records, labels),
        "error_columns": tables.ERRORS,
        "other_rows": tables.other_rows(records, labels),
        "failures": tables.failures(records),
        "missing": analyse.missing(run.plan, records),
        "notes": notes,
        "command": _command(run.environment.get("command", "")),
    }


def _contenders(run: Run) -> list[str]:
    """All ids: the plan's, in its order, then what only records name, as a merged run may."""
    planned = [c.id for block in run.plan.blocks for c in block.contenders]
    return list(dict.fromkeys([*planned, *(r.contender for r in run.records)]))


def _baseline(run: Run) -> str:
    planned = [block.baseline.id for block in run.plan.blocks]
    return next(iter([*planned, *(r.baseline for r in run.records)]), "")


@dataclass(frozen=True)
class Section:
    """One kind of figure, for each layer that gets figures."""

    id: str
    short: str
    heading: str
    figures: list[tuple[str, Figure]]

    @property
    def contenders(self) -> list[str]:
        return list(dict.fromkeys(c for _, f in self.figures for c in f.contenders))


_KINDS: tuple[tuple[str, str, Callable[[list[Record], Look, str], Figure | None]], ...] = (
    ("Speed", "Speed against batch size", ratios),
    ("Latency", "Latency against batch size", latencies),
    ("Error", "Estimation error against batch size", errors),
    ("Trade-off", "Speed against error", speed_against_error),
)


def _sections(run: Run, layers: Mapping[Setting, str], look: Look) -> list[Section]:
    """Each kind of figure, layer by layer; kinds that nothing was measured for are left out."""
    by_layer = analyse.group(run.records, lambda r: (analyse.setting(r), r.baseline))
    shown = list(by_layer.items())[:MOST_LAYERS]
    sections = []
    for short, heading, draw in _KINDS:
        name = short.lower()
        drawn = [
            (layers[setting], figure)
            for at, ((setting, _), own) in enumerate(shown)
            if (figure := draw(own, look, f"{name}{at}-")) is not None
        ]
        if drawn:
            sections.append(Section(name, short, heading, drawn))
    return sections


def _command(value: Any) -> str:
    """The command as it was typed, whether kept as text or as arguments."""
    return shlex.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _byline(run: Run) -> list[str]:
    """On what and when, as far as the environment says so."""
    machine = _mapping(run.environment.get("machine"))
    gpus = run.environment.get("gpus")
    on_gpu = any(b.workload.device != "cpu" for b in run.plan.blocks)
    device = machine.get("cpu")
    if on_gpu and isinstance(gpus, list) and gpus:
        device = _mapping(gpus[0]).get("name", device)
    date = str(run.environment.get("date", ""))[:16].replace("T", " ")
    return [str(item) for item in (f"suite {run.plan.suite}", device, date) if item]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _fact(value: Any, name: str = "") -> str:
    """A plain value of the environment, as people write it."""
    if value is None:
        return "not set" if name.isupper() else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes") and isinstance(value, int):
        return units.size(value)
    return str(value)


def _label(name: str) -> str:
    """A key of the environment as words."""
    return name if name.isupper() else name.removesuffix("_bytes").replace("_", " ")
