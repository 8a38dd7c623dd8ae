"""The answer in words, for each way that a run can end."""

from __future__ import annotations

from dataclasses import replace as changed
from typing import Any

import pytest
from msgspec.structs import replace

from sbnbench.model import Estimate
from sbnbench_reports import text


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
        (0.5, 0.01, "nothing beats `bn@aten`. The nearest,"),
        (1.0, 0.01, "nothing is surely faster than `bn@aten` by more than 5 %"),
        (1.2, 0.40, "nothing is surely faster"),
    ],
)
def test_the_first_sentence_says_how_it_ended(
    run: Any, value: float, half: float, words: str
) -> None:
    first = text.answer(with_ratios(run, value, half))[0]
    assert words in first
    assert first.startswith("On this machine, at batch 32, forward + backward")


def test_slower_is_also_said_as_time(run: Any) -> None:
    assert "takes 2.00× its time: SLOWER" in text.answer(with_ratios(run, 0.5, 0.01))[0]


def test_verdicts_over_batches(run: Any) -> None:
    assert text.answer(with_ratios(run, 1.5, 0.01))[1].endswith(
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
    price = text.answer(changed(run, records=records))[-1]
    assert "by a factor of 1.22" in price  # e^0.2
    assert "of 1.49 or more" in price  # e^0.4


def test_outcome_counts_everything(run: Any) -> None:
    assert text.outcome(changed(run, records=run.records[:-1])) == (
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
