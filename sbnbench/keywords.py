"""Selecting contenders: name patterns, and the small expression language of `-k`."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from sbnbench.errors import UsageError
from sbnbench.model import Contender


def names(pattern: str, contender: Contender) -> bool:
    """Does `pattern` name this contender: by normalizer, label, id, `@backend`, or a glob?"""
    candidates = (contender.normalizer, contender.label, contender.id, f"@{contender.backend}")
    return pattern in candidates or any(fnmatchcase(c, pattern) for c in candidates)


def match(expression: str, text: str) -> bool:
    """`fs and not (shared or bf16)` on `text`: words are substrings; empty matches all."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression)
    if not tokens:
        return True
    value, rest = _either(tokens, text, expression)
    if rest:
        raise _bad(expression, rest[0])
    return value


def _either(tokens: list[str], text: str, whole: str) -> tuple[bool, list[str]]:
    value, tokens = _both(tokens, text, whole)
    while tokens and tokens[0] == "or":
        other, tokens = _both(tokens[1:], text, whole)
        value = value or other
    return value, tokens


def _both(tokens: list[str], text: str, whole: str) -> tuple[bool, list[str]]:
    value, tokens = _one(tokens, text, whole)
    while tokens and tokens[0] == "and":
        other, tokens = _one(tokens[1:], text, whole)
        value = value and other
    return value, tokens


def _one(tokens: list[str], text: str, whole: str) -> tuple[bool, list[str]]:
    if not tokens or tokens[0] in (")", "and", "or"):
        raise _bad(whole, tokens[0] if tokens else "the end")
    head, *rest = tokens
    if head == "not":
        value, rest = _one(rest, text, whole)
        return not value, rest
    if head == "(":
        value, rest = _either(rest, text, whole)
        if not rest or rest[0] != ")":
            raise _bad(whole, "the end: a bracket is open")
        return value, rest[1:]
    return head in text, rest


def _bad(expression: str, at: str) -> UsageError:
    return UsageError(f"-k '{expression}': cannot be read at {at}; write e.g. 'fs and not shared'")
