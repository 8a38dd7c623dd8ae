"""Generated pages, and the long listing they are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from sbnbench.pages import normalizers_page
from sbnbench.registry import normalizers

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_of_normalizers_is_current() -> None:
    written = (DOCS / "normalizers.md").read_text(encoding="utf-8")
    assert written == normalizers_page(), "run `make docs`"


@pytest.mark.parametrize(
    "name", [n for n in normalizers() if normalizers()[n].provider == "sbnbench"]
)
def test_the_page_says_everything(name: str) -> None:
    normalizer, page = normalizers()[name], normalizers_page()
    section = page.partition(f"## {name}: ")[2].partition("\n## ")[0]
    for fact in (normalizer.title, normalizer.formula, normalizer.source, normalizer.notes):
        assert fact in section
    for param in normalizer.params:
        assert f"| `{param.name}` |" in section
    for backend, why in normalizer.without.items():
        assert f"no {backend}: {why}" in section


def test_costs_are_full_batch_norms_and_less() -> None:
    page = normalizers_page()
    assert "| [bn](#bn-batch-normalization) | A | 3 + 5 |" in page
    assert "| [fs](#fs-feature-sampling) | A | 2.06 + 5 |" in page


def test_the_long_listing(sbnbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    shown = sbnbench("list", "normalizers", "--long").out
    section = shown.partition("fs  Feature Sampling\n")[2].partition("\n\n")[0]
    for fact in (
        "class: A: drop-in for BatchNorm",
        "in training: by the sample's statistics, drawn anew every `redraw` steps; updates",
        "in eval(): by the running statistics",
        "state: weight, bias, running_mean, running_var, num_batches_tracked",
        "no aten: PyTorch has no fused operator for it",
        "parameter ratio = 1/16  in (0, 1]",
        "parameter position = per-sample  in per-sample | shared | fixed",
        "notes: One position",
    ):
        assert fact in section, section
    assert "extra_tau" in shown
