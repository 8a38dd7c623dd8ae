"""Reading the values of options: thresholds, lists, key=value pairs."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sbnbench.errors import UsageError

THRESHOLD = "5%"
"""Smallest change that counts, where nothing else is said."""


def fraction(text: str, option: str = "--threshold") -> float:
    """`5%` or `0.05` → 0.05; UsageError outside (0, 1)."""
    try:
        value = float(text.rstrip("% ")) / (100 if text.rstrip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise UsageError(f"{option} is '{text}'; write 5% or 0.05")
    return value


def split(texts: Iterable[str] | None) -> tuple[str, ...]:
    """Comma-separated lists, where commas inside brackets do not separate."""
    parts = (p.strip() for text in texts or () for p in re.split(r",(?![^\[]*\])", text))
    return tuple(p for p in parts if p)


def pairs(texts: Iterable[str]) -> dict[str, str]:
    """`batch=1,2` → {"batch": "1,2"}."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"-a '{text}': write AXIS=VALUES, such as -a batch=1,2,4")
        found[key.strip()] = value.strip()
    return found
