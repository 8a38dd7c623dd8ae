"""The order of executions in a round. No torch: the gate's parent uses it too."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random


def chance_order(random: Random, count: int) -> Iterator[list[tuple[int, bool]]]:
    """Who executes when in each round, and whether the baseline goes first in the pair.

    A random round is followed by its mirror image: being second in a pair, or late in a round, is
    worth per cents on some machines, and that cancels in every two rounds.
    """
    while True:
        order = [(index, random.random() < 0.5) for index in range(count)]
        random.shuffle(order)
        yield order
        yield [(index, not first) for index, first in reversed(order)]
