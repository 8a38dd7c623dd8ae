"""The pass that writes, two bfloat16 in a lane, against the same value by value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sbnbench.bench import set_up
from sbnbench.model import Workload
from sbnbench.registry import build, parse_contender
from sbnbench.verify import check
from sbnbench_kernels.contract import State
from sbnbench_kernels.inductor import passes
from sbnbench_kernels.inductor.compiled import compile_program

FORMATS = ("contiguous", "channels_last")


@pytest.fixture(autouse=True)
def small_tensors_too(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(passes, "WORTH", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def tensor(*shape: int, form: str = "contiguous", seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    t = 3 * torch.randn(shape, generator=generator) + 1
    if form == "channels_last":
        order = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        t = t.contiguous(memory_format=order)
    return t.bfloat16()


def results(*tensors: Tensor, scalar_tails: bool, **special: float) -> tuple[Tensor, Tensor]:
    """The pass over x, or over dy and x, in pairs and value by value; `special` coefficients of
    the first channel."""
    channels = tensors[0].shape[1]
    generator = torch.Generator().manual_seed(7)
    coefficients = list(torch.randn(len(tensors) + 1, channels, generator=generator))
    for place, value in special.items():
        coefficients[int(place[1:])][0] = value

    def function(*given: Tensor, pairs: bool) -> list[Tensor]:
        *scales, shift = given[len(tensors) :]
        return [passes.affine(list(zip(given, scales, strict=False)), shift, pairs)]

    given = [*tensors, *coefficients]
    found = (
        compile_program(
            lambda *a, pairs=pairs: function(*a, pairs=pairs), given, pairs and scalar_tails
        )(list(given))[0]
        for pairs in (True, False)
    )
    return next(found), next(found)


def bits(t: Tensor) -> Tensor:
    """Of every value, all NaNs alike."""
    return torch.where(t.isnan(), torch.nan, t).contiguous().view(torch.int16)


@pytest.mark.parametrize(
    ("shape", "form"),
    [
        ((3, 5, 12, 13), "contiguous"),
        ((2, 3, 64), "contiguous"),
        ((2, 3, 4, 6, 8), "contiguous"),
        ((2, 32, 5, 7), "channels_last"),
        ((4, 40, 6, 6), "channels_last"),
        ((2, 8, 4, 4, 4), "channels_last"),
        ((64, 9), "contiguous"),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_pairs_change_no_bit(shape: tuple[int, ...], form: str, count: int) -> None:
    tensors = [tensor(*shape, form=form, seed=k) for k in range(count)]
    assert passes.can_pair(*tensors)
    tails = passes.leaves_tails(tensors[0])
    assert tails == (shape in {(3, 5, 12, 13)})
    pairs, values = results(*tensors, scalar_tails=tails)
    assert pairs.stride() == values.stride() == tensors[0].stride()
    assert torch.equal(bits(pairs), bits(values))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("scale", [2.0**-20, 1.5, 2.0**20])  # denormals, ties, overflow
def test_every_bfloat16_is_rounded_as_ever(form: str, scale: float) -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(torch.bfloat16)
    x = every.view(64, 1, 32, 32).expand(-1, 2, -1, -1).contiguous()  # each in both channels
    if form == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    pairs, values = results(x, scalar_tails=False, c0=scale, c1=0.0)
    assert torch.equal(bits(pairs), bits(values))
    assert pairs.isinf().any()
    assert pairs.isnan().any()


def test_a_nan_of_ones_stays_one() -> None:
    nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    x = tensor(2, 3, 8, 8)
    scale, shift = torch.ones(3), torch.ones(3)
    shift[1:2] = nan
    program = compile_program(
        lambda x, scale, shift: [passes.affine([(x, scale)], shift, True)], (x, scale, shift)
    )
    (y,) = program([x, scale, shift])
    assert y[:, 1].isnan().all()
    assert torch.equal(y[:, ::2], (x + 1)[:, ::2])


def test_what_cannot_be_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    x = tensor(2, 32, 8, 8)
    assert passes.can_pair(x)
    assert passes.can_pair(x, x.clone())
    assert not passes.can_pair(x.float())
    assert not passes.can_pair(x, x.contiguous(memory_format=torch.channels_last))
    assert not passes.can_pair(tensor(2, 32, 7, 7))  # an odd number of values a map
    assert not passes.can_pair(tensor(2, 32, 3, 8))  # less than a vector a map
    assert not passes.can_pair(tensor(1, 3, 5, 5, form="channels_last"))
    assert not passes.can_pair(x[:, :, ::2])
    assert not passes.can_pair(odd(x))
    monkeypatch.setattr(passes, "WORTH", x.numel() + 1)
    assert not passes.can_pair(x)


def odd(x: Tensor) -> Tensor:
    """x at an odd offset in its memory."""
    memory = torch.zeros(x.numel() + 1, dtype=x.dtype)
    return memory[1:].view(x.shape).copy_(x)


@pytest.mark.parametrize(
    ("name", "mode", "shape", "form"),
    [
        ("fs", "sampled", (3, 5, 12, 13), "contiguous"),
        ("fs", "exact", (3, 5, 12, 13), "contiguous"),
        ("bs", "detached", (9, 5, 6, 7), "contiguous"),
        ("bs", "sampled", (8, 20, 6, 7), "channels_last"),
        ("bn", "", (4, 6, 8, 8), "contiguous"),
    ],
)
def test_ops_agree_with_float64(name: str, mode: str, shape: tuple[int, ...], form: str) -> None:
    """Outputs, gradients and running statistics, on two draws."""
    params = f"[backward={mode}]" if mode else ""
    assert passes.can_pair(tensor(*shape, form=form))
    workload = Workload("synthetic", shape[0], shape[1], shape[2:], dtype="bfloat16", format=form)
    bench = set_up(parse_contender(f"{name}{params}@inductor"), workload, 0)
    check(bench, bench.inputs, 0)
    check(bench, bench.inputs.fresh(1), 1)


def test_an_odd_offset_is_another_layout() -> None:
    x, dy = tensor(4, 3, 8, 8), tensor(4, 3, 8, 8, seed=1)
    op: Any = build(parse_contender("bs[backward=sampled]@inductor"))
    found = []
    for place in (lambda t: t, odd):
        y, saved = op.forward(place(x), None, None, State(seed=3, training=True))
        dx, *_ = op.backward(place(dy), saved)
        found.append((y, dx))
    for paired, plain in zip(*found, strict=True):
        assert torch.equal(paired, plain)
