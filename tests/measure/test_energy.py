"""Joules a call from a counter that moves seldom."""

from __future__ import annotations

from typing import Any

import pytest

from sbnbench.measure.energy import joules_a_call


class Counter:
    """A GPU that consumes 300 W; its counter moves every 0.09 s of a clock that calls move."""

    def __init__(self, every: float = 0.09) -> None:
        self.now = 0.0
        self.every = every
        self.lost_at = float("inf")

    def call(self) -> None:
        self.now += 1e-4

    def joules(self) -> float | None:
        if self.now >= self.lost_at:
            return None
        return 300 * self.every * int(self.now / self.every)


def taken(gpu: Any) -> float | None:
    return joules_a_call(gpu, gpu.call, 4, "cuda", now=lambda: gpu.now)


def test_joules_a_call(cuda: Any) -> None:
    """0.1 ms at 300 W; sampled without minding the counter's steps it would be off by a half."""
    assert taken(Counter()) == pytest.approx(0.03, rel=0.02)


def test_it_takes_a_tenth_of_a_second_where_the_counter_moves_often(cuda: Any) -> None:
    gpu = Counter(every=0.002)
    assert taken(gpu) == pytest.approx(0.03, rel=0.02)
    assert 0.1 <= gpu.now < 0.12


def test_a_counter_that_does_not_move_gives_nothing(cuda: Any) -> None:
    assert taken(Counter(every=50.0)) is None


def test_a_gpu_that_is_lost_meanwhile_gives_nothing(cuda: Any) -> None:
    gpu = Counter()
    gpu.lost_at = 0.12
    assert taken(gpu) is None


def test_no_gpu_and_no_counter(cuda: Any) -> None:
    gpu = Counter()
    gpu.lost_at = 0.0
    assert taken(gpu) is None
    assert joules_a_call(None, gpu.call, 4, "cuda") is None
