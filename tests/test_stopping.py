"""Stopping rules and calibration."""

from __future__ import annotations

import pytest

from sbnbench.stopping import calibrate


@pytest.mark.parametrize(("cost", "loops"), [(1e-3, 1), (1e-4, 4), (1e-6, 512)])
def test_loops_double_until_a_sample_is_long_enough(cost: float, loops: int) -> None:
    assert calibrate(lambda n: n * cost, target=4e-4, resolution=1e-9) == loops


def test_a_coarse_clock_needs_longer_samples() -> None:
    assert calibrate(lambda n: n * 1e-3, target=4e-4, resolution=1e-5) == 16


def test_a_preemption_does_not_pass_for_a_long_sample() -> None:
    calls = iter([1.0])
    assert calibrate(lambda n: n * 1e-4 + next(calls, 0.0), target=4e-4, resolution=1e-9) == 4
