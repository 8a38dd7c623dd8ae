"""Pages of the documentation that are made from the registry and from kept runs. No torch.

python -m sbnbench.pages [FOLDER] writes them (`make docs`); a test says when they are out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sbnbench import units
from sbnbench.errors import UnknownName
from sbnbench.keep import write_page
from sbnbench.listing import collect
from sbnbench.model import FORMATS, ParamValue, format_param
from sbnbench.registry import normalizers
from sbnbench.store import PLAN, Run, load
from sbnbench_kernels.traffic import FULL, SAMPLED, passes, traffic

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


_PERFORMANCE = f"""# Where the time goes

Made by `make docs` from the traffic model (`kernels/sbnbench_kernels/traffic.py`) and from the
runs in `docs/measurements`.

A normalization layer computes next to nothing; it moves memory. So the floor of a contender is
the time of the fastest copy of the bytes that it must move, timed beside it in the same rounds
([how](how-the-numbers-are-made.md#the-floor)), and what is left above the floor is the
implementation's to save.

Full BatchNorm reads x twice and writes y, since nothing can be normalized before everything was
read; backward it reads x and dy twice and writes dx. A sampled one reads a share r of x instead
of all of it the first time: 2 + r. Backward, `exact` keeps the full sums (5 passes), `sampled`
takes them over the sample (3 + 2r), `detached` needs none before it writes dx (3). With r = 1/16,
forward and backward together fall from 8 to 5.2 passes: no more than 1.54× is to be had from
memory traffic alone. Whatever a measurement shows beyond that, it owes to a baseline that is
above its own floor; `bn@inductor` beside it tells how much.

Memory comes in lines, 64 bytes on a CPU, 32 on NVIDIA's GPUs, so a sample that lies scattered
moves more than its values. In a contiguous tensor the patches that `fs` takes at r = 1/16 touch in
float32 (in bfloat16) 10 % (13 %) of the lines of maps of 112×112, 13 % (20 %) at 56×56, 20 % (26 %)
at 28×28, 24 % (32 %) at 14×14, 49 % (82 %) at 7×7 and all at 4×4; the single values that `ns` takes
touch 64 % (87 %) of any. Bytes and floors count the lines. Where channels lie side by side, and for
the rows of `bs`, they are those of the values. Patches of contiguous maps are copied out once, and
backward finds those of x in the copy; where their rows are very short, what lies between them is
copied too ([decision 0018](decisions/0018-short-rows-by-whole-vectors.md)). A line that is fetched
alone takes longer than the floor's sweep over as many: `perf record` found 49 % of the forward
kernel of `fs` in its reading of patches at 960×7×7, float32, batch 32 (AMD EPYC, 2026-11-28, commit
a2fc22f).

In bfloat16 on a CPU a second limit is the rounding of the results: PyTorch's vectors (torch 2.13.0)
do it in some eight integer instructions, on processors that have one for it too. Where the caches
hold the tensors, that takes longer than moving them.

## Passes by theory

Forward, backward and their sum, in passes (one read or one write of the whole tensor) by values,
and the bytes in whole lines of one call of both on {"×".join(map(str, SHAPE))} float32, contiguous
and channels last. Parameters at their defaults (r = 1/16).
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


def performance_page(runs: list[Run]) -> str:
    """docs/performance.md: passes by theory, and what kept runs attained of their floors."""
    from sbnbench_reports import costs, kept

    lines = [_PERFORMANCE, *_theory(), ""]
    for run in runs:
        assert run.path is not None
        lines += [f"## {run.plan.title}, {_where(run)}", ""]
        lines += [f"- {term}: {value}" for term, value in kept.origin(run.environment)]
        lines += [f"- [Layer by layer](measurements/{run.path.name}/README.md)", ""]
        lines += costs.tables(run)
    return "\n".join(lines).rstrip() + "\n"


def _where(run: Run) -> str:
    """Batch sizes and dtypes of a run."""
    workloads = [block.workload for block in run.plan.blocks]
    batches = ", ".join(map(str, sorted({w.batch for w in workloads})))
    return f"batch {batches}, {', '.join(dict.fromkeys(w.dtype for w in workloads))}"


def _theory() -> Iterator[str]:
    yield "| normalizer | forward | backward | fwd + bwd | contiguous | channels last |"
    yield "| :-- | --: | --: | --: | --: | --: |"
    for name, params in _CASES:
        resolved = normalizers()[name].resolve(params)
        forward, backward = (passes(name, resolved, SHAPE, d).total for d in ("fwd", "bwd"))
        label = name + (f"[backward={params['backward']}]" if params else "")
        cells = [f"{p:.3g}" for p in (forward, backward, forward + backward)]
        for form in FORMATS:
            moved = traffic(name, resolved, SHAPE, "float32", "fwd_bwd", form=form).moved
            cells.append(units.size(moved))
        yield f"| `{label}` | {' | '.join(cells)} |"


_MODES: tuple[dict[str, ParamValue], ...] = tuple(
    {"backward": mode} for mode in ("exact", "sampled", "detached")
)
_CASES: list[tuple[str, dict[str, ParamValue]]] = [
    *((name, params) for name in SAMPLED for params in _MODES),
    *((name, {}) for name in FULL),
]
"""What the traffic model knows."""


def kept_runs(docs: Path) -> list[Run]:
    """The runs that are kept beside the documentation, by name."""
    return [load(plan.parent) for plan in sorted(docs.glob(f"measurements/*/{PLAN}"))]


def main() -> None:
    """Writes every page into the folder that is given, docs where none is."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    (folder / "normalizers.md").write_text(normalizers_page(), encoding="utf-8")
    runs = kept_runs(folder)
    (folder / "performance.md").write_text(performance_page(runs), encoding="utf-8")
    for run in runs:
        assert run.path is not None
        write_page(run.path)


if __name__ == "__main__":
    main()
