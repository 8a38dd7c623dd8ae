"""Floors: exactly the bytes, the fastest way, the same floor for the same bytes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sbnbench import floor
from sbnbench.bench import inputs_of
from sbnbench.floor import Floors, Moves, Traffic, passes, steps, traffic_of
from sbnbench.model import Workload
from sbnbench.registry import parse_contender

WORKLOAD = Workload("synthetic", 4, 8, (6, 6))
TENSOR = 4 * 8 * 36 * 4


def first(call: Any) -> float:
    return 0.0


def traffic(text: str, direction: Any, workload: Workload = WORKLOAD) -> Traffic:
    contender = parse_contender(text)
    return traffic_of(contender, inputs_of(contender, workload), direction)


class Bytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operators read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.read = self.written = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        distinct = {id(a): a for a in args if isinstance(a, torch.Tensor)}
        self.read += sum(a.nbytes for a in distinct.values())
        made = func(*args, **(kwargs or {}))
        self.written += made.nbytes if made.dim() else 0
        return made


@pytest.mark.parametrize("direction", ["fwd", "bwd", "fwd_bwd"])
@pytest.mark.parametrize(
    "text",
    ["bn@aten", "fs@eager", "fs[backward=detached]@eager", "bs+vdn@eager", "gn[groups=2]@aten"],
)
def test_a_floor_moves_the_contenders_bytes(text: str, direction: Any, monkeypatch: Any) -> None:
    one_way = lambda operands: dict([next(iter(passes(operands).items()))])  # noqa: E731
    monkeypatch.setattr(floor, "passes", one_way)
    wanted = traffic(text, direction)
    floors = Floors([wanted], "cpu", first, {})
    with Bytes() as counted:
        floors.call(wanted)()
    slack = 4 * len(wanted.moves)  # bytes are rounded to elements
    assert counted.read == pytest.approx(wanted.read, abs=slack)
    assert counted.written == pytest.approx(wanted.written, abs=slack)


def test_traffic_of_batchnorm_by_hand() -> None:
    assert traffic("bn@aten", "fwd") == Traffic((Moves(2 * TENSOR, TENSOR, 1, TENSOR),), True)
    both = traffic("bn@aten", "fwd_bwd")
    assert (both.read, both.written) == (6 * TENSOR, 2 * TENSOR)


def test_virtual_rows_are_moved_too() -> None:
    assert traffic("vdn[num_virtual=2]@eager", "fwd").written == TENSOR * 6 // 4


def test_a_sample_that_lies_scattered_moves_whole_lines() -> None:
    apart = Workload("synthetic", 4, 8, (28, 28))
    beside = Workload("synthetic", 4, 8, (28, 28), format="channels_last")
    assert traffic("fs@eager", "fwd", apart).read > 1.1 * apart.nbytes
    assert traffic("fs@eager", "fwd", beside).read < 1.1 * beside.nbytes


def test_a_normalizer_that_is_not_known_reads_its_inputs_and_writes_its_output_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sbnbench.errors import UnknownName

    def unknown(name: str, *_: object, **__: object) -> None:
        raise UnknownName("normalizer", name, ())

    monkeypatch.setattr(floor, "traffic", unknown)
    found = traffic("bn@aten", "fwd_bwd")
    assert not found.known
    assert [(m.read, m.written) for m in found.moves] == [(TENSOR, TENSOR), (2 * TENSOR, TENSOR)]


moves = st.builds(
    lambda written, extra, inputs: Moves(4 * (written + extra), 4 * written, inputs, 4 * written),
    st.integers(1, 10**9),
    st.integers(0, 10**10),
    st.sampled_from([1, 2]),
)


@given(moves)
def test_steps_add_up(m: Moves) -> None:
    found = steps(m)
    assert 4 * (found.swept + found.operands * found.passed) == m.read
    assert 4 * found.passed == m.written
    assert 1 <= found.operands <= m.inputs
    assert found.swept >= 0


def test_a_backward_pass_reads_two_tensors_at_once() -> None:
    assert steps(Moves(40, 10 * 4, 2, 40)).operands == 1
    assert steps(Moves(80, 40, 2, 40)).operands == 2
    assert steps(Moves(160, 40, 2, 40)) == floor.Steps(20, 2, 10)


def test_the_fastest_way_is_taken_and_tried_once_for_each_size() -> None:
    tried: list[float] = []

    def time(call: Any) -> float:
        tried.append(1.0)
        return float(-len(tried))  # the last way tried is the fastest

    wanted = [traffic(t, "fwd") for t in ("bn@aten", "bs[ratio=1/2]@eager", "bs[ratio=1/4]@eager")]
    chosen: dict[str, str] = {}
    floors = Floors(wanted, "cpu", time, chosen)
    assert floors.ways(wanted[0]) == ("dot", "copyto")
    assert Counter(floors.ways(t)[-1] for t in wanted) == {"copyto": 3}
    assert len(tried) == 2 * (3 + 1)  # three sizes of sweep, one of pass
    assert Floors(wanted[:1], "cpu", time, chosen).ways(wanted[0]) == ("dot", "copyto")
    assert len(tried) == 8


def test_what_moves_the_same_bytes_has_the_same_floor() -> None:
    wanted = [traffic(t, "fwd") for t in ("bn@aten", "bn@eager", "gn[groups=2]@aten", "fs@eager")]
    floors = Floors(wanted, "cpu", first, {})
    calls = [floors.call(t) for t in wanted]
    assert calls[0] is calls[1] is calls[2]
    assert calls[3] is not calls[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes_and_one_value(dtype: str) -> None:
    tiny = Workload("synthetic", 1, 1, (), dtype)
    wanted = traffic("bn@aten", "bwd", tiny)
    Floors([wanted], "cpu", first, {}).call(wanted)()


def test_copies_are_copies() -> None:
    source = torch.arange(5.0)
    for call in passes([source]).values():
        made = call()
        assert torch.equal(made, source)
        assert made.data_ptr() != source.data_ptr()
    assert torch.equal(passes([source, source])["add"](), 2 * source)
