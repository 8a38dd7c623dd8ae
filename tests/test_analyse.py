"""From records to verdicts, means, fronts and series."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sbnbench import analyse
from sbnbench.model import (
    Block,
    Contender,
    ErrorOptions,
    Estimate,
    LatencyOptions,
    Plan,
    Record,
    Workload,
)

RANK = {"SLOWER": 0, "UNCLEAR": 1, "SAME": 1, "FASTER": 2}
BN, FS = Contender("bn", "aten"), Contender("fs", "eager")


def ratio(value: float, low: float | None, high: float | None) -> Estimate:
    return Estimate(value, low, high)


def record(contender: str, value: float, *, layer: int = 8, batch: int = 4, half: float = 0.01,
           **other: object) -> Record:  # fmt: skip
    """A latency record of `contender` with a ratio within ± `half`, relatively."""
    made = Record(
        block=f"{layer}-{batch}",
        contender=contender,
        measure="latency",
        status="ok",
        workload=Workload("synthetic", batch, layer, (4, 4)),
        baseline="bn@aten",
        direction="fwd_bwd",
        estimates={"ratio": ratio(value, value * math.exp(-half), value * math.exp(half))},
    )
    return replace(made, **other)


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict", "words"),
    [
        (1.20, 1.10, 1.30, "FASTER", "beyond 1.050"),
        (0.80, 0.75, 0.85, "SLOWER", "beyond 0.952"),
        (1.00, 0.98, 1.02, "SAME", "within"),
        (1.03, 1.01, 1.045, "SAME", "within"),
        (1.02, 0.93, 1.12, "UNCLEAR", "(0.930 … 1.120) reaches beyond"),
        (1.06, 1.01, 1.11, "UNCLEAR", "faster, but not surely by enough"),
        (1.04, 1.01, 1.08, "UNCLEAR", "faster, but not surely by enough"),
        (0.96, 0.93, 0.99, "UNCLEAR", "slower, but not surely by enough"),
        (1.20, 0.90, 1.50, "UNCLEAR", "1.200 (0.900"),
        (1.20, None, None, "UNCLEAR", "no usable interval"),
        (1.20, 0.0, math.inf, "UNCLEAR", "no usable interval"),
    ],
)
def test_verdict(
    value: float, low: float | None, high: float | None, verdict: str, words: str
) -> None:
    judgement = analyse.judge(ratio(value, low, high))
    assert judgement.verdict == verdict
    assert words in judgement.reason


def test_threshold_decides() -> None:
    estimate = ratio(1.08, 1.06, 1.10)
    assert analyse.judge(estimate, 0.05).verdict == "FASTER"
    assert analyse.judge(estimate, 0.20).verdict == "SAME"


logs = st.floats(-0.5, 0.5)
halves = st.floats(1e-4, 0.5)


def estimate(centre: float, down: float, up: float) -> Estimate:
    return ratio(math.exp(centre), math.exp(centre - down), math.exp(centre + up))


@given(logs, halves, halves)
def test_exchanging_contender_and_baseline_exchanges_the_verdict(
    centre: float, down: float, up: float
) -> None:
    there = analyse.judge(estimate(centre, down, up)).verdict
    back = analyse.judge(estimate(-centre, up, down)).verdict
    assert back == {"FASTER": "SLOWER", "SLOWER": "FASTER"}.get(there, there)


@given(logs, halves, halves, st.floats(0, 0.5))
def test_a_larger_ratio_gets_no_lower_verdict(
    centre: float, down: float, up: float, shift: float
) -> None:
    before = analyse.judge(estimate(centre, down, up)).verdict
    after = analyse.judge(estimate(centre + shift, down, up)).verdict
    assert RANK[after] >= RANK[before]


@given(logs, halves, halves, st.floats(0, 1), st.floats(0, 1))
def test_a_narrower_interval_only_settles_what_was_unclear(
    centre: float, down: float, up: float, first: float, second: float
) -> None:
    wide = analyse.judge(estimate(centre, down, up)).verdict
    narrow = analyse.judge(estimate(centre, down * first, up * second)).verdict
    assert wide in ("UNCLEAR", narrow)


def test_comparisons_take_latency_that_succeeded() -> None:
    records = [
        record("fs@eager", 1.2),
        record("gn@aten", 1.2, status="not-applicable", estimates={}),
        record("fs@eager", 1.2, measure="error"),
        record("ln@aten", 0.8),
        record("in@aten", 0.8, estimates={}),
    ]
    found = analyse.comparisons(records)
    assert [(c.record.contender, c.judgement.verdict) for c in found] == [
        ("fs@eager", "FASTER"),
        ("ln@aten", "SLOWER"),
    ]


def test_an_infinite_interval_is_dropped_and_the_value_kept() -> None:
    (found,) = analyse.comparisons(
        [record("fs@eager", 1.2, estimates={"ratio": ratio(1.2, 0.0, math.inf)})]
    )
    assert found.ratio == Estimate(1.2)
    assert found.judgement.verdict == "UNCLEAR"


def test_geometric_mean() -> None:
    mean = analyse.geometric_mean([ratio(2, 1, 4), ratio(0.5, 0.25, 1)])
    assert mean.value == pytest.approx(1)
    assert mean.low is not None
    assert mean.high is not None
    # two errors of ln 2 each: √2·ln 2 / 2
    assert math.log(mean.high) == pytest.approx(math.log(2) / math.sqrt(2))
    assert math.log(mean.low) == pytest.approx(-math.log(2) / math.sqrt(2))


def test_geometric_mean_of_one_is_that_one() -> None:
    (low, value, high) = (1.1, 1.3, 1.9)
    mean = analyse.geometric_mean([ratio(value, low, high)])
    assert (mean.low, mean.value, mean.high) == pytest.approx((low, value, high))


def test_geometric_mean_has_no_interval_where_a_part_has_none() -> None:
    mean = analyse.geometric_mean([ratio(2, None, None), ratio(8, 7, 9)])
    assert (mean.value, mean.low, mean.high) == (pytest.approx(4), None, None)


@pytest.mark.parametrize("values", [[], [1.0, 0.0], [-1.0]])
def test_geometric_mean_refuses_what_has_none(values: list[float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        analyse.geometric_mean([Estimate(v) for v in values])


def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_says() -> None:
    import random

    draw, inside, sigma = random.Random(3), 0, 0.04
    for _ in range(2000):
        parts = []
        for truth in (0.2, -0.1, 0.05):
            centre = truth + draw.gauss(0, sigma)
            parts.append(estimate(centre, 1.96 * sigma, 1.96 * sigma))
        mean = analyse.geometric_mean(parts)
        assert mean.low is not None
        assert mean.high is not None
        inside += mean.low <= math.exp(0.05) <= mean.high
    assert inside / 2000 == pytest.approx(0.95, abs=0.015)


def summarise(*records: Record) -> list[analyse.Summary]:
    return analyse.summaries(analyse.comparisons(records))


def test_summaries_are_means_over_layers_of_one_batch_and_direction() -> None:
    found = summarise(
        record("fs@eager", 2.0, layer=8),
        record("fs@eager", 0.5, layer=16),
        record("fs@eager", 3.0, batch=9),
        record("fs@eager", 5.0, direction="fwd"),
    )
    values = {(s.batch, s.direction): round(s.ratio.value, 6) for s in found}
    assert values == {(4, "fwd_bwd"): 1.0, (9, "fwd_bwd"): 3.0, (4, "fwd"): 5.0}


def test_summaries_keep_devices_types_and_baselines_apart() -> None:
    work = Workload("synthetic", 4, 8, (4, 4), dtype="bfloat16")
    found = summarise(
        record("fs@eager", 2.0),
        record("fs@eager", 3.0, workload=work),
        record("fs@eager", 4.0, baseline="gn@aten"),
    )
    assert sorted(round(s.ratio.value) for s in found) == [2, 3, 4]


def test_best_leaves_the_baseline_and_partial_means_out() -> None:
    found = summarise(
        *(record("bn@aten", 1.9, layer=layer) for layer in (8, 16)),
        *(record("fs@eager", 1.2, layer=layer) for layer in (8, 16)),
        *(record("ns@eager", 0.3, layer=layer) for layer in (8, 16)),
        record("gn@aten", 1.5, layer=16),
    )
    best = analyse.best(found)
    assert best is not None
    assert best.contender == "fs@eager"
    partial = next(s for s in found if s.contender == "gn@aten")
    assert (partial.layers, partial.of, partial.complete) == (1, 2, False)


def test_best_takes_a_partial_mean_before_nothing() -> None:
    found = summarise(record("bn@aten", 1.0), record("bn@aten", 1.0, layer=16),
                      record("gn@aten", 0.9))  # fmt: skip
    best = analyse.best(found)
    assert best is not None
    assert best.contender == "gn@aten"
    assert analyse.best([]) is None


def test_front_keeps_what_nothing_beats() -> None:
    points = [(3, 9), (1, 1), (2, 5), (2, 4), (4, 9), (5, 2)]
    assert analyse.front(points, lambda p: p[0], lambda p: p[1]) == [(1, 1), (2, 5), (3, 9)]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_front_by_definition(points: list[tuple[int, int]]) -> None:
    def beats(p: tuple[int, int], q: tuple[int, int]) -> bool:
        return p[0] <= q[0] and p[1] >= q[1] and p != q

    expected = {p for p in points if not any(beats(q, p) for q in points)}
    found = analyse.front(points, lambda p: p[0], lambda p: p[1])
    assert set(found) == expected
    assert found == sorted(found)
    assert len(found) == len(expected)


def test_series_are_sorted_by_batch_and_without_failures() -> None:
    (line,) = analyse.series(
        [
            record("fs@eager", 1.3, batch=32),
            record("fs@eager", 1.1, batch=2),
            record("fs@eager", 1.2, batch=8, status="timeout"),
            record("ns@eager", 1.2, estimates={}),
        ],
        "ratio",
    )
    assert (line.contender, line.batches) == ("fs@eager", (2, 32))
    assert [v.value for v in line.values] == [1.1, 1.3]


def test_missing_names_planned_results_without_a_record() -> None:
    block = Block(Workload("synthetic", 4, 8, (4, 4)), (BN, FS), BN, ("latency", "error"),
                  ("fwd",), LatencyOptions(), ErrorOptions())  # fmt: skip
    plan = Plan("s", "s", "", 0, (block,))
    there = record("fs@eager", 1.0, block=block.id, direction="fwd")
    assert analyse.missing(plan, [there]) == [
        (block.id, "bn@aten", "error", ""),
        (block.id, "bn@aten", "latency", "fwd"),
        (block.id, "fs@eager", "error", ""),
    ]


def test_clocks_and_caches_are_never_put_together() -> None:
    records = [record("fs", 2.0), record("fs", 8.0, timing="cuda-graph, cold")]
    first, second = analyse.summaries(analyse.comparisons(records))
    assert [s.ratio.value for s in (first, second)] == pytest.approx([2.0, 8.0])
    assert second.conditions.timing == "cuda-graph, cold"
    assert analyse.setting(records[0]) != analyse.setting(records[1])
