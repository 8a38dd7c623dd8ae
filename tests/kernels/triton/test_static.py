"""What the compiler makes of the kernels, for GPUs that are not here."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import triton
import triton.language as tl

from sbnbench_kernels.triton import budget, cases, static
from sbnbench_kernels.triton.launching import Launch


def check(wanted, processes=2):
    allowed = budget.load()
    found = {
        entry: budget.problems(entry, report, allowed)
        for entry, report in budget.reports(wanted, processes).items()
    }
    found = {"/".join(entry): what for entry, what in found.items() if what}
    assert not found, "\n".join(f"{k}: {'; '.join(v)}" for k, v in found.items())


def test_a_few_kernels_on_hopper():
    names = [
        ("affine:plane", "bfloat16", "contiguous"),
        ("affine:vector", "float32", "channels_last"),
        ("affine_gradient:single", "bfloat16", "contiguous"),
        ("box_moments:patch", "bfloat16", "contiguous"),
        ("fused_forward:whole:resident", "float16", "contiguous"),
    ]
    check([(*name, "sm_90") for name in names], processes=1)


@pytest.mark.slow
def test_every_kernel_on_every_architecture():
    check(budget.entries())


def test_the_budget_lists_what_there_is():
    assert set(budget.load()) == {"/".join(entry) for entry in budget.entries()}


@pytest.mark.parametrize(
    ("shape", "format", "dtype", "load"),
    [
        ((32, 64, 56, 56), "contiguous", "bfloat16", 128),
        ((32, 64, 14, 14), "contiguous", "float32", 128),  # 196 is a multiple of 4, not of 16
        ((32, 24, 56, 56), "channels_last", "bfloat16", 128),  # 24 is a multiple of 8
        ((32, 64, 14, 14), "contiguous", "bfloat16", 64),
    ],
)
def test_reductions_read_in_vectors(shape, format, dtype, load):  # noqa: A002
    from sbnbench_kernels.triton.box_ops import BatchNorm

    launches = cases.record(BatchNorm(eps=1e-5), shape, dtype, format)
    (first,) = [x for x in launches if x.name in ("box_moments", "fused_forward")]
    report = static.report(static.source_of(first), "sm_90", budget.cache_folder())
    assert set(report.loads) - {32} == {load}


@triton.jit
def scalar_copy(x, y, n, E: tl.constexpr):
    """Strided: no two values of a thread side by side."""
    at = tl.program_id(0) * E + tl.arange(0, E)
    tl.store(y + at * 3, tl.load(x + at * 3, mask=at < n), mask=at < n)


@triton.jit
def greedy(x, y, E: tl.constexpr):
    """Holds more than a thread has registers."""
    at = tl.arange(0, E)
    value = tl.load(x + at * 3)
    for j in range(16):
        value = tl.sort(value) + tl.load(x + at * 5 + j)
    tl.store(y + at, value)


def plain(kernel, num_warps, **arguments):
    import torch

    x = torch.empty(1 << 20, device="meta")
    return static.source_of(Launch(kernel, 1, num_warps, {"x": x, "y": x, **arguments}))


def test_a_report_tells_narrow_accesses_and_spills():
    narrow = static.report(plain(scalar_copy, 4, n=1 << 20, E=1024), "sm_90")
    assert narrow.widest_load == narrow.widest_store == 32
    assert narrow.spills == narrow.local == 0
    entry = ("affine:plane", "float32", "contiguous", "sm_90")
    assert any("stores of 32" in p for p in budget.problems(entry, narrow, budget.load()))
    spilled = static.report(plain(greedy, 1, E=8192), "sm_90")
    assert spilled.spills > 0
    assert spilled.local > 0
    found = budget.problems(entry, spilled, {"/".join(entry): [32, 0, 4, 128, 128]})
    assert any("local memory" in p for p in found)
    assert any("registers" in p for p in found)


def test_specialisation_is_the_launchers():
    launch = cases.kernels("float32", "contiguous")["box_moments:patch"]
    source = static.source_of(launch)
    assert "start" not in source.constants, "a draw's first row must not recompile"
    assert "start" not in source.divisible
    assert "index" not in source.divisible
    assert source.signature["index"] == "*i64"
    assert source.signature["x"] == "*fp32"
    assert "x" in source.divisible


def test_the_draw_changes_nothing_that_is_compiled():
    """Else timing would meet a compilation whenever a position is 0, 1 or a multiple of 16."""
    from sbnbench_kernels.triton.box_ops import BatchSampling

    op = BatchSampling(eps=1e-5, ratio=1 / 16, redraw=1, backward="sampled")
    for shape in ((64, 64, 56, 56), (16, 64, 7, 7)):
        keys = set()
        for seed in range(40):
            op.sampler = type(op.sampler)(1 / 16, 1)
            original = op.sampler.draw
            object.__setattr__(
                op.sampler, "draw", lambda s, _, step, d, o=original, n=seed: o(s, n, step, d)
            )
            launches = cases.record(op, shape, "bfloat16", "contiguous")
            keys.add(tuple(static.source_of(x).key("sm_90") for x in launches))
        assert len(keys) == 1
