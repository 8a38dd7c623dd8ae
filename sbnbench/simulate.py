"""What the statistics make of machines whose truth is known: `python -m sbnbench.simulate`.

Prints the tables of docs/how-the-numbers-are-made.md as Markdown. Seeded: it always prints the
same figures.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import msgspec
import numpy as np
from numpy.random import Generator
from scipy import stats

from sbnbench.machines import MACHINES, Machine, Order, execute
from sbnbench.model import Estimate
from sbnbench.statistics import Array, between, centre, decide, ratio_of
from sbnbench.stopping import Precision, UntilClear, half_width

RATIO = 1 / 1.1
"""The true ratio: a contender that takes 10 % longer."""

ROUNDS_ALONE: dict[str, Any] = {"placement": (0.0, 0.0), "stray": 0.0}
"""Options of a machine on which processes do not differ."""


class Coverage(msgspec.Struct, frozen=True):
    """Of 95 % intervals: the share that hold the truth, and their median half-width, in logs."""

    share: float
    half: float


def coverage(
    machine: Machine, rng: Generator, processes: int, runs: int = 1000, rounds: int = 60
) -> Coverage:
    """Of `paired_ratio`. A single process is without placement, which it does not claim to see."""
    if processes == 1:
        x = _log_ratios(machine, rng, runs=runs, processes=1, rounds=rounds, **ROUNDS_ALONE)
        return _covers(*_logs([ratio_of(list(run)) for run in x]))
    x = _log_ratios(machine, rng, runs=runs, processes=processes, rounds=rounds)
    return _covers(*between(centre(x)))


def naive_coverage(machine: Machine, rng: Generator, rule: str, runs: int = 1000) -> Coverage:
    """Of intervals that leave out one of the two precautions, with five processes of 60 rounds.

    one level: the mean of all log-ratios, as if the rounds of a process were independent.
    unpaired: the difference of mean log-times, the contender measured after the baseline.
    """
    order: Order = "apart" if rule == "unpaired" else "mirrored"
    times = execute(machine, rng, ratio=RATIO, runs=runs, order=order)
    baseline, contender = (np.log(t).reshape(runs, -1) for t in times)
    n = baseline.shape[-1]
    value = baseline.mean(-1) - contender.mean(-1)
    if rule == "one level":
        variance = (baseline - contender).var(-1, ddof=1)
    else:
        variance = baseline.var(-1, ddof=1) + contender.var(-1, ddof=1)
    return _covers(value, stats.norm.ppf(0.975) * np.sqrt(variance / n))


def estimators(
    machine: Machine, rng: Generator, order: Order = "mirrored", runs: int = 1000, rounds: int = 60
) -> dict[str, float]:
    """Root mean square error, in logs, of the centre of one process, by estimator."""
    x = _log_ratios(
        machine, rng, runs=runs, processes=1, rounds=rounds, order=order, **ROUNDS_ALONE
    )[:, 0]
    found = {
        "Hodges–Lehmann": centre(x),
        "25 % trimmed mean": stats.trim_mean(x, 0.25, axis=1),
        "median": np.median(x, axis=1),
        "mean": x.mean(axis=1),
    }
    return {k: float(np.sqrt(np.mean((v - math.log(RATIO)) ** 2))) for k, v in found.items()}


def verdicts(
    machine: Machine,
    rng: Generator,
    threshold: float,
    slowdown: float,
    runs: int = 1000,
    **options: Any,
) -> dict[str, float]:
    """Shares of the verdicts of `UntilClear` where the contender takes 1 + slowdown as long.

    The entry `processes` is their mean number.
    """
    rule = UntilClear.at(threshold)
    options = {"runs": runs, "processes": rule.max_processes, "ratio": 1 / (1 + slowdown)} | options
    seen: dict[str, float] = defaultdict(float)
    for run in _log_ratios(machine, rng, **options):
        n = _processes_used(rule, list(run))
        seen[decide(ratio_of(list(run[:n])), threshold)[0]] += 1 / runs
        seen["processes"] += n / runs
    return seen


def stopped_coverage(
    machine: Machine, rng: Generator, min_processes: int, runs: int = 1000, **options: Any
) -> tuple[Coverage, float]:
    """Coverage where `Precision` chose rounds and processes, and the mean number of processes."""
    rule = Precision(min_processes=min_processes, max_seconds=math.inf)
    options = {"runs": runs, "processes": rule.max_processes} | options
    found, used = [], 0.0
    for run in _log_ratios(machine, rng, **options):
        kept = [process[: _rounds_used(rule, process)] for process in run]
        n = _processes_used(rule, kept)
        found.append(ratio_of(kept[:n]))
        used += n / runs
    return _covers(*_logs(found)), used


def _log_ratios(machine: Machine, rng: Generator, **options: Any) -> Array:
    baseline, contender = execute(machine, rng, **{"ratio": RATIO} | options)
    return np.asarray(np.log(baseline / contender))


def _rounds_used(rule: Precision, ratios: Array) -> int:
    """Rounds after which the rule ends a process that asks after every twenty."""
    asked = range(20, len(ratios), 20)
    return next((n for n in asked if rule.enough_rounds(ratios[:n], 0.0)), len(ratios))


def _processes_used(rule: Precision, processes: list[Array]) -> int:
    """Processes after which the rule ends a measurement."""
    asked = range(1, len(processes))
    return next((n for n in asked if rule.enough_processes(processes[:n], 0.0)), len(processes))


def _logs(estimates: list[Estimate]) -> tuple[Array, Array]:
    """Logs of values and half-widths."""
    return np.log([e.value for e in estimates]), np.array([half_width(e) for e in estimates])


def _covers(value: Array, half: Array) -> Coverage:
    holds = np.abs(value - math.log(RATIO)) <= half
    return Coverage(float(np.mean(holds)), float(np.median(half)))


def _print(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}\n")
    for line in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(line)} |")


def print_coverage(rng: Generator) -> None:
    numbers, naive = (1, 3, 5, 8, 12), ("one level", "unpaired")
    rows = []
    for name, machine in MACHINES.items():
        found = {n: coverage(machine, rng, n, 4000) for n in numbers}
        others = [naive_coverage(machine, rng, rule, 4000) for rule in naive]
        shares = [f"{100 * c.share:.1f}" for c in (*found.values(), *others)]
        rows.append([name, *shares, f"{100 * found[5].half:.2g} %"])
    _print(
        "Coverage of 95 % intervals, %, by processes; naive intervals with five; 4000 runs",
        ["machine", *map(str, numbers), *naive, "half-width with 5"],
        rows,
    )


def print_estimators(rng: Generator) -> None:
    rows, names = [], ["machine"]
    for name, machine in MACHINES.items():
        found = estimators(machine, rng)
        fresh = estimators(machine, rng, "random")
        rows.append([name, *(f"{100 * v:.2f}" for v in (*found.values(), *fresh.values()))])
        names = [*found, *(f"{k}, random order" for k in fresh)]
    _print(
        "Error of one process's centre, root mean square in %, 60 rounds, 1000 runs",
        ["machine", *names],
        rows,
    )


def print_verdicts(rng: Generator) -> None:
    words = ("SLOWER", "SAME", "UNCLEAR", "FASTER")
    disturbed = MACHINES["random walk"]
    cases: dict[str, tuple[Machine, dict[str, Any]]] = {
        "random walk": (disturbed, {}),
        "all of them, 200 rounds": (MACHINES["all of them"], {"rounds": 200}),
        "random walk, processes 3 % apart": (disturbed, {"placement": (0.03, 0.03)}),
    }
    rows = []
    for threshold in (0.05, 0.025):
        for name, (machine, options) in cases.items():
            for times in (0.0, 0.5, 0.8, 1.0, 1.2, 2.0):
                slowdown = times * threshold
                seen = verdicts(machine, rng, threshold, slowdown, 300, **options)
                rows.append(
                    [f"{100 * threshold:.3g} %", name, f"{100 * slowdown:.3g} %"]
                    + [f"{100 * seen[word]:.1f}" for word in words]
                    + [f"{seen['processes']:.1f}"]
                )
    _print(
        "Verdicts of `UntilClear`, %, with five to twelve processes, 300 runs",
        ["threshold", "machine", "truly slower by", *words, "processes"],
        rows,
    )


def print_stopped(rng: Generator) -> None:
    rows = []
    for deviation in (0.002, 0.004, 0.006, 0.008, 0.01, 0.0125, 0.015):
        row = [f"{100 * deviation:.3g} %"]
        for fewest in (3, 5):
            found, processes = stopped_coverage(
                MACHINES["random walk"],
                rng,
                fewest,
                1000,
                placement=(deviation, deviation),
                stray=0.0,
            )
            row += [f"{100 * found.share:.1f}", f"{100 * found.half:.2g} %", f"{processes:.1f}"]
        rows.append(row)
    head = [f"{word}, from {n}" for n in (3, 5) for word in ("coverage", "half-width", "processes")]
    _print(
        "Coverage where `Precision` stopped (1 %, at most twelve processes), %, 1000 runs",
        ["processes' deviation", *head],
        rows,
    )


if __name__ == "__main__":
    for table in (print_coverage, print_estimators, print_verdicts, print_stopped):
        table(np.random.default_rng(1))
