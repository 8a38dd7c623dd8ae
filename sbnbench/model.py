"""The words of the project as frozen types. No torch here, and nothing that measures.

normalizer → contender → workload → block → plan; estimate → record → run.
Everything is SI inside: seconds, bytes, plain ratios. Text is made at the edge (`units.py`).
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Literal

import msgspec

from sbnbench.errors import InvalidParameter

SCHEMA = 1
"""Version of the files in a run directory. 1: first."""

Direction = Literal["fwd", "bwd", "fwd_bwd"]
DIRECTIONS: tuple[Direction, ...] = ("fwd", "bwd", "fwd_bwd")
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
"""Bytes of a value."""
DTYPES = tuple(ITEMSIZE)
FORMATS = ("contiguous", "channels_last")
MEASURES = ("latency", "memory", "error")
PER_DIRECTION = frozenset({"latency", "memory"})
"""Measures that have a record for each direction."""

Status = Literal[
    "ok",
    "not-applicable",  # the algorithm does not take this input; said in `reason`
    "unavailable",  # the backend or device is missing here
    "failed-verification",
    "error",  # an exception in the contender
    "crashed",  # the worker died
    "timeout",
    "out-of-memory",
]
FAILED: frozenset[str] = frozenset(
    {"failed-verification", "error", "crashed", "timeout", "out-of-memory"}
)
"""Statuses that end a run with exit code 3."""

ParamValue = bool | int | float | str


class Param(msgspec.Struct, frozen=True):
    """A typed parameter of a normalizer. `low` and `high` are inclusive bounds."""

    name: str
    kind: Literal["ratio", "int", "float", "bool", "choice"]
    default: ParamValue
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: Any, owner: str) -> ParamValue:
        """`value` in this parameter's type; InvalidParameter, naming `owner`, where it is not.

        A ratio is written `1/16` or `0.0625` and lies in (0, 1].
        """
        where = f"{owner}: parameter {self.name}"
        if self.kind == "choice":
            if value not in self.choices:
                raise InvalidParameter(
                    f"{where} is {value!r}; choose one of {', '.join(self.choices)}"
                )
            return str(value)
        if self.kind == "bool":
            if str(value).lower() not in ("true", "false"):
                raise InvalidParameter(f"{where} is {value!r}; write true or false")
            return str(value).lower() == "true"
        try:
            number = parse_number(value)
        except (ValueError, TypeError, ZeroDivisionError):
            raise InvalidParameter(f"{where} is {value!r}; a number is wanted") from None
        if self.kind == "int":
            if number != int(number):
                raise InvalidParameter(f"{where} is {value!r}; a whole number is wanted")
            number = int(number)
        if self.kind == "ratio" and not 0 < number <= 1:
            raise InvalidParameter(f"{where} is {value!r}; a ratio lies in (0, 1], such as 1/16")
        if (self.low is not None and number < self.low) or (
            self.high is not None and number > self.high
        ):
            raise InvalidParameter(f"{where} is {value!r}; bounds are {self.bounds()}")
        return number

    def bounds(self) -> str:
        """The bounds as text, for messages and `sbnbench list`."""
        if self.kind == "ratio":
            return "(0, 1]"
        if self.kind in ("choice", "bool"):
            return " | ".join(self.choices or ("true", "false"))
        low = "-∞" if self.low is None else f"{self.low:g}"
        high = "∞" if self.high is None else f"{self.high:g}"
        return f"{low} … {high}"


class Normalizer(msgspec.Struct, frozen=True):
    """A named algorithm.

    `backends` maps a backend's name to a lazy target "module:attr". The target is called with the
    parameters as keywords and gives an object with
    `forward(x, weight, bias, state) -> (y, saved)` and
    `backward(dy, saved) -> (dx, dweight, dbias)`; where it also has
    `statistics(x, state) -> (mean, var)`, per channel, the measure `error` applies to it.

    `kind` is A (drop-in for BatchNorm), B (replaces norm and activation) or C (needs weights,
    other layers or phases). A parameter named `num_virtual` makes the harness append that many
    virtual rows to the batch.
    """

    name: str
    title: str
    formula: str
    source: str
    backends: dict[str, str]
    params: tuple[Param, ...] = ()
    kind: Literal["A", "B", "C"] = "A"
    notes: str = ""
    provider: str = "sbnbench"
    without: dict[str, str] = {}
    """Backends it cannot have, and why."""
    running: bool = True
    """Whether a layer keeps running statistics, which eval() normalizes with."""
    keeps: tuple[str, ...] = ()
    """What its state_dict holds beside γ, b and running statistics, each under `extra_NAME`."""

    def param(self, name: str) -> Param | None:
        return next((p for p in self.params if p.name == name), None)

    def resolve(self, given: dict[str, Any]) -> dict[str, ParamValue]:
        """All parameters: the given ones checked, the others at their defaults."""
        for name in given:
            if self.param(name) is None:
                known = ", ".join(p.name for p in self.params) or "none"
                raise InvalidParameter(f"{self.name}: no parameter {name!r}; it has {known}")
        return {
            p.name: p.check(given[p.name], self.name) if p.name in given else p.default
            for p in self.params
        }


class Contender(msgspec.Struct, frozen=True):
    """A normalizer with its parameters on a backend, written `fs[ratio=1/16]@triton`.

    `params` holds what was given, in the order of the normalizer's declaration; the rest is
    at its defaults.
    """

    normalizer: str
    backend: str
    params: tuple[tuple[str, ParamValue], ...] = ()

    @property
    def label(self) -> str:
        """Normalizer and parameters without the backend: `fs[ratio=1/16]`."""
        if not self.params:
            return self.normalizer
        inner = ",".join(f"{k}={format_param(v)}" for k, v in self.params)
        return f"{self.normalizer}[{inner}]"

    @property
    def id(self) -> str:
        return f"{self.label}@{self.backend}"


class Workload(msgspec.Struct, frozen=True):
    """What a block works on: shape, dtype, memory format, device and where the values come from.

    `source` is `synthetic` or `real:LAYER`; `layer` names it for people. `spatial` may be empty
    (N,C), or have one to three sizes. `batch` counts real rows; virtual ones come on top.
    """

    source: str
    batch: int
    channels: int
    spatial: tuple[int, ...]
    dtype: str = "float32"
    format: str = "contiguous"
    device: str = "cpu"
    seed: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, *self.spatial)

    @property
    def nbytes(self) -> int:
        """Bytes of the input."""
        return math.prod(self.shape) * ITEMSIZE[self.dtype]

    @property
    def layer(self) -> str:
        size = "×".join(str(n) for n in (self.channels, *self.spatial))
        name = self.source.removeprefix("real:")
        return f"{name} {size}"


class LatencyOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long and how exactly to time. Times in seconds, `precision` as a relative half-width."""

    precision: float = 0.01
    seconds: float = 1.5
    """Measuring time of one direction of one block, over all its processes."""
    processes: int = 3
    min_rounds: int = 5
    """Fewest rounds in a process."""
    sample_seconds: float = 0.0004
    """Shortest timed sample; the inner loop is lengthened until a sample lasts this long."""
    clock: Literal["auto", "perf_counter", "cuda-events", "cuda-graph"] = "auto"
    cache: Literal["hot", "cold"] = "hot"

    @property
    def timing(self) -> str:
        """Clock and state of the caches as asked for, empty for the usual ones."""
        usual = LatencyOptions()
        asked = ((self.clock, usual.clock), (self.cache, usual.cache))
        return ", ".join(value for value, default in asked if value != default)


class ErrorOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many batches the estimation error is averaged over."""

    draws: int = 32


class Block(msgspec.Struct, frozen=True):
    """One workload and all contenders compared on it: the unit of scheduling, interleaving,
    isolation and resume."""

    workload: Workload
    contenders: tuple[Contender, ...]
    baseline: Contender
    measures: tuple[str, ...]
    directions: tuple[Direction, ...]
    latency: LatencyOptions
    error: ErrorOptions

    @property
    def id(self) -> str:
        """Content hash: the same block has the same id in every run."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:12]


class Plan(msgspec.Struct, frozen=True):
    """A suite expanded into ordered blocks. `seed` orders them and draws rounds and positions."""

    suite: str
    title: str
    description: str
    seed: int
    blocks: tuple[Block, ...]
    quick: bool = False
    schema: int = SCHEMA

    def block(self, block_id: str) -> Block | None:
        return next((b for b in self.blocks if b.id == block_id), None)


class Estimate(msgspec.Struct, frozen=True):
    """A number with its interval. `unit` is SI ("s", "B") or "1" for ratios and relative errors."""

    value: float
    low: float | None = None
    high: float | None = None
    unit: str = "1"
    level: float = 0.95


class Record(msgspec.Struct, frozen=True):
    """One contender's result in one block, for one measure (and one direction of `latency`).

    latency: estimates `time` (s, context), `ratio` (baseline's time over this one's: above 1 is
    faster than the baseline), `baseline_time`; samples `time` and `baseline` in seconds a call, one
    list a process, pair by pair: the n-th entries of both were taken next to each other.
    `floor_time` is the time of the fastest copy of the bytes that the contender must move, taken
    next to it, and `attainable` that time over the contender's: 1 is all that this machine can do.
    Sample `floor`, round by round like the others. On a GPU `energy`, J a call.
    memory: estimate `peak_memory` (B), see measure/memory.py.
    error: estimates `mean_batch_median`, `mean_batch_p95`, `var_batch_median`, `var_batch_p95` and
    the same with `population` (see measure/error.py); samples: per draw.
    """

    block: str
    contender: str
    measure: str
    status: Status
    workload: Workload
    baseline: str
    direction: Direction | None = None
    reason: str = ""
    estimates: dict[str, Estimate] = {}
    samples: dict[str, list[list[float]]] = {}
    facts: dict[str, Any] = {}
    """What was seen on the way: inner loops, sampled share, verification error, …"""
    notes: tuple[str, ...] = ()
    """What a reader must know: a degenerate setting, a precision not reached."""
    timing: str = ""
    """LatencyOptions.timing of the block."""
    schema: int = SCHEMA

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes a record one of its kind in a run."""
        return (self.block, self.contender, self.measure, self.direction or "")


def parse_number(value: Any) -> float:
    """A number from 0.25, "0.25" or "1/4"."""
    if isinstance(value, bool):
        raise TypeError("a truth value is no number")
    if isinstance(value, str) and "/" in value:
        top, bottom = value.split("/")
        return float(top) / float(bottom)
    return float(value)


def format_param(value: ParamValue) -> str:
    """A parameter as people write it: 0.0625 as 1/16."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if 1e-3 < value < 1 and abs(1 / value - round(1 / value)) < 1e-9:
            return f"1/{round(1 / value)}"
        return f"{value:g}"
    return str(value)
