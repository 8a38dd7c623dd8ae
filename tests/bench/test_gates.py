"""Gates over the built-in contenders: what must stay true on any machine, however busy.

Limits are generous, so that they hold on a noisy shared runner: each lies at least a factor 1.4
from what was measured on an x86 machine with two cores. They catch a slip that costs a factor: a
hidden copy, a loop over samples, a wrong memory format. Smaller changes are for
`sbnbench gate --against`.
"""

from __future__ import annotations

import pytest

from sbnbench.pytest_gate import SbnBenchmark

MAP = "synthetic:64x28x28"
gate = pytest.mark.sbn_gate


@gate(not_slower_than="bn@aten", threshold=1.0)
def test_the_same_function_takes_the_same_time(sbn_benchmark: SbnBenchmark) -> None:
    """A/A: where this fails, the machine cannot be gated on, and the other gates mean nothing."""
    sbn_benchmark("bn@aten", MAP, batch=8)
