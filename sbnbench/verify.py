"""Outputs and gradients against float64, before anything is timed.

The reference is the normalizer's `eager` op on the same, already rounded, inputs in float64. Its
gradients come from autograd through that forward, except where the algorithm's own backward is
not the derivative of its forward (`exact_gradient = False` on the op): there from the eager
backward in float64.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sbnbench.bench import Bench, inputs_of, new_state
from sbnbench.errors import VerificationFailed
from sbnbench.inputs import Inputs
from sbnbench.model import Contender
from sbnbench.registry import build, normalizers

TOLERANCE = {
    torch.float64: 1e-8,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 6e-2,
}
"""Largest allowed |a−r| / (RMS(r) + |r|), RMS over a channel for y and dx.

Some roundings of the working precision (1.2e-7 for float32, 4.9e-4, 3.9e-3) on offsets of some ten
deviations. A missing term is of order 1, a missing Bessel correction or an ε in the wrong place
of order 1/n.
"""

SLACK = 32.0
"""An ill-conditioned channel (a nearly constant sample far from 0) amplifies rounding, and where
a threshold or a sign is taken, rounding decides what lies next to it. A result may differ by what
so many roundings of x, in the precision of the statistics, do to the reference. Looked at only
where TOLERANCE is exceeded."""

_KEPT = 1 << 14
"""Values of a result that are kept to compare a later one with."""

NAMES = ("y", "dx", "dweight", "dbias", "running_mean", "running_var")


def results(bench: Bench, inputs: Inputs, seed: int) -> dict[str, Tensor | None]:
    """What one training step of the bench's op gives on `inputs`, from a fresh state."""
    state = new_state(inputs.weight, seed)
    y, saved = bench.op.forward(inputs.x, inputs.weight, inputs.bias, state)
    dx, dweight, dbias = bench.op.backward(inputs.dy, saved)[:3]
    found = (y, dx, dweight, dbias, state.running_mean, state.running_var)
    return dict(zip(NAMES, found, strict=True))


def reference(
    contender: Contender, inputs: Inputs, seed: int, rounding: Tensor | None = None
) -> dict[str, Tensor | None]:
    """The same in float64, by the readable op; each value of x is moved by `rounding` of itself."""
    normalizer = normalizers()[contender.normalizer]
    backend = "eager" if "eager" in normalizer.backends else contender.backend
    op: Any = build(Contender(contender.normalizer, backend, contender.params))
    x, dy, weight, bias = inputs.double()
    if rounding is not None:
        x = x + rounding * x.abs()
    state = new_state(weight, seed)
    if getattr(op, "exact_gradient", True):
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
        with torch.enable_grad():
            y, _ = op.forward(*leaves, state)
            gradients = torch.autograd.grad(y, leaves, dy, allow_unused=True)
    else:
        y, saved = op.forward(x, weight, bias, state)
        gradients = op.backward(dy, saved)[:3]
    found = (y.detach(), *gradients, state.running_mean, state.running_var)
    return dict(zip(NAMES, found, strict=True))


def check(bench: Bench, inputs: Inputs, seed: int) -> dict[str, float]:
    """The error of each output, as |a−r| / (RMS(r) + |r|); VerificationFailed above tolerance."""
    try:
        wanted = reference(bench.contender, inputs, seed)
    except (RuntimeError, NotImplementedError) as error:
        raise VerificationFailed(f"no float64 reference could be made: {error}") from error
    with fresh_memory_is_nan():
        found = results(bench, inputs, seed)
    same_form(found, wanted, inputs.x.dtype)
    allowed = TOLERANCE[inputs.x.dtype]
    errors = {
        name: distance(found[name], right) for name, right in wanted.items() if right is not None
    }
    if not all(e <= allowed for e in errors.values()):  # NaN fails too
        slack: dict[str, Tensor] = {}
        for rounding in roundings(inputs, seed):
            moved = reference(bench.contender, inputs, seed, rounding)
            for name in errors:
                change = _largest_change(moved[name], wanted[name])
                slack[name] = torch.maximum(change, slack.get(name, change))
            errors = {n: distance(found[n], wanted[n], slack[n]) for n in errors}
            if all(e <= allowed for e in errors.values()):
                break
    for name, found_error in errors.items():
        if not found_error <= allowed:
            raise VerificationFailed(
                f"{name} differs from float64 by {found_error:.2g} "
                f"(allowed {allowed:.2g} of its RMS)"
            )
    return errors


def roundings(inputs: Inputs, seed: int) -> Iterator[Tensor]:
    """SLACK roundings of the statistics' precision, up or down for each value of x, in three ways
    and their opposites.

    Up where dy is positive, so that what it does to Σ dy·x adds up; up in every second row, so that
    in a sample of one value a row it does not merely shift the sample; at random. The opposite,
    so that every value is moved across a threshold that lies next to it.
    """
    x = inputs.x
    size = SLACK * torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
    rows = (torch.arange(x.shape[0], device=x.device) % 2).double()
    source = torch.Generator().manual_seed(seed)
    ways: tuple[Callable[[], Tensor], ...] = (
        inputs.dy.double().sign,
        lambda: (2 * rows - 1).view(-1, *(1,) * (x.dim() - 1)),
        lambda: (2.0 * torch.randint(0, 2, x.shape, generator=source) - 1).to(x.device),
    )
    for way in ways:
        signs = way()
        yield size * signs
        yield -size * signs


def _largest_change(moved: Tensor | None, right: Tensor | None) -> Tensor:
    """max |moved − right|, of each channel where there are several dimensions."""
    assert moved is not None
    assert right is not None
    change = (moved - right).abs()
    if change.dim() < 2 or not change.numel():
        return change
    return change.amax([d for d in range(change.dim()) if d != 1], keepdim=True)


class Repeat:
    """What a bench gives on inputs other than those that are timed: before, and again after.

    Made before `check`, whose inputs are others: an op that repeats an answer, its first or its
    last, passes not both. Some thousand values of each result are kept.
    """

    def __init__(self, bench: Bench, seed: int) -> None:
        self._bench, self._seed = bench, seed
        self._before = self._values()

    def check(self) -> None:
        """VerificationFailed unless the results are those of before."""
        allowed = TOLERANCE[self._bench.inputs.x.dtype]
        for name, value in self._values().items():
            if not distance(value, self._before[name]) <= allowed:
                raise VerificationFailed(f"after timing, the same inputs give another {name}")

    def _values(self) -> dict[str, Tensor]:
        inputs = inputs_of(self._bench.contender, self._bench.inputs.workload, draw=1)
        found = results(self._bench, inputs, self._seed + 1)
        # An odd step, so that all columns of a map and all channels are met.
        return {
            name: t.reshape(-1)[:: t.numel() // _KEPT | 1].double()
            for name, t in found.items()
            if t is not None
        }


def same_form(
    found: dict[str, Tensor | None], wanted: dict[str, Tensor | None], dtype: torch.dtype
) -> None:
    """VerificationFailed unless the same results are there, in the right shape and dtype."""
    for name, right in wanted.items():
        got = found[name]
        if (got is None) != (right is None):
            raise VerificationFailed(
                f"{name} is {'missing' if got is None else 'given'}, the reference "
                f"{'has one' if got is None else 'has none'}"
            )
        if got is None or right is None:
            continue
        if got.shape != right.shape:
            raise VerificationFailed(
                f"{name} has shape {tuple(got.shape)} instead of {tuple(right.shape)}"
            )
        if name in ("y", "dx") and got.dtype != dtype:
            raise VerificationFailed(f"{name} is {got.dtype}, the input {dtype}")


def distance(got: Tensor | None, right: Tensor | None, slack: Tensor | None = None) -> float:
    """max |a−r| / (RMS(r) + |r|), NaN where `got` has one; |a−r| less `slack` where it is given.

    Each channel of y and dx has its own RMS: a quiet channel is held to its own scale.
    One element of a heavy-tailed output may be far above the RMS, and is rounded relatively.
    """
    assert got is not None
    assert right is not None
    if not right.numel():
        return 0.0
    # In place throughout: a fresh tensor of this size costs more than the arithmetic in it. What is
    # not float64 itself is compared in float32, whose rounding is a thousandth of any tolerance.
    exact = got.dtype == torch.float64 or slack is not None
    wide = torch.float64 if exact else torch.float32
    right = right.to(wide)
    difference = got.to(right.device, wide, copy=True).sub_(right).abs_()
    others = [d for d in range(right.dim()) if d != 1] if right.dim() > 1 else [0]
    if slack is not None:
        difference = difference.sub_(slack).clamp_min_(0)
    rms = torch.linalg.vector_norm(right, dim=others, keepdim=True) / math.sqrt(
        right.numel() / max(1, right.shape[1] if right.dim() > 1 else 1)
    )
    # An output that is 0 throughout, such as dx of a constant loss, is held to the smallest RMS.
    scale = right.abs().add_(rms).clamp_min_(torch.finfo(torch.float32).eps)
    return float(difference.div_(scale).max())


@contextlib.contextmanager
def fresh_memory_is_nan() -> Iterator[None]:
    """Inside, `torch.empty` is filled with NaN, so that unwritten elements show."""
    was = torch.are_deterministic_algorithms_enabled()
    fills: Any = torch.utils.deterministic
    fill = fills.fill_uninitialized_memory
    # What use_deterministic_algorithms calls, after a second that it spends importing Inductor.
    torch._C._set_deterministic_algorithms(True, warn_only=True)
    fills.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(was)
        fills.fill_uninitialized_memory = fill
