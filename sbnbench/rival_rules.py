"""What other tools would say of the same times: their decision rules, on two unpaired samples.

Shown beside this project's own verdicts by `sbnbench doctor --noise`. Each rule takes the times
before and after a change, in seconds a call, and tells whether the tool reports a regression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import comb
from statistics import fmean, median
from typing import Literal

import numpy as np
from scipy import stats

from sbnbench.statistics import Array

Rule = Callable[[Sequence[float], Sequence[float]], bool]

FIELDS: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "mean": fmean,
    "median": median,
}


def pytest_benchmark(
    before: Sequence[float],
    after: Sequence[float],
    field: Literal["min", "mean", "median"] = "mean",
    percent: float = 5,
) -> bool:
    """`--benchmark-compare-fail=mean:5%`: after/before·100 − 100 > 5.

    Source: pytest-benchmark 5.3.1, utils.py, PercentageRegressionCheck.
    """
    value = FIELDS[field]
    return value(after) / value(before) * 100 - 100 > percent


def asv(
    before: Sequence[float], after: Sequence[float], factor: float = 1.1, p: float = 0.002
) -> bool:
    """`asv continuous`: the median beyond the factor, and a two-sided Mann–Whitney test below p.

    Exact up to 20 samples a side, normal without continuity correction above. Source: asv,
    commands/compare.py (_is_result_better) and statistics.py (is_different). With samples so few
    that the test cannot fall below p, asv compares intervals instead; that is refused here with
    ValueError. (Its exact p leaves out the observed value on one side, which makes a difference to
    six samples a side and none to thirty.)
    """
    if 2 / comb(len(before) + len(after), len(before)) >= p:
        raise ValueError(f"Mann–Whitney cannot reach p < {p} with so few samples")
    exact = max(len(before), len(after)) <= 20
    found = stats.mannwhitneyu(
        before, after, use_continuity=False, method="exact" if exact else "asymptotic"
    )
    return bool(found.pvalue < p and np.median(before) < np.median(after) / factor)


def criterion(
    before: Sequence[float],
    after: Sequence[float],
    noise: float = 0.01,
    significance: float = 0.05,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> bool:
    """criterion.rs: Welch's t below the significance level, its distribution bootstrapped from the
    pooled samples, and the bootstrapped interval of the relative change of the mean beyond noise.

    Its own default is 100,000 resamples; 10,000 fix p = 0.05 to ±0.004 and take a tenth of the
    time. Source: criterion.rs, src/analysis/compare.rs, src/stats/univariate/mixed.rs and
    src/report.rs; https://bheisler.github.io/criterion.rs/book/analysis.html.
    """
    rng = np.random.default_rng(seed)
    old, new = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    pooled = np.concatenate([new, old])
    hits, changes = 0, []
    t = _welch(new[None], old[None])[0]
    chunk = max(1, 4_000_000 // len(pooled))
    for start in range(0, resamples, chunk):
        n = min(chunk, resamples - start)
        drawn = pooled[rng.integers(0, len(pooled), (n, len(pooled)))]
        hits += int(np.sum(_welch(drawn[:, : len(new)], drawn[:, len(new) :]) < t))
        means = [x[rng.integers(0, len(x), (n, len(x)))].mean(axis=1) for x in (new, old)]
        changes.append(means[0] / means[1] - 1)
    p = 2 * min(hits, resamples - hits) / resamples
    low = np.percentile(np.concatenate(changes), 50 * (1 - level))
    return bool(p < significance and low > noise)


RULES: dict[str, Rule] = {
    "pytest-benchmark mean:5%": pytest_benchmark,
    "pytest-benchmark median:5%": partial(pytest_benchmark, field="median"),
    "pytest-benchmark min:5%": partial(pytest_benchmark, field="min"),
    "asv": asv,
    "criterion": criterion,
}


def _welch(a: Array, b: Array) -> Array:
    """Welch's t along the last axis; infinite between two constants."""
    error = np.sqrt(a.var(-1, ddof=1) / a.shape[-1] + b.var(-1, ddof=1) / b.shape[-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((a.mean(-1) - b.mean(-1)) / error)
