"""Gates over the built-in contenders: what must stay true on any machine, however busy.

Limits are generous, so that they hold on a shared runner: each lies at least a factor 1.5 from what
was seen on a busy x86 machine with OMP_NUM_THREADS=1, as `make gate` sets it: threads that wait for
each other are what neighbours disturb most. The gates catch a slip that costs a factor: a hidden
copy, a loop over samples, a wrong memory format. Smaller changes are for `sbnbench gate --against`.
"""

from __future__ import annotations

from functools import partial

import pytest

from sbnbench.pytest_gate import SbnBenchmark

LAYER = "synthetic:64x28x28"
BATCH = 8
gate = partial(pytest.mark.sbn_gate, seconds=2.4)


@gate(not_slower_than="bn@aten", threshold=0.5)
def test_the_same_function_takes_the_same_time(sbn_benchmark: SbnBenchmark) -> None:
    """Where this fails, the machine cannot be gated on, and the other gates mean nothing."""
    sbn_benchmark("bn@aten", LAYER, batch=BATCH)


@gate(not_slower_than="bn@aten", threshold=1.0)
def test_group_norm_of_pytorch(sbn_benchmark: SbnBenchmark) -> None:
    sbn_benchmark("gn@aten", LAYER, batch=BATCH)


@gate(not_slower_than="bn@aten", threshold=3.0)
def test_the_readable_batch_norm_is_usable(sbn_benchmark: SbnBenchmark) -> None:
    sbn_benchmark("bn@eager", LAYER, batch=BATCH)


@gate(faster_than="bn@eager", at_least=1.2)
def test_sampling_rows_pays_in_forward(sbn_benchmark: SbnBenchmark) -> None:
    sbn_benchmark("bs@eager", LAYER, batch=BATCH, direction="fwd")


@gate(not_slower_than="bn@eager", threshold=0.5)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("contender", ["bs@eager", "fs@eager"])
def test_sampling_costs_no_more_than_it_saves(
    sbn_benchmark: SbnBenchmark, contender: str, layout: str
) -> None:
    sbn_benchmark(contender, LAYER, batch=BATCH, format=layout)
