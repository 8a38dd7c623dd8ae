"""Every error a user can cause, in one tree.

SbnbenchError
├── UsageError            the command line, a suite file, a name            exit 2
│   ├── UnknownName       not in a registry; carries suggestions
│   ├── DuplicateName     two packages claim one name
│   ├── SuiteError        a suite file: where in it, and what would be right
│   └── InvalidParameter  a normalizer's parameter outside its bounds
├── Unavailable           a backend, device or extra this machine lacks     exit 2 if asked for
├── NotApplicable         this normalizer cannot take this input            a record, not a failure
├── VerificationFailed    outputs or gradients disagree with float64        a record, exit 3
└── StoreError            a run directory that cannot be read or written    exit 2

SbnbenchWarning is the base of warnings.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SbnbenchError(Exception):
    """Base of all errors that end in one or two lines and never in a traceback."""


class UsageError(SbnbenchError):
    """A mistake in what was asked for."""


class UnknownName(UsageError):
    """A name that no registry knows, with the nearest known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], where: str = "") -> None:
        known = sorted(known)
        near = get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"{where}unknown {kind} '{name}'; {hint}")


class DuplicateName(UsageError):
    """Two packages claim one name."""


class SuiteError(UsageError):
    """A suite file that cannot be used."""


class InvalidParameter(UsageError, ValueError):
    """A parameter outside its bounds. Also a ValueError, as torch users expect of a layer."""


class Unavailable(SbnbenchError):
    """Something this machine lacks; the message says what to install or change."""


class NotApplicable(SbnbenchError, ValueError):
    """An input that the algorithm does not take, such as C that no group count divides.

    Also a ValueError, as torch raises for `Expected more than 1 value per channel`.
    """


class VerificationFailed(SbnbenchError):
    """An output or a gradient that disagrees with the float64 reference."""


class StoreError(SbnbenchError):
    """A run directory that cannot be read or written."""


class SbnbenchWarning(UserWarning):
    """Base of the warnings sbnbench gives."""


class CollapsedSample(SbnbenchWarning):
    """A sampled variance far under the running variance: the sample saw a constant patch."""
