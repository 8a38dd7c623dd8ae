"""The compiled ops against the eager ones in float64, and what gets compiled when."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from sbnbench.bench import set_up
from sbnbench.errors import NotApplicable, Unavailable
from sbnbench.model import Workload
from sbnbench.registry import build, parse_contender
from sbnbench.verify import check
from sbnbench_kernels.contract import State
from sbnbench_kernels.inductor import compiled

FORMATS = ("contiguous", "channels_last")
SAMPLED = ("bn", "ns", "bs", "fs", "vdn", "bs+vdn", "fs+vdn")
PEERS = (
    "gn[groups=4]", "ln", "in", "brn", "ghost[size=3]", "l1bn", "rbn", "ebn", "sn",
    "bcn[groups=4]", "frn", "evonorm-s0[groups=4]", "evonorm-b0",
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def verify(contender: str, *shape: int, dtype: str = "float32", form: str = "contiguous") -> Any:
    """Outputs, gradients and running statistics, on two draws with two seeds; the op."""
    workload = Workload("synthetic", shape[0], shape[1], shape[2:], dtype=dtype, format=form)
    bench = set_up(parse_contender(f"{contender}@inductor"), workload, 0)
    check(bench, bench.inputs, 0)
    check(bench, bench.inputs.fresh(1), 1)
    return bench.op


@pytest.mark.parametrize(
    ("contender", "shape", "dtype", "form"),
    [
        ("bn", (5, 19, 7, 9), "float32", "channels_last"),
        ("bs", (9, 5, 6, 7), "float32", "contiguous"),
        ("fs", (3, 17, 12, 13), "bfloat16", "contiguous"),
        ("fs+vdn", (4, 6, 9, 8), "float32", "channels_last"),
        ("gn[groups=3]", (3, 6, 5, 5), "float32", "contiguous"),
    ],
)
def test_agrees_with_float64(contender: str, shape: tuple[int, ...], dtype: str, form: str) -> None:
    op = verify(contender, *shape, dtype=dtype, form=form)
    assert op.compile_seconds > 0


KINDS = [(d, f) for d in ("float32", "bfloat16") for f in FORMATS]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "form"), [*KINDS, ("float16", "contiguous"), ("float64", "channels_last")]
)
@pytest.mark.parametrize("contender", SAMPLED)
def test_sampled_in_every_dtype_and_format(contender: str, dtype: str, form: str) -> None:
    verify(contender, 6, 20, 9, 11, dtype=dtype, form=form)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "form"), [("float32", "channels_last"), ("bfloat16", "contiguous")]
)
@pytest.mark.parametrize("contender", PEERS)
def test_peers(contender: str, dtype: str, form: str) -> None:
    verify(contender, 6, 20, 9, 11, dtype=dtype, form=form)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [(33, 7), (5, 8, 13), (4, 6, 5, 6, 7), (2, 1, 3, 3), (3, 65, 1, 9)]
)
@pytest.mark.parametrize("contender", ["bn", "ns[ratio=1/3]", "fs", "bs+vdn", "gn[groups=1]"])
def test_every_number_of_dimensions(contender: str, shape: tuple[int, ...]) -> None:
    if contender == "fs" and len(shape) == 2:
        with pytest.raises(NotApplicable):
            verify(contender, *shape)
        return
    verify(contender, *shape)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mode", ["exact", "sampled", "detached"])
@pytest.mark.parametrize("name", ["ns", "bs", "fs", "vdn", "bs+vdn", "fs+vdn"])
def test_every_backward(name: str, mode: str, form: str) -> None:
    verify(f"{name}[backward={mode}]", 7, 9, 8, 10, form=form)


def test_scattered_values_are_copied_once_and_kept_for_backward() -> None:
    x = torch.randn(4, 3, 9, 9)
    ones = torch.ones(3)

    def saved(contender: str, x: Tensor) -> tuple[Any, Any]:
        op: Any = build(parse_contender(f"{contender}@inductor"))
        return op, op.forward(x, ones, ones, State(seed=1))[1]

    op, kept = saved("fs[backward=sampled]", x)
    (corners,), (copied,) = kept.positions, kept.copied
    for row, (top, left) in enumerate(corners.tolist()):
        height, width = copied.shape[2:]
        assert torch.equal(copied[row], x[row, :, top : top + height, left : left + width])
    _, dweight, dbias = op.backward(x, kept)
    moved = kept._replace(copied=(copied + 1,))
    torch.testing.assert_close(op.backward(x, moved)[1], dweight + dbias * kept.rstd)
    assert len(saved("ns[backward=sampled]", x)[1].copied) == 1
    assert not saved("fs[backward=exact]", x)[1].copied
    last = x.contiguous(memory_format=torch.channels_last)
    assert not saved("fs[backward=sampled]", last)[1].copied


@pytest.mark.parametrize(
    "contender",
    ["fs[backward=sampled]", pytest.param("ns[backward=sampled]", marks=pytest.mark.slow)],
)
def test_dy_in_another_memory_format(contender: str) -> None:
    x, weight = torch.randn(4, 3, 9, 9), torch.rand(3)
    dy = torch.randn(4, 3, 9, 9).contiguous(memory_format=torch.channels_last)
    gradients = []
    for backend in ("inductor", "eager"):
        op: Any = build(parse_contender(f"{contender}@{backend}"))
        gradients.append(op.backward(dy, op.forward(x, weight, None, State(seed=1))[1])[:2])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_every_position_of_a_patch() -> None:
    for position in ("shared", "fixed"):
        verify(f"fs[position={position}]", 5, 4, 9, 9)
    verify("fs[ratio=1/4]", 1, 4, 12, 12)
    verify("fs[ratio=1]", 3, 4, 6, 6)


def steps(name: str, count: int, backend: str, momentum: float | None) -> Iterator[Tensor]:
    """Running means over training steps, then the output and gradients of inference."""
    op: Any = build(parse_contender(f"{name}@{backend}"))
    g = torch.Generator().manual_seed(0)
    state = State(torch.zeros(6), torch.ones(6), momentum=momentum, seed=3)
    x = torch.randn(4, 6, 9, 9, generator=g)
    for _ in range(count):
        y, saved = op.forward(x, None, torch.ones(6), state)
        yield y
        yield op.backward(x, saved)[0]
        assert state.running_mean is not None
        yield state.running_mean.clone()
    assert state.step == count
    state.training = False
    y, saved = op.forward(x, None, torch.ones(6), state)
    yield y
    yield from (g for g in op.backward(x, saved) if g is not None)
    assert state.step == count
    if backend == "inductor":
        yield torch.tensor(compilations(op))
    else:
        yield torch.tensor(4)


def compilations(op: Any) -> int:
    """Forwards and backwards that were compiled."""
    return sum(1 + len(getattr(p, "backwards", ())) for p in op.programs.values())


@pytest.mark.parametrize(
    ("name", "momentum"),
    [
        ("fs", 0.1),
        pytest.param("bs", None, marks=pytest.mark.slow),
        pytest.param("ns", 0.3, marks=pytest.mark.slow),
        pytest.param("brn[steps=16]", 0.1, marks=pytest.mark.slow),
        pytest.param("ebn", None, marks=pytest.mark.slow),
    ],
)
def test_twenty_draws_compile_once_and_follow_eager(name: str, momentum: float | None) -> None:
    found = steps(name, 20, "inductor", momentum)
    for got, wanted in zip(found, steps(name, 20, "eager", momentum), strict=True):
        torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-5)


class Recorder(TorchDispatchMode):
    """The ATen operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
def test_twelve_shapes_compile_twelve_times_and_none_runs_eagerly() -> None:
    op: Any = build(parse_contender("fs@inductor"))
    one = torch.ones(2)
    for size in range(4, 16):
        x = torch.randn(3, 2, size, size)
        state = State(torch.zeros(2), torch.ones(2))
        op.backward(x, op.forward(x, one, one, state)[1])
        with Recorder() as recorder:
            op.backward(x, op.forward(x, one, one, state)[1])
        # Views of a drawn table are not arithmetic.
        views = {"lift_fresh.default", "unbind.int"}
        assert recorder.seen <= views, "arithmetic outside the compiled code"
    assert len(op.programs) == 24


@pytest.mark.slow
def test_strides_and_dtypes_are_part_of_what_is_compiled() -> None:
    op: Any = build(parse_contender("bs@inductor"))
    eager: Any = build(parse_contender("bs@eager"))
    wide = torch.randn(6, 5, 8, 8)
    for x in (wide, wide.transpose(2, 3), wide[::2, :, ::2], wide.bfloat16(), wide[1:]):
        for weight in (None, torch.rand(5), torch.rand(10)[::2], torch.rand(5).double()):
            results = []
            for each in (op, eager):
                y, saved = each.forward(x, weight, None, State())
                results.append((y, *each.backward(y, saved)[:2]))
            for got, wanted in zip(*results, strict=True):
                if wanted is not None:
                    near = 2e-2 if x.dtype == torch.bfloat16 else 1e-4
                    torch.testing.assert_close(got, wanted, rtol=near, atol=near)
                    assert got.dtype == wanted.dtype


def test_without_a_compiler_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "compiler_problem", lambda: "no C++ compiler; install g++")
    op: Any = build(parse_contender("bs@inductor"))
    with pytest.raises(Unavailable, match=r"no C\+\+ compiler; install g\+\+"):
        op.forward(torch.randn(4, 3, 5, 5), None, None, State())


def test_one_value_a_channel_is_refused() -> None:
    op: Any = build(parse_contender("bn@inductor"))
    with pytest.raises(NotApplicable, match="more than 1 value per channel"):
        op.forward(torch.randn(1, 3), None, None, State())
    assert not op.programs


@pytest.mark.slow
def test_behind_the_public_door(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **kwargs: Any) -> None:
        raise TypeError("another signature")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx_inner", missing)
    verify("fs", 4, 6, 8, 8)


def test_a_table_that_is_spread_by_a_copy_is_spread_once() -> None:
    def function(means: Tensor, x: Tensor) -> Tensor:
        return x - means.repeat_interleave(3, 1)[:, :, None]

    given = torch.randn(4, 2), torch.randn(4, 6, 5)
    module = make_fx(function, decomposition_table=select_decomp_table())(*given)
    compiled.keep_copies(module)
    targets = [node.target for node in module.graph.nodes]
    spread = targets.index(torch.ops.aten.clone.default)
    assert targets[spread + 1] is torch.ops.aten.as_strided.default
    torch.testing.assert_close(module(*given), function(*given))


def test_compiled_code_is_found_again() -> None:
    from torch._dynamo.utils import counters

    def function(x: Tensor, total: Tensor) -> tuple[Tensor]:
        total.add_(x.sum())  # as running statistics are changed
        return (x * 3 + 1,)

    given = [torch.arange(6.0).view(2, 3), torch.zeros(())]
    compiled.compile_program(function, given)
    hits = counters["inductor"]["fxgraph_cache_hit"]
    program = compiled.compile_program(function, given)
    assert counters["inductor"]["fxgraph_cache_hit"] == hits + 1
    (y,) = program(list(given))
    torch.testing.assert_close(y, given[0] * 3 + 1)
    assert given[1] == 15


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux tells")
def test_getting_ready_starts_no_thread() -> None:
    """A process with threads of its own must not be forked."""
    code = (
        "import os, torch\n"
        "from sbnbench_kernels.inductor import compiled\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "compiled.get_ready()\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "0"
