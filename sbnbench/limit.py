"""A demand on a ratio, and when it is settled: what a gate decides by. Numbers only.

The ratio is the baseline's time over the contender's. "At least 1.2" demands that the contender be
faster; "at least 1/1.05" demands that it be no slower than 5 %.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from sbnbench.model import Estimate
from sbnbench.stopping import UntilClear

Answer = Literal["KEPT", "BROKEN", "UNCLEAR"]


class Limit(msgspec.Struct, frozen=True):
    """The smallest ratio that is allowed; above 0, and not 1."""

    least: float

    @property
    def threshold(self) -> float:
        """How far from 1 it lies, as `statistics.decide` has it."""
        return max(self.least, 1 / self.least) - 1

    def judge(self, estimate: Estimate) -> tuple[Answer, str]:
        """Whether the demand is kept, with the reason.

        A difference that is demanded (above 1), or forbidden (below 1), is there as in
        `statistics.decide`: the estimate beyond the limit and the interval beyond its root. It is
        missing where the interval lies wholly on the near side of the limit.
        """
        value, low, high, least = estimate.value, estimate.low, estimate.high, self.least
        if low is None or high is None:
            return "UNCLEAR", "there is no interval"
        root = math.sqrt(least)
        if least > 1:
            if value >= least and low > root:
                return "KEPT", f"it reaches {least:.3g}, all of the interval lies above {root:.3g}"
            if high < least:
                return "BROKEN", f"all of the interval lies below {least:.3g}"
        else:
            if value <= least and high < root:
                return "BROKEN", f"it is {least:.3g} or less, all of it lies below {root:.3g}"
            if low > least:
                return "KEPT", f"all of the interval lies above {least:.3g}"
        return "UNCLEAR", f"the interval is too wide to tell on which side of {least:.3g} it lies"


class UntilSettled(UntilClear, frozen=True):
    """Measure until a limit is kept or broken, within time and processes."""

    limit: Limit = Limit(1 / 1.05)

    @classmethod
    def of(cls, limit: Limit, max_seconds: float) -> UntilSettled:
        return cls(
            threshold=limit.threshold,
            target=limit.threshold / 2,
            max_seconds=max_seconds,
            limit=limit,
        )

    def judge(self, estimate: Estimate) -> str:
        answer, reason = self.limit.judge(estimate)
        return "" if answer == "UNCLEAR" else f"{answer}: {reason}"
