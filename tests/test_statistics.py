"""Ratios, intervals and verdicts."""

from __future__ import annotations

import numpy as np
import pytest

from sbnbench.model import Estimate
from sbnbench.statistics import decide, location, paired_ratio


def test_a_known_ratio_survives_drift_and_bursts() -> None:
    rng = np.random.default_rng(1)
    speed = np.exp(0.3 * np.cumsum(rng.normal(0, 0.1, (3, 400)), axis=1))
    contender = speed * np.exp(rng.normal(0, 0.01, speed.shape))
    baseline = 1.1 * speed * np.exp(rng.normal(0, 0.01, speed.shape))
    contender[:, ::10] *= 5
    estimate = paired_ratio(baseline.tolist(), contender.tolist())
    assert estimate.value == pytest.approx(1.1, rel=0.005)
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < 1.1 < estimate.high
    assert location(baseline.tolist()).unit == "s"


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (1.1, 1.08, 1.12, "FASTER"),
        (0.9, 0.88, 0.92, "SLOWER"),
        (1.0, 0.98, 1.02, "SAME"),
        (1.0, 0.9, 1.1, "UNCLEAR"),
        (1.1, 0.99, 1.21, "UNCLEAR"),
    ],
)
def test_verdicts(value: float, low: float, high: float, verdict: str) -> None:
    assert decide(Estimate(value, low, high), 0.05)[0] == verdict
