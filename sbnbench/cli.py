"""The command line. Argument parsing is here and nowhere else.

Heavy modules are imported inside the commands that need them: `--help` and `list` stay quick.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sbnbench.errors import SbnbenchError, UsageError
from sbnbench.options import THRESHOLD, fraction, pairs, split

if TYPE_CHECKING:
    from sbnbench.store import Run

OK, REGRESSION, BAD_INPUT, FAILED_BLOCKS, INCONCLUSIVE = 0, 1, 2, 3, 4
INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

app = typer.Typer(
    name="sbnbench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Is a sampled normalizer faster on your machine, is that real, and how wrong is it?",
    epilog="Start with: [bold]sbnbench run --suite micro-batch[/]",
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        from sbnbench import __version__

        typer.echo(f"sbnbench {__version__}")
        raise typer.Exit


@app.command(
    "list",
    epilog="Examples:\n\n[bold]sbnbench list[/]\n\n[bold]sbnbench list suites[/]\n\n"
    "[bold]sbnbench list normalizers --json[/]",
)
def list_(
    what: Annotated[
        str, typer.Argument(help="normalizers, backends, suites, measures, devices, or all.")
    ] = "all",
    long: Annotated[
        bool, typer.Option("--long", help="Formula, source and parameters of normalizers.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """What is there: normalizers, backends, suites, measures, devices."""
    from sbnbench import console, listing, views

    found = listing.collect(what)
    if as_json:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        views.show_listing(console.make_console(), found, long)


@app.command(
    epilog="Examples:\n\n[bold]sbnbench run --suite micro-batch[/]\n\n"
    "[bold]sbnbench run --suite my.toml --quick[/]\n\n"
    "[bold]sbnbench run --suite sampling-ratio -a batch=8,64 --only 'bn@aten,fs*' "
    "--mode fwd_bwd[/]\n\n[bold]sbnbench run --resume runs/micro-batch-…[/]",
)
def run(
    suite: Annotated[
        str, typer.Option("--suite", "-s", help="A suite's name, or a TOML file of your own.")
    ] = "",
    axis: Annotated[
        list[str] | None,
        typer.Option("-a", "--axis", help="An axis: batch=1,2,4 or batch=\\[pow2]1:64."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only these contenders: names, ids, @backend, globs.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Leave these contenders out.")] = None,
    keyword: Annotated[
        str, typer.Option("-k", help="An expression over block and contender: 'fs and not b'.")
    ] = "",
    mode: Annotated[str, typer.Option(help="Directions: fwd,bwd,fwd_bwd.")] = "",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, float64.")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:0.")] = "",
    clock: Annotated[str, typer.Option(help="auto, perf_counter, cuda-events, cuda-graph.")] = "",
    cache: Annotated[str, typer.Option(help="hot, or cold: caches emptied before.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="The suite's short form.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and stop; imports no torch.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Run directory (default: runs/SUITE-DATE).")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with a run that was stopped.")] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds that one process of a block may take.")
    ] = 600.0,
    threshold: Annotated[
        str, typer.Option(help="Smallest change that counts, for the verdicts.")
    ] = THRESHOLD,
    seed: Annotated[int | None, typer.Option(help="Another order, other positions.")] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", help="Also write the records as JSON.")
    ] = None,
    as_csv: Annotated[
        Path | None, typer.Option("--csv", help="Also write the records as CSV.")
    ] = None,
) -> None:
    """Run a suite: verify, measure, and write a report."""
    from sbnbench import api, console, views
    from sbnbench.plan import Filters

    beyond = fraction(threshold)
    if bool(suite) == bool(resume):
        raise UsageError("give --suite NAME, or --resume RUN; `sbnbench list suites` shows names")
    axes = pairs(axis or [])
    axes |= {k: v for k, v in (("dtype", dtype), ("device", device)) if v}
    filters = Filters(
        axes=axes,
        only=split(only),
        skip=split(skip),
        keyword=keyword,
        directions=split([mode]) if mode else (),
        latency={k: v for k, v in (("clock", clock), ("cache", cache)) if v},
        quick=quick,
        seed=seed,
    )
    plan = api.plan(suite, filters) if suite else api.load(resume or "").plan
    terminal = console.make_console()
    if dry_run:
        views.show_plan(terminal, plan)
        return
    path = resume or out or api.default_path(suite)
    try:
        with console.observer(terminal) as observer:
            found = api.execute_plan(
                plan, path, resume=resume is not None, timeout=timeout, observer=observer
            )
    except KeyboardInterrupt:
        _after_interrupt(path)
        raise typer.Exit(INTERRUPTED) from None
    views.show_results(terminal, found.records, beyond)
    views.show_overhead(terminal, found.environment.get("timing", {}))
    report = found.report(threshold=beyond)
    api.export(found, as_json, as_csv)
    terminal.print(f"report: {report}", markup=False)
    raise typer.Exit(_code(found))


@app.command(epilog="Example: [bold]sbnbench report runs/micro-batch-20260101-120000[/]")
def report(
    path: Annotated[Path, typer.Argument(help="A run directory.")],
    out: Annotated[Path | None, typer.Option(help="Where to write the HTML file.")] = None,
    threshold: Annotated[str, typer.Option(help="Smallest change that counts.")] = THRESHOLD,
    as_markdown: Annotated[
        bool, typer.Option("--md", help="Print a Markdown table instead.")
    ] = False,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write records as JSON.")] = None,
    as_csv: Annotated[Path | None, typer.Option("--csv", help="Write records as CSV.")] = None,
) -> None:
    """Make the report of a run again; needs no torch."""
    from sbnbench import api, console

    found = api.load(path)
    for problem in found.problems:
        console.make_console(stderr=True).print(f"warning: {problem}", markup=False)
    api.export(found, as_json, as_csv)
    if as_markdown:
        from sbnbench_reports import markdown

        typer.echo(markdown.table(found, fraction(threshold)))
        return
    typer.echo(f"report: {found.report(out, fraction(threshold))}")


@app.command(
    epilog="Examples:\n\n[bold]sbnbench gate --against main --suite smoke[/]\n\n"
    "[bold]sbnbench gate --against HEAD~1 --suite my.toml --threshold 2.5% --strict --md[/]\n\n"
    "[bold]sbnbench gate runs/new --against runs/old[/]",
)
def gate(
    run_path: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="A finished run, to compare runs.")
    ] = None,
    against: Annotated[
        str, typer.Option(help="A git revision to measure now, or a run directory.")
    ] = "",
    suite: Annotated[
        str, typer.Option("--suite", "-s", help="What to measure, with a revision.")
    ] = "",
    axis: Annotated[list[str] | None, typer.Option("-a", "--axis", help="As in `run`.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="As in `run`.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="As in `run`.")] = None,
    keyword: Annotated[str, typer.Option("-k", help="As in `run`.")] = "",
    mode: Annotated[str, typer.Option(help="Directions: fwd,bwd,fwd_bwd.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="The suite's short form.")] = False,
    threshold: Annotated[str, typer.Option(help="Smallest change that counts.")] = THRESHOLD,
    seconds: Annotated[
        float, typer.Option(help="Most measuring time for one contender and direction.")
    ] = 20.0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 4 where a verdict is UNCLEAR.")
    ] = False,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Compare runs of other machines or versions.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Decisions as JSON.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--md", help="A Markdown table for a pull request.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="Seconds that one process of a block may take.")
    ] = 600.0,
) -> None:
    """Is any contender slower than it was? Exit 0 no, 1 yes, 3 failures, 4 unclear (--strict)."""
    from sbnbench import api, console, views
    from sbnbench.plan import Filters

    beyond = fraction(threshold)
    if not against or bool(run_path) == bool(suite):
        raise UsageError("give --against REVISION --suite NAME, or RUN --against OTHER_RUN")
    if run_path:
        found = api.gate_runs(run_path, against, beyond, allow_mixed)
    else:
        filters = Filters(
            pairs(axis or []), split(only), split(skip), keyword,
            split([mode]) if mode else (), quick=quick,
        )  # fmt: skip
        terminal = console.make_console(stderr=True)
        found = api.gate_revision(
            suite, against, filters, beyond, seconds, timeout, views.gate_progress(terminal)
        )
    if as_json:
        typer.echo(api.as_json(found))
    elif as_markdown:
        typer.echo(views.gate_markdown(found))
    else:
        views.show_gate(console.make_console(), found)
    raise typer.Exit(found.exit_code(strict))


@app.command(
    epilog="Examples:\n\n[bold]sbnbench kernels fs --arch sm_90[/]\n\n"
    "[bold]sbnbench kernels 'fs\\[backward=sampled]' --input synthetic:256x56x56 --batch 256 "
    "--dtype bfloat16 --gpu h100-sxm[/]"
)
def kernels(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="A contender; all with kernels if left out.")
    ] = "",
    arch: Annotated[str, typer.Option(help="sm_80, sm_90, sm_100, … (default: sm_90).")] = "",
    gpu: Annotated[str, typer.Option(help="Predict for a GPU: a100-80gb, h100-sxm, …")] = "",
    bandwidth: Annotated[
        float | None, typer.Option(help="Predict at a measured bandwidth, in GB/s.")
    ] = None,
    source: Annotated[str, typer.Option("--input", help="synthetic:CxHxW or real:LAYER.")] = (
        "synthetic:64x56x56"
    ),
    batch: Annotated[int, typer.Option(min=1, help="The batch.")] = 32,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    form: Annotated[str, typer.Option("--format", help="contiguous or channels_last.")] = (
        "contiguous"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """What a Triton contender will cost on a GPU that is not here: compiled, not run."""
    from sbnbench import api, console, views

    found = api.kernels(name, source, batch, dtype, form, arch, gpu, bandwidth)
    if as_json:
        typer.echo(api.as_json(found))
    else:
        views.show_kernels(console.make_console(), found)


@app.command(
    epilog="Examples:\n\n[bold]sbnbench doctor[/]\n\n"
    "[bold]sbnbench doctor --noise --trials 50 --threshold 2.5%[/]"
)
def doctor(
    noise: Annotated[
        bool, typer.Option("--noise", help="Try decisions on this machine: A/A and A/B.")
    ] = False,
    trials: Annotated[int, typer.Option(min=1, help="Decisions of each kind.")] = 10,
    threshold: Annotated[
        str, typer.Option(help="Threshold of the decisions; twice it is planted.")
    ] = THRESHOLD,
    seconds: Annotated[float, typer.Option(help="Most measuring time for a decision.")] = 6.0,
    contender: Annotated[str, typer.Option(help="What is measured.")] = "bn@aten",
    source: Annotated[str, typer.Option("--input", help="Its input.")] = "synthetic:64x28x28",
    batch: Annotated[int, typer.Option(min=1, help="Its batch.")] = 32,
    rivals: Annotated[
        bool, typer.Option("--rivals/--no-rivals", help="Also try other tools' rules.")
    ] = True,
    busy: Annotated[
        int, typer.Option(min=0, help="Keep so many cores busy, as neighbours would.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON on standard output.")] = False,
) -> None:
    """What is installed, what is available here, and what this machine can decide."""
    from sbnbench import console, diagnosis, views

    if noise:
        from sbnbench import api

        found_noise = api.noise(
            contender, source, batch, trials, fraction(threshold), seconds, rivals, busy,
            views.noise_progress(console.make_console(stderr=True)),
        )  # fmt: skip
        if as_json:
            typer.echo(api.as_json(found_noise))
        else:
            views.show_noise(console.make_console(), found_noise)
        return
    found = diagnosis.collect()
    if as_json:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        views.show_diagnosis(console.make_console(), found)


def _after_interrupt(path: Path) -> None:
    from sbnbench import api, console

    terminal = console.make_console(stderr=True)
    try:
        found = api.load(path)
    except SbnbenchError:
        terminal.print("stopped before anything was measured", markup=False)
        return
    done = len(found.plan.blocks) - len(found.missing())
    terminal.print(
        f"stopped: {done} of {len(found.plan.blocks)} blocks are kept; "
        f"go on with: sbnbench run --resume {path}",
        markup=False,
        soft_wrap=True,
    )


def _code(found: Run) -> int:
    from sbnbench.model import FAILED

    return FAILED_BLOCKS if any(r.status in FAILED for r in found.records) else OK


def main() -> None:
    """Run the command line; every mistake of a user ends in one or two lines and exit code 2."""
    try:
        app()
    except SbnbenchError as error:
        print(f"sbnbench: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe has gone: nothing left to say
        sys.stderr.close()
        sys.exit(OK)
