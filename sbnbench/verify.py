"""Outputs and gradients against float64, before anything is timed.

The reference is the normalizer's `eager` op on the same, already rounded, inputs in float64. Its
gradients come from autograd through that forward, except where the algorithm's own backward is
not the derivative of its forward (`exact_gradient = False` on the op): there from the eager
backward in float64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sbnbench.bench import Bench, new_state
from sbnbench.errors import VerificationFailed
from sbnbench.inputs import Inputs
from sbnbench.model import Contender
from sbnbench.registry import build, normalizers

TOLERANCE = {
    torch.float64: 1e-8,
    torch.float32: 2e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 6e-2,
}
"""Largest allowed |a−r| / (RMS(r) + |r|).

A working precision's unit roundoff (1.2e-7 for float32, 4.9e-4, 3.9e-3), times the size of the
largest intermediate over the result's RMS: offsets of some ten deviations and sums over a channel.
A missing term is of order 1, a missing Bessel correction or ε in the wrong place of order 1/n.
"""

NAMES = ("y", "dx", "dweight", "dbias", "running_mean", "running_var")


def results(bench: Bench, inputs: Inputs, seed: int) -> dict[str, Tensor | None]:
    """What one training step of the bench's op gives on `inputs`, from a fresh state."""
    state = new_state(inputs.weight, seed)
    y, saved = bench.op.forward(inputs.x, inputs.weight, inputs.bias, state)
    dx, dweight, dbias = bench.op.backward(inputs.dy, saved)[:3]
    found = (y, dx, dweight, dbias, state.running_mean, state.running_var)
    return dict(zip(NAMES, found, strict=True))


def reference(contender: Contender, inputs: Inputs, seed: int) -> dict[str, Tensor | None]:
    """The same in float64, by the readable op."""
    normalizer = normalizers()[contender.normalizer]
    backend = "eager" if "eager" in normalizer.backends else contender.backend
    op: Any = build(Contender(contender.normalizer, backend, contender.params))
    x, dy, weight, bias = inputs.double()
    state = new_state(weight, seed)
    if not getattr(op, "exact_gradient", True):
        y, saved = op.forward(x, weight, bias, state)
        gradients = op.backward(dy, saved)[:3]
    else:
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
        with torch.enable_grad():
            y, _ = op.forward(*leaves, state)
            gradients = torch.autograd.grad(y, leaves, dy, allow_unused=True)
    found = (y.detach(), *gradients, state.running_mean, state.running_var)
    return dict(zip(NAMES, found, strict=True))


def check(bench: Bench, inputs: Inputs, seed: int) -> dict[str, float]:
    """The error of each output, as |a−r| / (RMS(r) + |r|); VerificationFailed above tolerance.

    Called again after timing with fresh inputs, it also catches buffers left from before.
    """
    try:
        wanted = reference(bench.contender, inputs, seed)
    except (RuntimeError, NotImplementedError) as error:
        raise VerificationFailed(f"no float64 reference could be made: {error}") from error
    with fresh_memory_is_nan():
        found = results(bench, inputs, seed)
    allowed = TOLERANCE[inputs.x.dtype]
    errors: dict[str, float] = {}
    for name, right in wanted.items():
        got = found[name]
        if right is None and got is None:
            continue
        if right is None or got is None:
            raise VerificationFailed(
                f"{name} is {'missing' if got is None else 'given'}, the reference "
                f"{'has one' if got is None else 'has none'}"
            )
        if got.shape != right.shape:
            raise VerificationFailed(
                f"{name} has shape {tuple(got.shape)} instead of {tuple(right.shape)}"
            )
        if name in ("y", "dx") and got.dtype != inputs.x.dtype:
            raise VerificationFailed(f"{name} is {got.dtype}, the input {inputs.x.dtype}")
        errors[name] = distance(got, right)
        if not errors[name] <= allowed:  # NaN fails too
            raise VerificationFailed(
                f"{name} differs from float64 by {errors[name]:.2g} "
                f"(allowed {allowed:.2g} of its RMS)"
            )
    return errors


def distance(got: Tensor, right: Tensor) -> float:
    """max |a−r| / (RMS(r) + |r|); NaN where `got` has one.

    One element in a heavy-tailed output may be far above the RMS, and is rounded relatively.
    """
    right = right.double()
    difference = (got.to(right.device, torch.float64) - right).abs()
    scale = right.square().mean().sqrt() + right.abs()
    floor = torch.finfo(torch.float64).tiny
    return float((difference / scale.clamp_min(floor)).max()) if right.numel() else 0.0


@contextlib.contextmanager
def fresh_memory_is_nan() -> Iterator[None]:
    """Inside, `torch.empty` is filled with NaN, so that unwritten elements show."""
    was = torch.are_deterministic_algorithms_enabled()
    fills: Any = torch.utils.deterministic
    fill = fills.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    fills.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was)
        fills.fill_uninitialized_memory = fill
