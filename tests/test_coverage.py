"""The statistics on machines whose truth is known: coverage, false alarms, detection.

Each bound is one that a less careful statistic misses, and the tests show that one missing it.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from sbnbench.machines import MACHINES, execute
from sbnbench.rival_rules import RULES
from sbnbench.simulate import (
    coverage,
    estimators,
    naive_coverage,
    stopped_coverage,
    verdicts,
)
from sbnbench.statistics import between, centre, decide, log_ratios, paired_ratio, ratio_of

WALK = MACHINES["random walk"]


@pytest.mark.parametrize("name", MACHINES)
def test_95_percent_intervals_hold_the_truth_in_93_to_97_percent(name: str) -> None:
    found = coverage(MACHINES[name], np.random.default_rng(1), processes=5)
    assert 0.93 <= found.share <= 0.97
    assert found.half < 0.025


@pytest.mark.slow
@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("processes", [2, 3, 8, 12])
def test_coverage_with_any_number_of_processes(name: str, processes: int) -> None:
    found = coverage(MACHINES[name], np.random.default_rng(2), processes, runs=4000)
    assert 0.93 <= found.share <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("rounds", [20, 60])
def test_one_process_covers_its_rounds(name: str, rounds: int) -> None:
    """With heavy tails it errs on the wide side: stretches are less precise than their sum."""
    found = coverage(MACHINES[name], np.random.default_rng(3), 1, rounds=rounds)
    assert 0.93 <= found.share <= 0.99


@pytest.mark.parametrize("rule", ["one level", "unpaired"])
@pytest.mark.parametrize("name", ["undisturbed", "random walk", "steps"])
def test_naive_intervals_do_not_pass(rule: str, name: str) -> None:
    assert naive_coverage(MACHINES[name], np.random.default_rng(1), rule).share < 0.6


def test_the_simulation_measures_what_users_call() -> None:
    baseline, contender = execute(WALK, np.random.default_rng(0), ratio=0.9, runs=3)
    value, half = between(centre(np.log(baseline / contender)))
    for i in range(3):
        found = paired_ratio(baseline[i].tolist(), contender[i].tolist())
        assert found.value == pytest.approx(math.exp(value[i]))
        assert found.high == pytest.approx(math.exp(value[i] + half[i]))


def test_mirrored_order_and_hodges_lehmann_keep_the_order_of_a_pair_out() -> None:
    machine, rng = MACHINES["second is faster"], np.random.default_rng(1)
    mirrored, fresh = (estimators(machine, rng, order) for order in ("mirrored", "random"))
    assert mirrored["Hodges–Lehmann"] < 0.0025 < mirrored["median"]
    assert fresh["Hodges–Lehmann"] > 1.5 * mirrored["Hodges–Lehmann"]
    assert fresh["median"] > 0.05


@pytest.mark.parametrize(("threshold", "found"), [(0.05, 0.96), (0.025, 0.90)])
def test_a_gate_finds_twice_its_threshold_and_lets_equals_pass(
    threshold: float, found: float
) -> None:
    rng = np.random.default_rng(1)
    same = verdicts(WALK, rng, threshold, 0.0, runs=300)
    slow = verdicts(WALK, rng, threshold, 2 * threshold, runs=300)
    assert same["SLOWER"] + same["FASTER"] <= 0.02
    assert same["UNCLEAR"] <= 0.10
    assert slow["SLOWER"] >= found
    assert slow["UNCLEAR"] <= 0.10
    assert same["processes"] < 7 > slow["processes"]


def test_one_process_would_raise_false_alarms() -> None:
    times = execute(
        WALK, np.random.default_rng(1), runs=300, processes=1, rounds=600, placement=(0.015, 0.015)
    )
    alarms = 0
    for baseline, contender in zip(*times, strict=True):
        alarms += decide(paired_ratio(baseline.tolist(), contender.tolist()), 0.025)[0] in (
            "FASTER",
            "SLOWER",
        )
    assert alarms / 300 > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.05, 0.025])
def test_gates_on_bad_machines_say_unclear_before_they_err(threshold: float) -> None:
    worse = {"placement": (1.2 * threshold, 1.2 * threshold), "runs": 400}
    same = verdicts(WALK, np.random.default_rng(1), threshold, 0.0, **worse)
    slow = verdicts(WALK, np.random.default_rng(1), threshold, 2 * threshold, **worse)
    assert same["SLOWER"] + same["FASTER"] <= 0.02
    assert same["UNCLEAR"] > 0.3
    assert slow["FASTER"] == 0
    assert slow["SLOWER"] > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("deviation", [0.003, 0.006, 0.01])
def test_stopping_on_precision_costs_little_coverage(deviation: float) -> None:
    found, processes = stopped_coverage(
        WALK,
        np.random.default_rng(1),
        min_processes=5,
        placement=(deviation, deviation),
        stray=0.0,
        runs=600,
    )
    assert 0.92 <= found.share <= 0.97
    assert 5 <= processes < 9


@pytest.mark.slow
def test_other_tools_alarm_where_pairs_do_not() -> None:
    rng, runs = np.random.default_rng(1), 100
    before, after = execute(
        WALK, rng, runs=runs, processes=1, rounds=100, placement=(0, 0), stray=0, order="apart"
    )
    pairs = execute(WALK, rng, runs=runs, processes=1, rounds=100, placement=(0, 0), stray=0)
    for rule in RULES.values():
        assert sum(rule(b[0], a[0]) for b, a in zip(before, after, strict=True)) > runs / 8
    ours = [ratio_of(log_ratios(b.tolist(), c.tolist())) for b, c in zip(*pairs, strict=True)]
    assert all(decide(estimate, 0.05)[0] == "SAME" for estimate in ours)
