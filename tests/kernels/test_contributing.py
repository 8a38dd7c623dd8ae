"""What CONTRIBUTING.md tells to write for a built-in normalizer is right as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sbnbench import registry
from sbnbench.bench import set_up
from sbnbench.errors import VerificationFailed
from sbnbench.model import Normalizer, Workload
from sbnbench.registry import parse_contender
from sbnbench.verify import check
from sbnbench_kernels.catalog.common import EPS

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"
FILES = dict(re.findall(r"^```python (\S+)\n(.*?)^```$", CONTRIBUTING.read_text(), re.M | re.S))
OP = FILES["kernels/sbnbench_kernels/eager/rms.py"]


@pytest.fixture
def add(monkeypatch):
    """Puts the op and its catalog entry in their places, for one test."""

    def put(op: str) -> None:
        module = ModuleType("sbnbench_kernels.eager.rms")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(op, "rms.py", "exec"), module.__dict__)
        entry = eval(
            FILES["kernels/sbnbench_kernels/catalog/grouped.py"],
            {"Normalizer": Normalizer, "EPS": EPS},
        )
        monkeypatch.setitem(registry.normalizers()._items, entry.name, entry)

    return put


def written_test():
    scope: dict = {}
    exec(FILES["tests/kernels/test_rms.py"], scope)
    return scope["test_rms_agrees_with_float64"]


def bench():
    return set_up(parse_contender("rms"), Workload("synthetic", 4, 8, (6, 6)), seed=0)


def test_the_op_passes_its_test_and_the_verification(kit, add):
    add(OP)
    written_test()(kit)
    made = bench()
    assert set(check(made, made.inputs, 0)) >= {"y", "dx", "dweight", "dbias"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_without_scale_and_bias_and_in_other_dtypes(kit, add, dtype):
    import torch

    from sbnbench.registry import build
    from sbnbench_kernels.contract import State

    add(OP)
    inputs = kit.make_inputs((4, 6, 8, 7), getattr(torch, dtype))
    op = build(parse_contender("rms"))
    y, saved = op.forward(inputs.x, None, None, State())
    dx, dweight, dbias = op.backward(inputs.dy, saved)
    assert y.dtype == dx.dtype == inputs.x.dtype
    assert dweight is None
    assert dbias is None


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("(g - xhat *", "(g - 0.9 * xhat *"),
        ("* column(weight, dy)", "* 1.0"),
        ("rsqrt(wide.square().mean(dims) + self.eps)", "rsqrt(wide.var(dims) + self.eps)"),
    ],
)
def test_planted_bugs_are_found_by_the_written_test(kit, add, right, wrong):
    assert right in OP
    add(OP.replace(right, wrong))
    with pytest.raises(AssertionError, match="times the tolerance"):
        written_test()(kit)


def test_a_wrong_gradient_does_not_get_timed(add):
    add(OP.replace("(g - xhat *", "(g + xhat *"))
    made = bench()
    with pytest.raises(VerificationFailed, match="dx differs"):
        check(made, made.inputs, 0)
