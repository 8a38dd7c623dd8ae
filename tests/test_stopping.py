"""Stopping rules and the calibration of inner loops, on a clock that only these tests move."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sbnbench.model import Estimate
from sbnbench.stopping import Precision, UntilClear, calibrate, half_width

RULE = Precision(target=0.01, max_seconds=5.0, min_processes=5, max_processes=8)


def rounds(n: int, *, at: float = 0.0, sd: float = 0.01, seed: int = 0) -> np.ndarray:
    return at + sd * np.random.default_rng(seed).normal(size=n)


class FakeClock:
    """A clock with steps, and a call that costs `cost` and is now and then preempted."""

    def __init__(self, cost: float, step: float = 1e-9, preempted: tuple[int, ...] = ()) -> None:
        self.cost, self.step, self.preempted, self.samples = cost, step, preempted, 0

    def time_of(self, loops: int) -> float:
        late = 0.01 if self.samples in self.preempted else 0.0
        self.samples += 1
        return math.floor((loops * self.cost + late) / self.step) * self.step


@pytest.mark.parametrize(("cost", "loops"), [(1e-3, 1), (1e-4, 4), (1e-6, 512), (1.0, 1)])
def test_loops_double_until_a_sample_is_long_enough(cost: float, loops: int) -> None:
    assert calibrate(FakeClock(cost).time_of, target=4e-4, resolution=1e-9) == loops


def test_the_clock_blurs_at_most_a_thousandth() -> None:
    clock = FakeClock(cost=1e-5, step=1e-6)
    loops = calibrate(clock.time_of, target=0.0, resolution=1e-6)
    assert loops == 128
    assert clock.step / clock.time_of(loops) <= 0.001


@pytest.mark.parametrize("preempted", [(0,), (1,), (0, 1), (0, 4)])
def test_a_preemption_does_not_pass_for_a_long_sample(preempted: tuple[int, ...]) -> None:
    clock = FakeClock(cost=1e-4, preempted=preempted)
    assert calibrate(clock.time_of, target=4e-4, resolution=1e-9) == 4


def test_a_clock_that_stands_still_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not advance"):
        calibrate(lambda loops: 0.0, target=4e-4, resolution=1e-9)


def test_rounds_go_on_until_they_are_precise() -> None:
    x = rounds(400)
    assert RULE.enough_rounds(x[:9], 0.0) is None
    assert RULE.enough_rounds(rounds(20, sd=0.1), 0.0) is None
    stop = RULE.enough_rounds(x, 0.0)
    assert stop is not None
    assert stop.reached


def test_rounds_end_with_the_process_share_of_the_time() -> None:
    noisy = rounds(20, sd=0.3)
    assert RULE.enough_rounds(noisy, 0.99) is None
    stop = RULE.enough_rounds(noisy, 1.0)
    assert stop is not None
    assert not stop.reached
    assert "time is up" in stop.reason


def test_the_fewest_rounds_are_measured_even_when_time_is_up() -> None:
    assert RULE.enough_rounds(rounds(9), 100.0) is None


def test_precise_rounds_leave_most_of_the_target_to_processes() -> None:
    centres = (
        RULE.rounds_error
        * np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
        / np.std([-1.0, -0.5, 0.0, 0.5, 1.0], ddof=1)
    )
    processes = [np.full(20, c) for c in centres]
    stop = RULE.enough_processes(processes, 0.0)
    assert stop is not None
    assert stop.reason == "precise to 0.5 %"


def test_processes_go_on_until_the_interval_is_narrow() -> None:
    near = [rounds(60, at=a, seed=i) for i, a in enumerate((0.0, 0.001, -0.001, 0.0, 0.0))]
    far = [rounds(60, at=a, seed=i) for i, a in enumerate((0.0, 0.01, -0.01, 0.03, 0.0))]
    assert RULE.enough_processes(near[:4], 0.0) is None
    stop = RULE.enough_processes(near, 0.0)
    assert stop is not None
    assert stop.reached
    assert RULE.enough_processes(far, 0.0) is None


def test_at_the_end_it_says_what_is_wanted() -> None:
    far = [rounds(60, at=0.05 * (-1) ** i, seed=i) for i in range(8)]
    stop = RULE.enough_processes(far, 0.0)
    assert stop is not None
    assert not stop.reached
    assert "8 processes" in stop.reason
    assert "more processes are wanted" in stop.reason
    noisy = [rounds(60, sd=0.3, seed=i) for i in range(5)]
    assert RULE.enough_processes(noisy, 4.9) is None
    stop = RULE.enough_processes(noisy, 5.0)
    assert stop is not None
    assert "time is up" in stop.reason
    assert "more time" in stop.reason


def test_it_does_not_stop_because_a_difference_is_significant() -> None:
    """A tenfold speed-up that is known to 3 %: certain, and not yet precise."""
    sure = [rounds(60, at=2.3 + a, seed=i) for i, a in enumerate((0.0, 0.02, -0.03, 0.02, 0.0))]
    assert RULE.enough_processes(sure, 0.0) is None


def test_a_gate_goes_on_only_while_it_is_unclear() -> None:
    gate = UntilClear.at(0.05)
    sure = [rounds(60, at=2.3 + a, seed=i) for i, a in enumerate((0.0, 0.02, -0.03, 0.02, 0.0))]
    stop = gate.enough_processes(sure, 0.0)
    assert stop is not None
    assert stop.reached
    assert stop.reason.startswith("FASTER")
    edge = [rounds(60, at=0.045 + a, seed=i) for i, a in enumerate((0.0, 0.02, -0.03, 0.02, 0.0))]
    assert gate.enough_processes(edge, 0.0) is None
    assert gate.target == 0.025


def test_half_width_is_relative() -> None:
    assert half_width(Estimate(1.0, math.exp(-0.02), math.exp(0.02))) == pytest.approx(0.02)
    assert half_width(Estimate(1.0)) == math.inf
