"""Peak memory against what can be counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sbnbench.bench import Bench, set_up
from sbnbench.measure.memory import measure_memory
from sbnbench.model import Workload
from sbnbench.registry import parse_contender

WORKLOAD = Workload("synthetic", 8, 16, (16, 16))
TENSOR = 8 * 16 * 256 * 4


class ByHand:
    """Forward holds two tensors beside y at one time, and keeps one; backward holds three."""

    def forward(self, x: torch.Tensor, *_: Any) -> Any:
        a = x + 1
        b = a * 2
        y = a + b
        del b
        return y, a

    def backward(self, dy: torch.Tensor, saved: torch.Tensor) -> Any:
        a = dy * saved
        b = a + dy
        return b + a, None, None


def peak(op: Any, direction: Any) -> float:
    bench = set_up(parse_contender("bn@aten"), WORKLOAD, 0)
    bench.op = op
    found = measure_memory(bench, direction)["peak_memory"]
    assert (found.unit, found.low, found.high) == ("B", None, None)
    return found.value


def near(tensors: int) -> Any:
    return pytest.approx(tensors * TENSOR, rel=0.01)


@pytest.mark.parametrize(("direction", "tensors"), [("fwd", 3), ("bwd", 3), ("fwd_bwd", 4)])
def test_what_is_held_at_one_time(direction: str, tensors: int) -> None:
    assert peak(ByHand(), direction) == near(tensors)


def test_memory_inside_an_operator_counts() -> None:
    """softmax over a strided dimension makes a contiguous copy that no operator returns."""

    class Hidden:
        def forward(self, x: torch.Tensor, *_: Any) -> Any:
            return torch.sort(x.flatten()).values, None

    assert peak(Hidden(), "fwd") > 2 * TENSOR  # the indices, which are dropped


def test_nothing_is_nothing() -> None:
    class Nothing:
        def forward(self, x: torch.Tensor, *_: Any) -> Any:
            return x.view(-1), None

    assert peak(Nothing(), "fwd") < 1000


@pytest.mark.parametrize("name", ["bn@aten", "bn@eager", "fs@eager", "gn[groups=2]@aten"])
def test_a_forward_holds_its_output_at_least(name: str) -> None:
    bench = set_up(parse_contender(name), WORKLOAD, 0)
    with torch.no_grad():
        assert measure_memory(bench, "fwd")["peak_memory"].value >= TENSOR


def test_a_gpu_is_asked_for_its_own_count(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = set_up(parse_contender("bn@aten"), WORKLOAD, 0)
    on_gpu = Bench(bench.contender, bench.op, bench.inputs, bench.state)
    object.__setattr__(
        bench.inputs, "workload", Workload("synthetic", 8, 16, (16, 16), device="cuda")
    )
    cuda.allocated = 1000
    cuda.peak = 10**9  # of something before

    def call() -> None:
        cuda.peak = max(cuda.peak, cuda.allocated + 640)

    monkeypatch.setattr(on_gpu, "call", lambda direction: call)
    assert measure_memory(on_gpu, "fwd")["peak_memory"].value == 640
