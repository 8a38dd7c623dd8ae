"""Samples on demand: two processes, each with its own version of a contender, take turns.

The parent asks one and then the other, in random order, so a pair is still taken within
milliseconds although its halves live in two processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from sbnbench.bench import Bench
from sbnbench.clocks import clock_for
from sbnbench.measure.latency import quiet
from sbnbench.messages import Enough, Event, Prepared, Taken, Turn
from sbnbench.model import Block, Direction
from sbnbench.stopping import calibrate


def serve(
    benches: list[Bench], block: Block, send: Callable[[Event], None], lines: Iterable[bytes]
) -> None:
    """Warm up and announce every call, then time one at each Turn until Enough."""
    clock = clock_for(block.workload.device)
    target = block.latency.sample_seconds
    calls: dict[tuple[str, Direction], Callable[[], object]] = {}
    decoder = msgspec.json.Decoder(Turn | Enough)
    with quiet():
        for bench in benches:
            for direction in block.directions:
                name = bench.contender.id
                call = calls[name, direction] = bench.call(direction)
                loops = calibrate(
                    lambda n, call=call: clock.time(call, n) * n,  # type: ignore[misc]
                    target,
                    clock.resolution,
                )
                send(Prepared(name, direction, loops))
        send(Prepared("", "fwd", 0))  # all are announced
        for line in lines:
            turn = decoder.decode(line)
            if isinstance(turn, Enough):
                return
            call = calls[turn.contender, turn.direction]
            # The other process has had the caches, and its idle threads may still be spinning.
            call()
            send(Taken(clock.time(call, turn.loops)))
