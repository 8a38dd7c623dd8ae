"""Pages of the documentation that are made from the registry. No torch.

python -m sbnbench.pages [FOLDER] writes them (`make docs`); a test says when they are out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sbnbench.errors import UnknownName
from sbnbench.listing import collect
from sbnbench.model import ParamValue, format_param
from sbnbench.registry import normalizers
from sbnbench_kernels.traffic import passes

SHAPE = (64, 64, 32, 32)
"""What the cost is given for."""

_HEAD = f"""# Normalizers

Made from the registry by `make docs`; `sbnbench list normalizers --long` shows the same, with the
plug-ins of your environment.

Letters: γ, b learned per channel (`weight`, `bias`); μ, σ² mean and variance; ε = `eps`. Class A
takes the place of BatchNorm in a model (`convert`, `Norm`), B that of the norm and of the
activation after it, C needs weights, other layers or phases. The cost is what must at least be
moved, in passes over the tensor (one read or one write of all of it), forward + backward with the
parameters at their defaults on an input of {"×".join(map(str, SHAPE))}: full BatchNorm's is 3 + 5,
and of a sampled one with backward=sampled about 2 + r and 3 + 2r, r its share of the values. A note
overrules what is said of training and eval().
"""


def normalizers_page() -> str:
    """docs/normalizers.md: the built-in normalizers."""
    entries = [e for e in collect("normalizers")["normalizers"] if e["provider"] == "sbnbench"]
    return "\n".join([_HEAD, *_table(entries), "", *(line for e in entries for line in _entry(e))])


def _table(entries: list[dict[str, Any]]) -> Iterator[str]:
    yield "| name | class | passes | backends |"
    yield "| --- | --- | --- | --- |"
    for e in entries:
        backends = ", ".join(e["backends"]) or "—"
        yield f"| [{e['name']}](#{_anchor(e)}) | {e['kind']} | {_cost(e['name'])} | {backends} |"


def _entry(e: dict[str, Any]) -> Iterator[str]:
    yield f"## {e['name']}: {e['title']}\n"
    yield f"```\n{e['formula']}\n```\n"
    yield f"Source: {e['source']}.\n"
    yield f"- class {e['kind']}: {e['class']}"
    yield f"- passes: {_cost(e['name'])}"
    yield f"- in training: {e['training']}"
    yield f"- in eval(): {e['eval']}"
    yield f"- state_dict: {', '.join(f'`{name}`' for name in e['state']) or 'no layer'}"
    yield f"- backends: {', '.join(e['backends']) or 'none'}"
    yield from (f"- no {name}: {why}" for name, why in e["without"].items())
    if e["notes"]:
        yield f"\n{e['notes']}"
    yield ""
    if e["params"]:
        yield "| parameter | default | bounds | |"
        yield "| --- | --- | --- | --- |"
        for p in e["params"]:
            cells = (f"`{p['name']}`", _default(p), p["bounds"], p["help"])
            yield f"| {' | '.join(cell.replace('|', 'or') for cell in cells)} |"
        yield ""


def _anchor(e: dict[str, Any]) -> str:
    """The anchor that GitHub gives the heading of an entry."""
    heading = f"{e['name']}: {e['title']}".lower().replace(" ", "-")
    return "".join(c for c in heading if c.isalnum() or c in "-_")


def _cost(name: str) -> str:
    params: dict[str, ParamValue] = normalizers()[name].resolve({})
    try:
        forward, backward = (passes(name, params, SHAPE, d).total for d in ("fwd", "bwd"))
    except UnknownName:
        return "—"
    return f"{forward:.3g} + {backward:.3g}"


def _default(p: dict[str, Any]) -> str:
    return f"{p['default']:g}" if p["kind"] == "float" else format_param(p["default"])


def main() -> None:
    """Writes every page into the folder that is given, docs where none is."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    (folder / "normalizers.md").write_text(normalizers_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
