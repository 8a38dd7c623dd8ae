"""Latency by adjacent, randomly ordered pairs.

In each round every contender executes next to an execution of the baseline, in an order drawn at
random. A pair lies within milliseconds, so the drift of the machine, tens of per cent within
seconds, mostly cancels in its ratio. docs/how-the-numbers-are-made.md has the reasons.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from time import monotonic

from sbnbench.bench import Bench
from sbnbench.clocks import Clock
from sbnbench.measure.order import chance_order
from sbnbench.messages import Sampled
from sbnbench.model import Direction, LatencyOptions
from sbnbench.stopping import calibrate


def measure(
    baseline: Bench,
    benches: list[Bench],
    direction: Direction,
    options: LatencyOptions,
    clock: Clock,
    random: Random,
    on_time: Callable[[float], None] = lambda fraction: None,
) -> list[Sampled]:
    """The pairs that one process takes in its share of `options.seconds`.

    At least `min_rounds` rounds are made however long they last, so that slow contenders
    have an interval too.
    """
    against = baseline.call(direction)
    calls = [bench.call(direction) for bench in benches]
    with quiet():
        against_loops = _loops(clock, against, options)
        loops = [_loops(clock, call, options) for call in calls]
        times: list[list[float]] = [[] for _ in benches]
        partners: list[list[float]] = [[] for _ in benches]
        order = chance_order(random, len(benches))
        share = options.seconds / options.processes
        start = monotonic()
        rounds = 0
        while rounds < options.min_rounds or monotonic() - start < share:
            for index, baseline_first in next(order):
                if baseline_first:
                    partner = clock.time(against, against_loops)
                    own = clock.time(calls[index], loops[index])
                else:
                    own = clock.time(calls[index], loops[index])
                    partner = clock.time(against, against_loops)
                times[index].append(own)
                partners[index].append(partner)
            rounds += 1
            on_time(min(1.0, (monotonic() - start) / share))
    return [
        Sampled(b.contender.id, direction, t, p, n, against_loops)
        for b, t, p, n in zip(benches, times, partners, loops, strict=True)
    ]


def _loops(clock: Clock, call: Callable[[], object], options: LatencyOptions) -> int:
    """Calls in a sample, so that it lasts `sample_seconds`; warms the call up on the way."""
    return calibrate(
        lambda loops: clock.time(call, loops) * loops, options.sample_seconds, clock.resolution
    )


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection inside, and none of what was alive before afterwards."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
