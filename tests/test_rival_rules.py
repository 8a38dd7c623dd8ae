"""Other tools' rules, on samples where their verdict can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sbnbench.rival_rules import RULES, asv, criterion, pytest_benchmark


def sample(centre: float, n: int = 30, sd: float = 0.01, seed: int = 0) -> list[float]:
    return (centre * np.exp(sd * np.random.default_rng(seed).normal(size=n))).tolist()


@pytest.mark.parametrize("name", RULES)
def test_all_find_a_clear_slowdown_and_pass_the_same_times(name: str) -> None:
    before = sample(1.0)
    assert RULES[name](before, sample(1.2, seed=1))
    assert not RULES[name](before, before)
    assert not RULES[name](before, sample(0.8, seed=1))


def test_pytest_benchmark_compares_one_number_with_five_percent() -> None:
    assert not pytest_benchmark([1.0, 1.0], [1.04, 1.05])
    assert pytest_benchmark([1.0, 1.0], [1.05, 1.06])
    assert pytest_benchmark([1.0, 1.0], [1.0, 1.2])
    assert not pytest_benchmark([1.0, 1.0], [1.0, 1.2], field="min")


def test_asv_wants_both_ten_percent_and_the_test() -> None:
    assert not asv(sample(1.0), sample(1.09, seed=1))
    assert asv(sample(1.0), sample(1.12, seed=1))
    assert not asv(sample(1.0, sd=1.0), sample(1.12, sd=1.0, seed=1))
    assert asv(sample(1.0, n=7), sample(1.2, n=7, seed=1))  # p = 2/3432
    with pytest.raises(ValueError, match="few samples"):
        asv(sample(1.0, n=6), sample(1.2, n=6, seed=1))  # p = 2/924


def test_criterion_wants_the_interval_beyond_one_percent() -> None:
    assert not criterion(sample(1.0, sd=0.001), sample(1.009, sd=0.001, seed=1))
    assert criterion(sample(1.0, sd=0.001), sample(1.012, sd=0.001, seed=1))
    assert not criterion(sample(1.0, sd=0.02), sample(1.015, sd=0.02, seed=1))  # reaches below


def test_criterion_wants_the_test_too() -> None:
    """One wild sample of three: every resample's mean is beyond 1 %, and Welch's t is small."""
    assert not criterion(sample(1.0, n=3, sd=0.001), [1.02, 1.02, 3.0])
