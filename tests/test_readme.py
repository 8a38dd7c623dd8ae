"""The README's examples run as they are written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


def block(word: str) -> str:
    (found,) = [b for b in BLOCKS if word in b]
    return found


def test_the_model_is_converted_and_taken_back() -> None:
    code = block("convert(model")
    names: dict[str, object] = {}
    exec(
        code.replace(
            'model = convert(model, "bn")', "sampled = model\n" + 'model = convert(model, "bn")'
        ),
        names,
    )
    kinds = [[type(m).__name__ for m in names[n].modules()] for n in ("sampled", "model")]  # type: ignore[attr-defined]
    assert "BatchNorm2d" not in kinds[0]
    assert "BatchNorm2d" in kinds[1]


@pytest.mark.slow
def test_a_run_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block("sbnbench.run("), names)
    assert names["run"].missing() == []  # type: ignore[attr-defined]
    assert list(tmp_path.glob("runs/micro-batch-*/report.html"))
