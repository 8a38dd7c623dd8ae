"""One self-contained HTML file: nothing is fetched, and without scripts nothing is missing."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sbnbench import analyse, units
from sbnbench.analyse import THRESHOLD
from sbnbench_reports import Run, palette, tables, text


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
        # mkstemp makes private files, but a report is made to be shared
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
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
        "seconds": units.seconds,
        "percent": units.percent,
        "interval": units.interval,
        "times": text.times,
        "listing": text.listing,
    }
    templates.tests["mapping_"] = lambda value: isinstance(value, Mapping)
    return templates


def _names(sentence: str) -> Markup:
    """Escaped text whose `names` are set as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(Markup.escape(sentence))))


def _context(run: Run, threshold: float) -> dict[str, Any]:
    records, plan = run.records, run.plan
    found = analyse.comparisons(records, threshold)
    notes = tables.notes(records)
    numbers = {note.text: note.number for note in notes}
    styles = palette.styles(_contenders(plan), _baseline(plan))
    summaries = analyse.group(
        analyse.summaries(found, threshold), lambda s: analyse.conditions_of(s)
    )
    return {"run": run}
