"""SI in, human text out. The only place where numbers become text for people."""

from __future__ import annotations

import math

from sbnbench.model import Estimate

_TIME = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_BYTES = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))


def seconds(value: float) -> str:
    """0.00123 → '1.23 ms'."""
    scale, unit = next(((s, u) for s, u in _TIME if abs(value) >= s), _TIME[-1])
    return f"{value / scale:.3g} {unit}"


def size(value: float) -> str:
    """1536 → '1.5 KiB'."""
    scale, unit = next(((s, u) for s, u in _BYTES if abs(value) >= s), _BYTES[-1])
    return f"{value / scale:.3g} {unit}"


def duration(value: float) -> str:
    """A waiting time: 83 → '1 min 23 s'."""
    whole = max(0, round(value))
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def percent(value: float) -> str:
    """0.0123 → '1.2 %'; three digits at most, so that 1234 % stays readable."""
    number = value * 100
    return f"{number:.0f} %" if abs(number) >= 99.5 else f"{number:.2g} %"


def ratio(estimate: Estimate) -> str:
    """1.234 within 1.21 … 1.26 → '1.23× ±2.0 %'; the half-width is relative."""
    text = f"{estimate.value:.2f}×"
    if estimate.low is None or estimate.high is None:
        return text
    half = (estimate.high - estimate.low) / 2 / estimate.value
    return f"{text} ±{percent(half)}"


def interval(estimate: Estimate) -> str:
    """0.931 … 1.118 → '0.93–1.12', with as many digits as its width asks for."""
    if estimate.low is None or estimate.high is None:
        return "no interval"
    width = estimate.high - estimate.low
    digits = 2 if not 0 < width < 0.1 else min(3, 1 - math.floor(math.log10(width)))
    return f"{estimate.low:.{digits}f}–{estimate.high:.{digits}f}"
