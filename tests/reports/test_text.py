"""The answer in words, for each way that a run can end."""

from __future__ import annotations

from dataclasses import replace as changed
from typing import Any

import pytest
from msgspec.structs import replace

from sbnbench import units
from sbnbench.model import Estimate
from sbnbench_reports import answer, text


def with_ratios(run: Any, value: float, half: float) -> Any:
    """The run with all ratios but the baseline's around `value`."""
    ratio = Estimate(value, value - half, value + half)
    records = [
        replace(r, estimates={**r.estimates, "ratio": ratio}) if "ratio" in r.estimates else r
        for r in run.records
    ]
    return changed(run, records=records)


@pytest.mark.parametrize(
    ("value", "half", "words"),
    [
        (1.5, 0.01, "runs at 1.50× the speed of `bn@aten`"),
        (0.5, 0.01, "no contender comes out faster than `bn@aten`. The nearest,"),
        (1.0, 0.01, "nothing is surely faster than `bn@aten` by more than 5 %"),
        (1.2, 0.40, "nothing is surely faster"),
    ],
)
def test_the_first_sentence_says_how_it_ended(
    run: Any, value: float, half: float, words: str
) -> None:
    first = answer.answer(with_ratios(run, value, half))[0]
    assert words in first
    assert first.startswith("On this machine, at batch 32, forward + backward")


def test_slower_is_also_said_as_time(run: Any) -> None:
    assert "takes 2.00× its time: SLOWER" in answer.answer(with_ratios(run, 0.5, 0.01))[0]


def test_verdicts_over_batches(run: Any) -> None:
    assert answer.answer(with_ratios(run, 1.5, 0.01))[1].endswith(
        "FASTER at batch 1, 2, 4, 8, 16 and 32."
    )


def test_the_price_names_factors_of_the_worse_layer(run: Any) -> None:
    records = []
    for record in run.records:
        if "var_batch_median" in record.estimates:
            middle = 0.2 if record.workload.channels == 672 else 0.1
            errors = {"var_batch_median": Estimate(middle), "var_batch_p95": Estimate(0.4)}
            record = replace(record, estimates={**record.estimates, **errors})
        records.append(record)
    price = answer.answer(changed(run, records=records))[-1]
    assert "by a factor of 1.22" in price  # e^0.2
    assert "of 1.49 or more" in price  # e^0.4


def test_rounding_is_no_price(run: Any) -> None:
    tiny = {"var_batch_median": Estimate(2e-8), "var_batch_p95": Estimate(3e-7)}
    records = [
        replace(r, estimates={**r.estimates, **tiny}) if "var_batch_median" in r.estimates else r
        for r in run.records
    ]
    assert answer.answer(changed(run, records=records))[-1].endswith(
        "are those of the whole batch, up to rounding."
    )


def test_a_winner_that_estimates_nothing_is_not_the_whole_answer(run: Any) -> None:
    ratio = Estimate(3.0, 2.9, 3.1)
    records = [
        replace(r, status="ok", estimates={"ratio": ratio})
        if r.measure == "latency" and r.contender == "gn[groups=32]@aten"
        else r
        for r in run.records
    ]
    said = answer.answer(changed(run, records=records))
    assert "`gn[groups=32]@aten` runs at 3.00×" in said[0]
    assert said[2].startswith("`gn[groups=32]@aten` computes other statistics than BatchNorm.")
    assert "`fs[ratio=1/16]@inductor` runs at 1." in said[2]
    assert said[3].startswith("The price: there the variance that `fs[ratio=1/16]@inductor`")


def test_outcome_counts_everything(run: Any) -> None:
    assert answer.outcome(changed(run, records=run.records[:-1])) == (
        "575 results; 46 not applicable or unavailable; 20 failed; 1 planned but missing"
    )


def test_layers_are_told_apart_by_what_differs(run: Any) -> None:
    (first, second) = (
        run.records[0],
        replace(run.records[0], workload=replace(run.records[0].workload, dtype="bfloat16")),
    )
    assert list(text.layer_names([first]).values()) == ["_blocks.3._bn1 144×28×28"]
    assert list(text.layer_names([first, second]).values()) == [
        "_blocks.3._bn1 144×28×28, float32",
        "_blocks.3._bn1 144×28×28, bfloat16",
    ]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.931, 1.118, "0.93–1.12"),
        (1.2041, 1.2312, "1.204–1.231"),
        (1.00012, 1.00034, "1.000–1.000"),
        (2.0, 2.0, "2.00–2.00"),
        (None, 1.0, "no interval"),
    ],
)
def test_intervals_have_the_digits_they_need(
    low: float | None, high: float | None, words: str
) -> None:
    assert units.interval(Estimate(1.0, low, high)) == words


def test_layers_are_told_apart_by_their_timing(small: Any) -> None:
    cold = [replace(r, block="another", timing="cold") for r in small.records]
    plain, both = text.layer_names(small.records), text.layer_names([*small.records, *cold])
    assert len(both) == 2 * len(plain)
    assert {name.rpartition(", ")[2] for name in both.values()} == {"hot", "cold"}
    assert any(name.endswith("usual clock, hot") for name in both.values())
    again = answer.answer(changed(small, records=[*small.records, *cold]))
    assert any(s.startswith("cold: ") for s in again)
