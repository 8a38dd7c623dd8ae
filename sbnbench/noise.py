"""How noisy is this machine, and what can be decided on it? Prints nothing.

Trials of two kinds in random order: a contender against itself (A/A), which must not be called
different, and against itself with a known slow-down (A/B), which must be found. Both go the way a
gate goes. The rules of other tools judge the same contender from runs made one after the other,
as those tools do, in between the same trials.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from random import Random
from time import monotonic

import msgspec
import numpy as np

from sbnbench import rival_rules
from sbnbench.blocks import DEFAULT_TIMEOUT
from sbnbench.duel import duel
from sbnbench.errors import SbnbenchError
from sbnbench.messages import Ended, Enough, Failed, Prepared, Taken, Task, Turn
from sbnbench.model import Block
from sbnbench.pool import Worker
from sbnbench.statistics import Verdict, between, centre, log_ratios
from sbnbench.stopping import UntilClear

RIVAL_SECONDS = 2.0
"""Length of a rival's run: what those tools spend on a benchmark of milliseconds by default."""

BUDGETS = (10.0, 30.0, 60.0)
POWER = 0.95
MOST_PROCESSES = 200
DRAWS = 4000
"""Simulated decisions: the 95th percentile of so many is good to some two per cent."""


class Trial(msgspec.Struct, frozen=True):
    """One decision on a known truth. `slowdown` 0 is A/A; `change` is log(before/after)."""

    slowdown: float
    verdict: Verdict
    reason: str
    change: float
    seconds: float
    processes: int


class RivalTrial(msgspec.Struct, frozen=True):
    """What another tool's rule said: did it call the second run slower?"""

    rule: str
    slowdown: float
    slower: bool


class Noise(msgspec.Struct, frozen=True):
    """All trials, and what they come to."""

    contender: str
    workload: str
    threshold: float
    slowdown: float
    busy: int
    trials: tuple[Trial, ...]
    rivals: tuple[RivalTrial, ...]
    resolves: tuple[tuple[float, float], ...]
    """(seconds, threshold): with so much time the machine tells same from changed at so little."""

    def rows(self) -> list[tuple[str, int, int, int, int, int]]:
        """Rule, A/A trials, false alarms, A/B trials, found, unclear of both."""
        same = [t for t in self.trials if not t.slowdown]
        slower = [t for t in self.trials if t.slowdown]
        ours = (
            f"sbnbench, threshold {self.threshold:.3g}",
            len(same),
            sum(t.verdict in ("FASTER", "SLOWER") for t in same),
            len(slower),
            sum(t.verdict == "SLOWER" for t in slower),
            sum(t.verdict == "UNCLEAR" for t in self.trials),
        )
        rows = [ours]
        for rule in dict.fromkeys(t.rule for t in self.rivals):
            a = [t.slower for t in self.rivals if t.rule == rule and not t.slowdown]
            b = [t.slower for t in self.rivals if t.rule == rule and t.slowdown]
            rows.append((rule, len(a), sum(a), len(b), sum(b), 0))
        return rows


def examine(
    block: Block,
    worker: Worker,
    *,
    trials: int,
    threshold: float,
    seconds: float,
    rivals: bool,
    busy: int = 0,
    seed: int = 0,
    on_trial: Callable[[int, int, Trial], None] = lambda done, total, trial: None,
) -> Noise:
    """`trials` decisions of each kind on a block made by `duel.pair`, contender = baseline.

    The planted slow-down is twice the threshold. `busy` keeps that many cores busy meanwhile.
    """
    rule = UntilClear.at(threshold, seconds)
    slowdown = 2 * threshold
    kinds = [0.0, slowdown] * trials
    Random(seed).shuffle(kinds)
    done: list[Trial] = []
    theirs: list[RivalTrial] = []
    spreads: list[tuple[int, float]] = []
    lasted: list[float] = []
    with busy_cores(busy):
        for number, planted in enumerate(kinds):
            start = monotonic()
            found = duel(block, rule, worker, slowdown=planted, seed=seed + number)
            ratio = found.record.estimates.get("ratio")
            if ratio is None:
                raise SbnbenchError(f"the contender could not be measured: {found.reason}")
            spent = monotonic() - start
            trial = Trial(
                planted, found.verdict, found.reason, math.log(ratio.value), spent, found.processes
            )
            done.append(trial)
            samples = found.record.samples
            ratios = log_ratios(samples["baseline"], samples["time"])
            spreads.append((len(ratios) - 1, float(np.var([centre(r) for r in ratios], ddof=1))))
            lasted.append(spent / found.processes)
            if rivals:
                theirs += _rivals(block, worker, planted, seed + number)
            on_trial(number + 1, len(kinds), trial)
    contender = block.contenders[0].id
    w = block.workload
    workload = f"{w.layer}, batch {w.batch}, {w.dtype}, {block.directions[0]}"
    resolves = tuple((t, resolution(spreads, float(np.median(lasted)), t)) for t in BUDGETS)
    return Noise(
        contender, workload, threshold, slowdown, busy, tuple(done), tuple(theirs), resolves
    )


def resolution(spreads: Sequence[tuple[int, float]], process: float, seconds: float) -> float:
    """The smallest threshold at which a decision of `seconds` holds on this machine.

    At it, an unchanged contender is called SAME and one changed by twice as much is found, each
    with 95 % probability. From the variance between processes, pooled over the trials (`spreads`:
    degrees of freedom and variance of each): with the interval of `seconds/process` normal
    processes, drawn many times, the estimate's error and the half-width together must stay within
    log(1 + threshold), which by the rule of `statistics.decide` is enough for both.
    """
    freedom = sum(n for n, _ in spreads)
    deviation = math.sqrt(sum(n * v for n, v in spreads) / freedom)
    count = min(MOST_PROCESSES, max(2, int(seconds / process)))
    centres = np.random.default_rng(0).normal(0, deviation, (DRAWS, count))
    value, half = between(centres)
    return math.expm1(float(np.quantile(np.abs(value) + half, POWER)))


def _rivals(block: Block, worker: Worker, slowdown: float, seed: int) -> list[RivalTrial]:
    """Two runs one after the other, each in a process of its own, judged by each tool's rule."""
    before = _run_alone(block, worker, 0.0, seed)
    after = _run_alone(block, worker, slowdown, seed)
    return [
        RivalTrial(name, slowdown, _called_slower(rule, before, after))
        for name, rule in rival_rules.RULES.items()
    ]


def _called_slower(rule: rival_rules.Rule, before: list[float], after: list[float]) -> bool:
    try:
        return rule(before, after)
    except ValueError:  # too few samples for its test: it calls nothing
        return False


def _run_alone(block: Block, worker: Worker, slowdown: float, seed: int) -> list[float]:
    """Seconds an execution, sample by sample, of the contender alone for RIVAL_SECONDS."""
    contender, direction = block.contenders[0].id, block.directions[0]
    # Not the first process: that one would verify.
    task = Task(block, 1, seed, (contender,), turns=True, slowdown=slowdown)
    executions = Fraction(1 + slowdown).limit_denominator(100).denominator
    taken: list[float] = []
    turn: Turn | None = None
    end = math.inf
    for event in worker.ask(task, DEFAULT_TIMEOUT):
        if isinstance(event, Prepared) and event.loops:
            turn = Turn(contender, direction, event.loops)
        elif isinstance(event, Prepared) and turn is not None:
            end = monotonic() + RIVAL_SECONDS
            worker.tell(turn)
        elif isinstance(event, Taken) and turn is not None:
            taken.append(event.time / executions)
            worker.tell(turn if monotonic() < end else Enough())
        elif isinstance(event, Failed) or (isinstance(event, Ended) and event.code):
            raise SbnbenchError("the contender could not be measured alone")
    return taken


@contextlib.contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """`count` processes that compute without a pause, ended afterwards."""
    # In small pieces, so that they end soon after their parent should it be killed.
    code = "import os\np = os.getppid()\nwhile os.getppid() == p: sum(range(100_000))"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
