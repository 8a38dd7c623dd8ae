"""`sbnbench kernels`: counted without a GPU, refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("triton")

Run = Callable[..., Any]
SMALL = ("--input", "synthetic:64x56x56", "--batch", "32")


def test_a_contender_is_counted(sbnbench: Run) -> None:
    done = sbnbench("kernels", "bn", "--arch", "sm_90", "--bandwidth", "1000", "--json", *SMALL)
    assert done.code == 0, done.err
    (found,) = json.loads(done.out)
    assert found["contender"] == "bn@triton"
    assert found["arch"] == "sm_90"
    assert found["kernels"]
    assert all(k["spills"] == 0 and k["local_bytes"] == 0 for k in found["kernels"])
    forward = next(t for t in found["totals"] if t["direction"] == "fwd")
    size = 32 * 64 * 56 * 56 * 2  # bfloat16
    assert forward["bytes_written"] == pytest.approx(size, rel=0.01)
    assert forward["bytes_read"] == pytest.approx(2 * size, rel=0.01)  # two passes of full BN
    moved = forward["bytes_read"] + forward["bytes_written"]
    assert forward["seconds"] == pytest.approx(moved / 1e12)


def test_a_gpu_by_name_brings_its_architecture(sbnbench: Run) -> None:
    done = sbnbench("kernels", "ln", "--gpu", "a100", *SMALL)
    assert done.code == 0, done.err
    assert "sm_80" in done.out
    assert "at a100 no less than" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mabn",), "no backend 'triton'"),
        (("bn@eager",), "only the backend triton"),
        (("bn", "--arch", "sm_12"), "unknown architecture"),
        (("bn", "--gpu", "h100-smx"), "did you mean h100"),
        (("bn", "--gpu", "a100-80gb", "--arch", "sm_90"), "is sm_80"),
        (("bn", "--dtype", "float64"), "float64"),
        (("bn", "--dtype", "int8"), "unknown dtype"),
        (("bn", "--input", "64x56x56"), "is no input"),
    ],
)
def test_bad_input(sbnbench: Run, arguments: tuple[str, ...], message: str) -> None:
    done = sbnbench("kernels", *arguments)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) <= 2
