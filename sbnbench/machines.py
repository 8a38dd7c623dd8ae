"""Synthetic machines on which the statistics are tried, because there the truth is known.

A machine executes a baseline and a contender in rounds, on a clock that its own disturbances move.
Everything is an array over runs × processes, so a thousand runs take well under a second.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sbnbench.statistics import Array

CALL = 1e-3
"""Seconds of an undisturbed call of the baseline."""

PAUSE = 4e-3
"""Seconds between two rounds of a contender: the other contenders' turn."""

NOISE = 0.01
"""Standard deviation of the log of a call's time that nothing explains."""

PLACEMENT = (0.003, 0.015)
"""Standard deviation between processes, log-ratio: each run draws its own from this range."""

STRAY = 0.02
"""Share of processes that are 4 to 12 % off, in either direction."""

Order = Literal["mirrored", "random", "apart"]
"""mirrored: every second round reverses the order that the round before drew; random: each round
draws its own; apart: all rounds of the baseline come before all rounds of the contender."""


class Machine(msgspec.Struct, frozen=True):
    """What disturbs a machine. All zero is an undisturbed one."""

    walk: float = 0.0
    """Random walk of the log of its slowness, per square root of a second."""
    jumps: float = 0.0
    """Jumps a second to another slowness, within ±30 %."""
    bursts: float = 0.0
    """Preemptions a second, of 4 ms on average; the call that one falls into lasts longer."""
    period: float = 0.0
    """Seconds of a periodic interference that makes 2/5 of its period 1.4 times as slow."""
    tails: float = 0.0
    """Scale of log-noise with Student's distribution of 1.5 degrees of freedom: no variance."""
    order: float = 0.0
    """Log of the advantage of the second of a pair, whose data lie in the cache."""


MACHINES: dict[str, Machine] = {
    "undisturbed": Machine(),
    "random walk": Machine(walk=0.3),
    "steps": Machine(jumps=5.0),
    "bursts": Machine(bursts=30.0),
    "periodic": Machine(period=0.05),
    "heavy tails": Machine(tails=0.02),
    "second is faster": Machine(order=0.1),
    "all of them": Machine(0.3, 5.0, 30.0, 0.05, 0.02, 0.1),
}


def execute(
    machine: Machine,
    rng: Generator,
    *,
    ratio: float = 1.0,
    runs: int = 1000,
    processes: int = 5,
    rounds: int = 60,
    placement: tuple[float, float] = PLACEMENT,
    stray: float = STRAY,
    order: Order = "mirrored",
) -> tuple[Array, Array]:
    """Times of baseline and contender, each runs × processes × rounds, in seconds.

    The contender takes CALL/ratio undisturbed, times the exponential of its placement.
    """
    shape = (runs, processes)
    bias = rng.normal(size=shape) * rng.uniform(*placement, size=(runs, 1))
    off = rng.uniform(0.04, 0.12, shape) * rng.choice([-1, 1], shape)
    bias += np.where(rng.random(shape) < stray, off, 0)
    work = np.stack([np.full(shape, CALL), CALL / ratio * np.exp(bias)])
    clock = _Clock(machine, rng, shape)
    times = np.empty((2, *shape, rounds))

    def call(which: NDArray[np.int_], i: int, second: bool) -> None:
        t = clock.run(np.take_along_axis(work, which[None], 0)[0], second)
        np.put_along_axis(times[..., i], which[None], t[None], 0)

    if order == "apart":
        for which in (0, 1):
            for i in range(rounds):
                call(np.full(shape, which), i, second=False)
                clock.advance(np.full(shape, PAUSE))
        return times[0], times[1]
    first = rng.integers(0, 2, shape)
    for i in range(rounds):
        mirror = order == "mirrored" and i % 2 == 1
        first = 1 - first if mirror else rng.integers(0, 2, shape)
        call(first, i, second=False)
        call(1 - first, i, second=True)
        clock.advance(np.full(shape, PAUSE))
    return times[0], times[1]


class _Clock:
    """The time of each process, and how slow its machine is at that moment."""

    def __init__(self, machine: Machine, rng: Generator, shape: tuple[int, int]) -> None:
        self.machine, self.rng, self.shape = machine, rng, shape
        self.now: Array = rng.uniform(0, 1, shape)
        self.slowness: Array = np.zeros(shape)

    def run(self, work: Array, second: bool) -> Array:
        """Seconds that calls of `work` undisturbed seconds take now."""
        machine, rng = self.machine, self.rng
        noise = NOISE * rng.normal(size=self.shape)
        tails = machine.tails * rng.standard_t(1.5, self.shape).clip(-300, 300)
        t = work * np.exp(self.slowness + noise + tails - machine.order * second)
        if machine.period:
            t = t * np.where(self.now % machine.period < 0.4 * machine.period, 1.4, 1.0)
        if machine.bursts:
            hit = rng.random(self.shape) < -np.expm1(-machine.bursts * t)
            t = t + np.where(hit, rng.exponential(4e-3, self.shape), 0)
        self.advance(t)
        return np.asarray(t)

    def advance(self, seconds: Array) -> None:
        """Let time pass, and the machine's slowness with it."""
        machine, rng = self.machine, self.rng
        self.now = self.now + seconds
        if machine.walk:
            step = machine.walk * np.sqrt(seconds) * rng.normal(size=self.shape)
            self.slowness = self.slowness + step
        if machine.jumps:
            jump = rng.random(self.shape) < -np.expm1(-machine.jumps * seconds)
            self.slowness = np.where(jump, rng.uniform(-0.3, 0.3, self.shape), self.slowness)
