"""Latency by adjacent, randomly ordered pairs.

In each round every contender executes next to an execution of the baseline, and both next to one of
its floor, in an order drawn at random; every second round mirrors the one before. The three lie
within milliseconds, so the drift of the machine, tens of per cent within seconds, mostly cancels in
their ratios. docs/how-the-numbers-are-made.md has the reasons.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from time import monotonic

from sbnbench.bench import Bench, going_round
from sbnbench.caches import cache_bytes
from sbnbench.clocks import Call, Clock, settle
from sbnbench.failures import classify
from sbnbench.floor import Floors, Traffic, traffic_of
from sbnbench.measure.energy import joules_a_call
from sbnbench.measure.order import chance_order
from sbnbench.messages import Calibration, FloorSampled, Sampled
from sbnbench.model import Direction, LatencyOptions
from sbnbench.nvml import Gpu, Watch
from sbnbench.stopping import calibrate

TRIALS = 3
"""Samples of which the shortest decides between two ways to make a floor."""


@dataclass(eq=False)
class Entrant:
    """A call that is timed in every round, next to a call of the baseline, and both of them before
    or after one of its floor, where it has one.

    All make the same number of loops: the first call of a sample finds colder caches than the
    others, and must weigh the same in each.
    """

    call: Call
    partner: Call
    loops: int
    floor: Call | None = None
    time: list[float] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)
    floor_time: list[float] = field(default_factory=list)

    def round(self, clock: Clock, first: bool, floor_first: bool) -> None:
        """Time all of them. `first`: this call comes before the baseline's. Whichever runs after
        the floor finds colder caches, so the floor never comes between the two."""
        pair = [(self.partner, self.baseline), (self.call, self.time)]
        turns = pair[::-1] if first else pair
        if self.floor:
            turns.insert(0 if floor_first else 2, (self.floor, self.floor_time))
        for call, times in turns:
            times.append(clock.time(call, self.loops))

    @property
    def seconds(self) -> float:
        """Time spent inside samples."""
        return (sum(self.time) + sum(self.baseline) + sum(self.floor_time)) * self.loops


def measure(
    baselines: Sequence[Bench],
    benches: Sequence[Bench],
    direction: Direction,
    options: LatencyOptions,
    clock: Clock,
    random: Random,
    on_time: Callable[[float], None] = lambda fraction: None,
    gpu: Gpu | None = None,
    energy: bool = False,
    doing: Callable[[str], None] = lambda contender: None,
    known: Calibration | None = None,
) -> tuple[list[Sampled], float]:
    """The pairs that one process takes in its share of `options.seconds`, and the seconds that it
    spent inside samples.

    `baselines` are what `partners` gave for `benches`. At least `min_rounds` rounds are made
    however long they last, so that slow contenders have an interval too. With `energy` the joules
    of a call are taken too, where the GPU counts. `doing` hears which contender is warming up
    alone, where a crash or a hang would show first. What is `known` from an earlier process is not
    calibrated again; what is not is added to it.
    """
    loops = Loops(clock, options, Calibration() if known is None else known, direction)
    baseline = baselines[0]
    device = baseline.inputs.workload.device
    clock, reason = settle(clock, (b.call(direction) for b in (baseline, *benches)), device)
    with quiet():
        sets = clock.sets(baseline.size)
        stays = sum(b.size for b in (*baselines, *benches)) <= cache_bytes(device)
        pool = [b.calls(direction, sets) for b in baselines]
        against = loops.warmed("the baseline", pool[0], sets)
        if len(pool) == 1:
            pool *= len(benches)
        entrants = []
        for bench, partner in zip(benches, pool, strict=True):
            doing(bench.contender.id)
            sets = clock.sets(bench.size)
            call = bench.calls(direction, sets)
            own = loops.warmed(bench.contender.id, call, sets)
            if stays:  # otherwise the next calls would push it out again
                clock.time(partner, 1)
            entrants.append(Entrant(call, partner, max(own, against)))
        doing("")
        floors, problem = _floors(clock, benches, direction, loops, shared=len(baselines) == 1)
        for entrant, floor in zip(entrants, floors, strict=False):
            entrant.floor = floor.call
            clock.time(floor.call, floor.sets)
        watch = Watch(gpu)
        share = options.seconds / options.processes
        start = monotonic()
        for rounds, order in enumerate(chance_order(random, len(entrants))):
            if rounds >= options.min_rounds and monotonic() - start >= share:
                break
            for index, first in order:
                entrants[index].round(clock, first, floor_first=(rounds + index) % 2 == 0)
            watch.round()
            on_time(min(1.0, (monotonic() - start) / share))
        seen = watch.facts()
        joules = [joules_a_call(gpu, e.call, e.loops, device) if energy else None for e in entrants]
    remarks = tuple(filter(None, (reason, problem)))
    sampled = [
        Sampled(
            bench.contender.id,
            direction,
            entrant.time,
            entrant.baseline,
            entrant.loops,
            entrant.loops,
            clock.name,
            floors[i].sampled(entrant.floor_time) if floors else None,
            seen,
            joules[i],
            tuple(filter(None, (*remarks, clock.remark(entrant.call)))),
        )
        for i, (bench, entrant) in enumerate(zip(benches, entrants, strict=True))
    ]
    return sampled, sum(e.seconds for e in entrants)


def partners(baseline: Bench, count: int) -> list[Bench]:
    """Baselines to time against: one for each of `count` contenders, or one for all.

    What ran a moment ago finds its data in the caches. One baseline for all would be in every pair,
    its contenders in one pair a round: it would look 10 % faster than itself. So each contender
    has a baseline with buffers of its own, last used when it was. Where one set of buffers fills
    the caches, nothing is left there anyhow, and one baseline serves all.
    """
    if baseline.size > cache_bytes(baseline.inputs.workload.device):
        return [baseline]
    return [baseline, *(baseline.again() for _ in range(count - 1))]


@dataclass(frozen=True)
class _Floor:
    traffic: Traffic
    ways: tuple[str, ...]
    call: Call
    sets: int

    def sampled(self, time: list[float]) -> FloorSampled:
        t = self.traffic
        return FloorSampled(time, t.read, t.written, t.known, self.ways)


def _floors(
    clock: Clock, benches: Sequence[Bench], direction: Direction, loops: Loops, shared: bool
) -> tuple[list[_Floor], str]:
    """A floor for each bench; or none, and why.

    Each works in buffers of its own, last used when its contender's were, so that caches serve both
    alike. Where one set of buffers fills the caches, all floors are `shared` in one.
    """
    device = benches[0].inputs.workload.device

    def shortest(call: Call) -> float:
        turns = loops.calibrated(call)
        return min(clock.time(call, turns) for _ in range(TRIALS))

    def sets_of(traffics: Sequence[Traffic], sets: int) -> list[Floors]:
        return [Floors(traffics, device, shortest, loops.known.ways) for _ in range(sets)]

    try:
        wanted = [traffic_of(b.contender, b.inputs, direction) for b in benches]
        sets = clock.sets(min(b.size for b in benches))
        common = sets_of(wanted, sets) if shared else []
        made = []
        for traffic in wanted:
            own = common or sets_of([traffic], sets)
            call = going_round([floors.call(traffic) for floors in own])
            made.append(_Floor(traffic, own[0].ways(traffic), call, sets))
    except Exception as error:  # such as no memory left for it: the contenders are timed anyway
        return [], f"no floor was timed: {classify(error)[1]}"
    return made, ""


@dataclass(frozen=True)
class Loops:
    """How many calls each sample has, calibrated here or known from an earlier process."""

    clock: Clock
    options: LatencyOptions
    known: Calibration
    direction: Direction

    def warmed(self, name: str, call: Call, sets: int = 1) -> int:
        """The loops of a call, which is warm afterwards."""
        key, known = f"{self.direction} {name}", self.known.loops
        halves = [known.get(f"{half} {name}") for half in ("fwd", "bwd")]
        if self.direction == "fwd_bwd" and halves == [sets, sets]:
            known.setdefault(key, sets)  # one call of either half is long enough
        if key in known:
            self.clock.time(call, sets)
        else:
            known[key] = self.calibrated(call, sets)
        return known[key]

    def calibrated(self, call: Call, sets: int = 1) -> int:
        """Calls in a sample, so that it lasts `sample_seconds` and goes round all `sets` of
        buffers; warms the call up on the way."""
        if self.clock.single:
            for _ in range(TRIALS):
                self.clock.time(call, 1)
            return 1
        return sets * calibrate(
            lambda turns: self.clock.time(call, turns * sets) * turns * sets,
            self.options.sample_seconds,
            self.clock.resolution,
        )


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection inside."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
