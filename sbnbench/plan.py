"""A suite file, the registry and the user's filters, expanded into ordered blocks. No torch.

Axes named `input`, `batch`, `dtype`, `format` and `device` make workloads, `clock` and `cache` say
how they are timed; any other axis is a parameter, and multiplies every contender whose normalizer
has it and that does not fix it itself. With several tables of axes (`[[axes]]`) a suite is what
they make one after the other.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec

from sbnbench import keywords
from sbnbench.environment import extras
from sbnbench.errors import SuiteError, Unavailable, UnknownName, UsageError
from sbnbench.layers import layer_shape
from sbnbench.model import (
    DIRECTIONS,
    DTYPES,
    FORMATS,
    MEASURES,
    PER_DIRECTION,
    Block,
    Contender,
    ErrorOptions,
    LatencyOptions,
    Plan,
    Workload,
    parse_number,
)
from sbnbench.nvml import gpus
from sbnbench.registry import make_contender, normalizers, parse_contender

CHOICES = {
    option: get_args(get_type_hints(LatencyOptions)[option]) for option in ("clock", "cache")
}
WORKLOAD_AXES = ("input", "batch", "dtype", "format", "device")
BLOCK_AXES = (*WORKLOAD_AXES, *CHOICES)

Axes = dict[str, list[int | float | str] | str]


class Suite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A suite file as written. `quick` holds what `--quick` lays over the rest."""

    title: str
    contenders: list[str]
    axes: Axes | list[Axes]
    description: str = ""
    baseline: str = "bn@aten"
    measures: tuple[str, ...] = ("latency",)
    directions: tuple[str, ...] = DIRECTIONS
    latency: LatencyOptions = LatencyOptions()
    error: ErrorOptions = ErrorOptions()
    seed: int = 0
    quick: dict[str, Any] = {}


class Filters(msgspec.Struct, frozen=True):
    """What the command line lays over a suite."""

    axes: dict[str, str] = {}
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    keyword: str = ""
    directions: tuple[str, ...] = ()
    latency: dict[str, str] = {}
    quick: bool = False
    seed: int | None = None


def read_suite(path: Path, quick: bool = False) -> Suite:
    """The suite in a TOML file; SuiteError with file and place where it cannot be used."""
    try:
        raw = msgspec.toml.decode(path.read_bytes())
    except OSError as error:
        raise UsageError(f"suite {path}: {error.strerror or error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: not TOML: {error}") from error
    suite = _convert(raw, path)
    if quick and suite.quick:
        suite = _convert(_overlaid(raw, suite.quick), path)
    return suite


def _convert(raw: Any, path: Path) -> Suite:
    try:
        return msgspec.convert(raw, Suite)
    except msgspec.ValidationError as error:
        found = re.search(r"unknown field `(.+?)`(?: - at `\$\.?(.*?)`)?", str(error))
        if found:
            place = {"latency": LatencyOptions, "error": ErrorOptions}.get(found[2] or "", Suite)
            where = f"{path}: {f'[{found[2]}]: ' if found[2] else ''}"
            raise SuiteError(
                str(UnknownName("key", found[1], place.__struct_fields__, where))
            ) from error
        raise SuiteError(f"{path}: {error}") from error


def _overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        both = isinstance(inner, dict) and isinstance(value, dict)
        merged[key] = _overlaid(inner or {}, value) if both else value
    return merged


def make_plan(suite: Suite, filters: Filters, name: str) -> Plan:
    """The blocks of a suite in their random order, filtered; UsageError where nothing is left."""
    tables = [suite.axes] if isinstance(suite.axes, dict) else suite.axes
    seed = suite.seed if filters.seed is None else filters.seed
    found: dict[str, Block] = {}
    for table in tables:
        axes = {axis: axis_values(axis, values, name) for axis, values in table.items()}
        axes |= {axis: axis_values(axis, text, "-a") for axis, text in filters.axes.items()}
        axes |= {axis: [_choice(axis, v, f"--{axis}")] for axis, v in filters.latency.items()}
        found |= {block.id: block for block in _blocks(suite, axes, filters, seed, name)}
    blocks = list(found.values())
    if not blocks:
        raise UsageError(f"{name}: nothing is left to run after --only, --skip and -k")
    # What ran before moves what runs after by up to 13 % (pytorch #2242): no fixed order.
    random.Random(seed).shuffle(blocks)
    return Plan(name, suite.title, suite.description, seed, tuple(blocks), filters.quick)


def _blocks(
    suite: Suite, axes: Mapping[str, list[Any]], filters: Filters, seed: int, name: str
) -> Iterable[Block]:
    measures = tuple(_known("measure", m, MEASURES, name) for m in suite.measures)
    wanted = filters.directions or suite.directions
    for direction in wanted:
        _known("direction", direction, DIRECTIONS, name)
    directions = tuple(d for d in DIRECTIONS if d in wanted)
    timings = list(_timings(suite.latency, axes, filters, name))
    contenders = _contenders(suite, axes, filters, name)
    baseline = parse_contender(suite.baseline)
    for workload in _workloads(axes, seed, name):
        text = " ".join(
            (workload.source, f"batch={workload.batch}", workload.dtype, workload.format)
        )
        kept = tuple(c for c in contenders if keywords.match(filters.keyword, f"{text} {c.id}"))
        if kept:
            for latency in timings:
                yield Block(
                    workload,
                    kept,
                    baseline,
                    measures,
                    directions if PER_DIRECTION & set(measures) else (),
                    latency,
                    suite.error,
                )


def axis_values(axis: str, values: Sequence[Any] | str, where: str) -> list[Any]:
    """The values of an axis from a list, `1,2,4`, `[pow2]1:64` or `[1,2]`; checked by kind."""
    place = f"{where}: axis {axis}"
    if isinstance(values, str):
        span = re.fullmatch(r"\[pow2\]\s*(\d+):(\d+)", values.strip())
        if span:
            low, high = int(span[1]), int(span[2])
            values = [n for n in (1 << k for k in range(40)) if low <= n <= high]
        else:
            values = [v.strip() for v in values.strip("[] ").split(",") if v.strip()]
    if not values:
        raise SuiteError(f"{place} is empty; give it at least one value")
    checked = [_axis_value(axis, value, place) for value in values]
    return list(dict.fromkeys(checked))


def _axis_value(axis: str, value: Any, place: str) -> Any:
    if axis == "batch":
        try:
            number = parse_number(value)
        except (TypeError, ValueError):
            number = 0
        if number < 1 or number != int(number):
            raise SuiteError(f"{place}: {value!r} is no batch size; a whole number ≥ 1 is wanted")
        return int(number)
    if axis == "dtype":
        return _known("dtype", value, DTYPES, place)
    if axis == "format":
        return _known("memory format", value, FORMATS, place)
    if axis == "device":
        return check_device(str(value), place)
    if axis == "input":
        input_of(str(value), place)
    if axis in CHOICES:
        return _choice(axis, value, place)
    return value


def _choice(option: str, value: Any, place: str) -> str:
    return _known(option, value, CHOICES[option], place)


def input_of(text: str, where: str) -> tuple[str, int, tuple[int, ...]]:
    """Source, channels and map of `real:LAYER` or `synthetic:CxHxW` (also C, CxL, CxDxHxW)."""
    source, _, size = text.partition(":")
    if source == "real":
        if lacking := extras()["real"]:
            raise Unavailable(f"{where}: {text} needs the extra 'real': {lacking}")
        try:
            return text, *layer_shape(text)
        except UsageError as error:
            raise SuiteError(f"{where}: {error}") from error
    if source != "synthetic" or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,3}", size):
        raise SuiteError(
            f"{where}: '{text}' is no input; write synthetic:64x28x28 or real:_blocks.3._bn1"
        )
    channels, *spatial = (int(n) for n in size.split("x"))
    return source, channels, tuple(spatial)


def check_device(device: str, where: str = "--device") -> str:
    """`cpu`, `cuda` or `cuda:N`; UsageError for others, Unavailable where no GPU is found."""
    if device == "cpu":
        return device
    if not re.fullmatch(r"cuda(:\d+)?", device):
        raise UnknownName("device", device, ("cpu", "cuda", "cuda:0"), f"{where}: ")
    found, why = gpus()
    index = int(device.partition(":")[2] or 0)
    if index >= len(found):
        raise Unavailable(
            f"{where}: no device {device} here: {why or f'{len(found)} GPU found'}; "
            "`sbnbench doctor` says what is available"
        )
    return device


def _timings(
    options: LatencyOptions, axes: Mapping[str, list[Any]], filters: Filters, name: str
) -> Iterable[LatencyOptions]:
    """The suite's options under what the axes say; Unavailable where a clock is not there."""
    devices = axes.get("device") or ["cpu"]
    clocks, caches = (axes.get(a) or [getattr(options, a)] for a in CHOICES)
    for clock, cache in itertools.product(clocks, caches):
        if clock.startswith("cuda") and not all(d.startswith("cuda") for d in devices):
            where = "--clock" if "clock" in filters.latency else f"{name}: clock"
            found, why = gpus()
            wanted = "choose one with --device cuda" if found else f"none is available here ({why})"
            raise Unavailable(f"{where} {clock} times an NVIDIA GPU; {wanted}")
        yield msgspec.structs.replace(options, clock=clock, cache=cache)


def _workloads(axes: Mapping[str, list[Any]], seed: int, name: str) -> Iterable[Workload]:
    for axis in ("input", "batch"):
        if axis not in axes:
            raise SuiteError(f"{name}: [axes] lacks '{axis}'")
    others = [
        axes.get(a) or [d]
        for a, d in zip(WORKLOAD_AXES[2:], ("float32", "contiguous", "cpu"), strict=True)
    ]
    for source, batch, dtype, form, device in itertools.product(
        axes["input"], axes["batch"], *others
    ):
        kind, channels, spatial = input_of(source, name)
        yield Workload(kind, batch, channels, spatial, dtype, form, device, seed)


def _contenders(
    suite: Suite, axes: Mapping[str, list[Any]], filters: Filters, name: str
) -> tuple[Contender, ...]:
    extra = {a: v for a, v in axes.items() if a not in BLOCK_AXES}
    used: set[str] = set()
    found: dict[str, Contender] = {}
    for text in suite.contenders:
        base = parse_contender(text)
        given = dict(base.params)
        free = [a for a in extra if normalizers()[base.normalizer].param(a) and a not in given]
        used.update(free)
        for values in itertools.product(*(extra[a] for a in free)):
            params = {**given, **dict(zip(free, values, strict=True))}
            contender = make_contender(base.normalizer, base.backend, params)
            found[contender.id] = contender
    for axis in extra.keys() - used:
        known = {p.name for c in found.values() for p in normalizers()[c.normalizer].params}
        raise UnknownName("axis", axis, {*BLOCK_AXES, *known}, f"{name}: ")
    for pattern in (*filters.only, *filters.skip):
        if not any(keywords.names(pattern, c) for c in found.values()):
            known = {c.normalizer for c in found.values()} | set(found)
            raise UnknownName("contender", pattern, known, "--only/--skip: ")
    return tuple(
        c
        for c in found.values()
        if (not filters.only or any(keywords.names(p, c) for p in filters.only))
        and not any(keywords.names(p, c) for p in filters.skip)
    )


def _known(kind: str, value: Any, known: Sequence[str], where: str) -> str:
    if value not in known:
        raise UnknownName(kind, str(value), known, f"{where}: ")
    return str(value)
