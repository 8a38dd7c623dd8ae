"""From an exception in a contender to the status and reason of its record."""

from __future__ import annotations

from sbnbench.errors import InvalidParameter, NotApplicable, Unavailable, VerificationFailed
from sbnbench.model import Status


def classify(error: Exception) -> tuple[Status, str]:
    """Status and a one-line reason."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (NotApplicable, InvalidParameter)):
        return "not-applicable", reason
    if isinstance(error, Unavailable):
        return "unavailable", reason
    if isinstance(error, VerificationFailed):
        return "failed-verification", reason
    if isinstance(error, MemoryError) or "out of memory" in reason or "can't allocate" in reason:
        return "out-of-memory", reason[:300]
    return "error", f"{type(error).__name__}: {reason[:300]}"
