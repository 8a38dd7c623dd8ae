"""When a demand on a ratio is settled."""

from __future__ import annotations

import numpy as np
import pytest

from sbnbench.limit import Limit, UntilSettled
from sbnbench.model import Estimate
from sbnbench.statistics import decide


def estimate(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, low, high)


@pytest.mark.parametrize(
    ("least", "found", "answer"),
    [
        (1.2, (1.25, 1.10, 1.40), "KEPT"),  # beyond the limit, all of it beyond its root
        (1.2, (1.25, 1.09, 1.40), "UNCLEAR"),
        (1.2, (1.19, 1.15, 1.23), "UNCLEAR"),
        (1.2, (1.10, 1.02, 1.19), "BROKEN"),
        (1.2, (0.70, 0.40, 1.10), "BROKEN"),
        (1 / 1.05, (0.94, 0.92, 0.97), "BROKEN"),
        (1 / 1.05, (0.94, 0.90, 0.98), "UNCLEAR"),
        (1 / 1.05, (0.96, 0.954, 0.97), "KEPT"),
        (1 / 1.05, (1.00, 0.97, 1.30), "KEPT"),  # wide, but not towards slower
        (1 / 1.05, (1.00, 0.90, 1.10), "UNCLEAR"),
        (0.5, (0.45, 0.40, 0.50), "BROKEN"),
        (0.5, (0.60, 0.51, 0.70), "KEPT"),
    ],
)
def test_an_answer_needs_an_interval_on_one_side(
    least: float, found: tuple[float, float, float], answer: str
) -> None:
    assert Limit(least).judge(estimate(*found))[0] == answer


def test_without_an_interval_nothing_is_settled() -> None:
    assert Limit(1.2).judge(Estimate(9.0))[0] == "UNCLEAR"
    assert Limit(0.9).judge(Estimate(0.1))[0] == "UNCLEAR"


def test_it_agrees_with_the_verdicts() -> None:
    """FASTER keeps "at least 1.05", SLOWER breaks "at least 1/1.05"; SAME does the opposite."""
    chance = np.random.default_rng(0)
    faster, slower = Limit(1.05), Limit(1 / 1.05)
    seen = set()
    for _ in range(2000):
        value, half = np.exp(chance.normal(0, 0.06)), np.exp(abs(chance.normal(0, 0.03)))
        found = estimate(value, value / half, value * half)
        verdict, _ = decide(found, 0.05)
        seen.add(verdict)
        assert (faster.judge(found)[0] == "KEPT") == (verdict == "FASTER")
        assert (slower.judge(found)[0] == "BROKEN") == (verdict == "SLOWER")
        if verdict == "SAME":
            assert faster.judge(found)[0] == "BROKEN"
            assert slower.judge(found)[0] == "KEPT"
    assert seen == {"FASTER", "SLOWER", "SAME", "UNCLEAR"}


def test_measuring_goes_on_until_the_limit_is_settled() -> None:
    rule = UntilSettled.of(Limit(1 / 1.05), max_seconds=10.0)
    chance = np.random.default_rng(1)

    def processes(centre: float, spread: float, n: int = 5) -> list[np.ndarray]:
        centres = centre + spread * np.linspace(-1, 1, n)
        return [c + 0.001 * chance.normal(size=40) for c in centres]

    assert rule.enough_processes(processes(0.0, 0.15), 1.0) is None
    assert rule.enough_processes(processes(0.0, 0.001, n=4), 1.0) is None
    stop = rule.enough_processes(processes(0.0, 0.001), 1.0)
    assert stop is not None
    assert stop.reached
    assert stop.reason.startswith("KEPT")
    late = rule.enough_processes(processes(0.0, 0.15), 10.0)
    assert late is not None
    assert not late.reached
