"""Ratios, intervals, verdicts and findings, on numbers small enough to check by hand."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sbnbench.model import Estimate
from sbnbench.statistics import (
    between,
    centre,
    decide,
    drift,
    location,
    log_ratios,
    notes,
    outliers,
    paired_ratio,
    ratio_of,
    spread,
    standard_error,
)

NUMBERS = st.floats(-1, 1, allow_subnormal=False)
RATIOS = st.floats(0.5, 2)


def rounds(n: int, *, at: float = 0.0, sd: float = 0.01, seed: int = 0) -> np.ndarray:
    return at + sd * np.random.default_rng(seed).normal(size=n)


@given(st.lists(NUMBERS, min_size=1, max_size=30))
def test_centre_is_the_median_of_all_pairwise_means(numbers: list[float]) -> None:
    # an even number of rounds has its farthest pairs twice, which may move a tie's middle
    means = sorted((a + b) / 2 for a, b in combinations_with_replacement(numbers, 2))
    if len(numbers) % 2 == 0:
        half = len(numbers) // 2
        means = sorted(means + [(numbers[i] + numbers[i + half]) / 2 for i in range(half)])
    assert float(centre(np.array(numbers))) == pytest.approx(float(np.median(means)), abs=1e-12)


def test_centre_of_many_rounds_needs_no_more_partners() -> None:
    x = rounds(2000, sd=1.0)
    full = np.median(np.add.outer(x, x)[np.triu_indices(len(x))] / 2)
    assert abs(float(centre(x)) - full) < 0.1 / math.sqrt(len(x))


def test_centre_withstands_a_quarter_of_wild_rounds_and_lies_between_two_humps() -> None:
    wild = rounds(100)
    wild[::4] = 50.0
    assert abs(float(centre(wild))) < 0.02
    humps = np.tile([-0.1, 0.1], 50) + rounds(100, sd=0.003)
    assert abs(float(centre(humps))) < 0.002


def test_interval_over_few_processes_is_students() -> None:
    centres = np.array([0.10, 0.12, 0.11, 0.09, 0.13])
    value, half = between(centres, 0.95)
    assert float(value) == pytest.approx(0.11)
    assert float(half) == pytest.approx(
        stats.t.ppf(0.975, 4) * centres.std(ddof=1) / math.sqrt(5), rel=1e-12
    )


def test_interval_over_many_processes_is_tukey_and_mclaughlins() -> None:
    centres = np.array([5.0, 0.1, 0.2, 0.3, 0.5, 0.6, 0.7, -9.0])
    inner = np.array([0.1, 0.2, 0.3, 0.5, 0.6, 0.7])
    winsorized = np.concatenate([[0.1], inner, [0.7]])
    squares = np.sum((winsorized - winsorized.mean()) ** 2)
    value, half = between(centres, 0.90)
    assert float(value) == pytest.approx(inner.mean())
    assert float(half) == pytest.approx(stats.t.ppf(0.95, 5) * math.sqrt(squares / (6 * 5)))


def test_from_eight_processes_on_one_stray_is_trimmed() -> None:
    near = np.linspace(-0.01, 0.01, 7)
    value, half = between(np.append(near, 0.5))
    same_but_farther, same_half = between(np.append(near, 5.0))
    assert float(value) == float(same_but_farther)
    assert float(half) == float(same_half) < 0.02
    assert abs(float(value)) < 0.01


def test_standard_error_is_that_of_the_centre_also_where_rounds_depend_on_each_other() -> None:
    white = np.random.default_rng(0).normal(size=(300, 240))
    slow = np.repeat(white[:, ::8], 8, axis=1)  # rounds that come in eights, all alike
    for x in (white, slow):
        told = np.sqrt(np.mean([standard_error(row) ** 2 for row in x]))
        assert told == pytest.approx(centre(x).std(), rel=0.15)
    assert standard_error(np.zeros(3)) == math.inf


def test_stretches_hold_whole_mirrored_twos() -> None:
    humps = np.tile([-0.1, 0.1], 8) + rounds(16, sd=0.003)
    assert standard_error(humps) < 0.002


def test_a_known_ratio_survives_drift_and_bursts() -> None:
    rng = np.random.default_rng(1)
    slowness = np.exp(np.cumsum(rng.normal(0, 0.03, (5, 400)), axis=1))
    contender = 1e-3 * slowness * np.exp(rng.normal(0, 0.01, slowness.shape))
    baseline = 1.1e-3 * slowness * np.exp(rng.normal(0, 0.01, slowness.shape))
    for times in (contender, baseline):
        times[rng.random(times.shape) < 0.08] *= 5
    found = paired_ratio(baseline.tolist(), contender.tolist())
    assert found.value == pytest.approx(1.1, rel=0.003)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 1.1 < found.high < 1.01 * found.low
    assert found.unit == "1"


def test_swapping_baseline_and_contender_inverts_the_ratio() -> None:
    a = [np.exp(rounds(40, seed=s)).tolist() for s in range(3)]
    b = [np.exp(rounds(40, at=0.2, seed=9 + s)).tolist() for s in range(3)]
    there, back = paired_ratio(a, b), paired_ratio(b, a)
    assert there.low is not None
    assert back.high is not None
    assert there.value == pytest.approx(1 / back.value)
    assert there.low == pytest.approx(1 / back.high)


def test_two_processes_have_an_interval_and_one_covers_its_rounds() -> None:
    two = ratio_of([rounds(60), rounds(60, seed=1)])
    one = ratio_of([rounds(60)])
    assert two.low is not None
    assert one.low is not None
    assert one.value / one.low == pytest.approx(
        math.exp(stats.t.ppf(0.975, 6) * standard_error(rounds(60)))
    )
    assert notes([rounds(60)])[0].startswith("one process")
    assert notes([rounds(60), rounds(60, seed=1)]) == ()


def test_too_few_rounds_in_one_process_give_no_interval() -> None:
    found = ratio_of([rounds(3)])
    assert (found.low, found.high) == (None, None)
    assert decide(found, 0.05)[0] == "UNCLEAR"


def test_location_is_in_seconds() -> None:
    found = location([(1e-3 * np.exp(rounds(50, seed=s))).tolist() for s in range(3)])
    assert found.unit == "s"
    assert found.value == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize(
    ("baseline", "contender"),
    [
        ([[1.0, 2.0]], [[1.0]]),
        ([[1.0]], [[1.0], [1.0]]),
        ([[1.0]], [[0.0]]),
        ([[1.0]], [[math.nan]]),
        ([[]], [[]]),
        ([], []),
    ],
)
def test_times_that_are_no_pairs_are_refused(
    baseline: list[list[float]], contender: list[list[float]]
) -> None:
    with pytest.raises(ValueError, match=r"process|paired"):
        paired_ratio(baseline, contender)


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (1.10, 1.08, 1.12, "FASTER"),
        (1.06, 1.03, 1.09, "FASTER"),  # the best guess beyond 5 %, certainly beyond half of it
        (1.06, 1.02, 1.10, "UNCLEAR"),  # not certainly beyond half of it
        (1.04, 1.03, 1.06, "UNCLEAR"),  # neither beyond nor within
        (1.04, 1.03, 1.049, "SAME"),  # certainly different, and certainly by less than 5 %
        (0.90, 0.88, 0.92, "SLOWER"),
        (1.00, 0.98, 1.02, "SAME"),
        (1.00, 0.90, 1.10, "UNCLEAR"),
    ],
)
def test_verdicts(value: float, low: float, high: float, verdict: str) -> None:
    found, reason = decide(Estimate(value, low, high), 0.05)
    assert found == verdict
    assert f"{value:.3f}" in reason


@given(RATIOS, st.floats(0, 0.5), st.floats(0.005, 0.3))
def test_verdicts_mirror(value: float, half: float, threshold: float) -> None:
    mirrored = {"FASTER": "SLOWER", "SLOWER": "FASTER", "SAME": "SAME", "UNCLEAR": "UNCLEAR"}
    edge = math.log1p(threshold)
    if any(abs(abs(x) - edge) < 1e-9 for x in (math.log(value) + h for h in (-half, 0, half))):
        return  # rounding decides there
    ahead = decide(Estimate(value, value * math.exp(-half), value * math.exp(half)), threshold)[0]
    back = decide(Estimate(1 / value, math.exp(-half) / value, math.exp(half) / value), threshold)[
        0
    ]
    assert mirrored[ahead] == back


@given(RATIOS, st.floats(0, 0.3), st.floats(0, 0.3), st.floats(0.005, 0.3))
def test_a_wider_interval_only_makes_unclear(
    value: float, half: float, more: float, threshold: float
) -> None:
    def verdict(h: float) -> str:
        return decide(Estimate(value, value * math.exp(-h), value * math.exp(h)), threshold)[0]

    assert verdict(half + more) in (verdict(half), "UNCLEAR")


@given(RATIOS, RATIOS, st.floats(0, 0.3), st.floats(0.005, 0.3))
def test_a_larger_ratio_never_looks_slower(
    a: float, b: float, half: float, threshold: float
) -> None:
    rank = {"SLOWER": 0, "UNCLEAR": 1, "SAME": 1, "FASTER": 2}
    low, high = (
        rank[decide(Estimate(v, v * math.exp(-half), v * math.exp(half)), threshold)[0]]
        for v in sorted((a, b))
    )
    assert low <= high


def test_a_threshold_is_positive() -> None:
    with pytest.raises(ValueError, match="above 0"):
        decide(Estimate(1.0, 0.9, 1.1), 0.0)


def test_disagreeing_processes_are_told_and_ask_for_more_of_them() -> None:
    apart = [rounds(60, at=0.12), rounds(60, seed=1), rounds(60, seed=2)]
    assert spread(apart).by_process
    assert "more processes" in notes(apart)[0]
    noisy = [rounds(60, sd=0.3, seed=s) for s in range(3)]
    assert not spread(noisy).by_process
    assert notes(noisy) == ()


def test_unequally_precise_processes_are_told() -> None:
    said = notes([rounds(80), rounds(80, seed=1), rounds(80, sd=0.3, seed=2)])
    assert any("as precise as another" in note for note in said)


def test_outliers_are_counted_by_tukeys_fences() -> None:
    x = np.arange(-50.0, 51.0)
    x[[0, 1, 2]] = [-120.0, 176.0, 178.0]  # quartiles −23 and 27: severe beyond −173 and 177
    found = outliers([x])
    assert (found.mild, found.severe, found.rounds) == (2, 1, 101)
    assert outliers([np.array([0.0, 0.0, 0.0, 0.0, 1.0])]).severe == 1


def test_drift_tells_a_machine_with_two_speeds() -> None:
    two = drift([[1.0, 1.4] * 50])
    assert two.swing == pytest.approx(1.4)
    assert two.split == pytest.approx(1.4)
    assert drift([[1.0] * 95 + [1.4] * 5]).split == 1.0


def test_log_ratios_are_positive_for_a_faster_contender() -> None:
    assert log_ratios([[2.0]], [[1.0]])[0][0] == pytest.approx(math.log(2))
