"""What an implementation of a normalizer looks like to the harness and to a module.

Shapes: x, y, dy, dx are (N, C, *spatial) with zero to three spatial sizes; weight γ, bias b and
their gradients are (C,). Where a normalizer takes virtual rows, they are the last rows of x, and
y and dx have them too.

An op that learns or keeps more than that is `Extended`: its tensors live in `State.extra` by name,
and its backward has a fourth result, the gradients of the extra parameters by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

Saved = Any
"""What forward keeps for backward: each op's own tuple of tensors and numbers."""


@dataclass
class State:
    """What a layer keeps between calls, and how the next call is to behave.

    `step` counts training calls and, with `seed`, selects the draw of positions, so a draw can be
    made again from two integers. Running statistics are (C,) tensors of at least float32, updated
    in place by a training forward as BatchNorm2d does: new = (1−momentum)·old + momentum·batch,
    the variance with Bessel's correction; momentum None is the cumulative average.
    """

    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    momentum: float | None = 0.1
    training: bool = True
    seed: int = 0
    step: int = 0
    extra: dict[str, Tensor] = field(default_factory=dict)


class Op(Protocol):
    """A normalizer with its parameters fixed, on one backend. What changes lives in State."""

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, Saved]:
        """y, and what backward needs. In training it updates `state`."""
        ...

    def backward(self, dy: Tensor, saved: Saved) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """dx, dγ, db from one forward's `saved`, which it leaves as it was."""
        ...


# An op whose backward is not the derivative of its forward says so with an attribute or property
# `exact_gradient = False`; the harness then verifies gradients by the eager backward in float64.


class Estimator(Op, Protocol):
    """An op whose statistics estimate those of full BatchNorm."""

    def statistics(self, x: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (C,) that the next training forward would normalize with,
        in float32 or better; advances `state.step` like a forward and updates nothing else."""
        ...


class Extended(Op, Protocol):
    """An op with tensors of its own in `State.extra`, where its forward puts those that miss."""

    def parameters(self, channels: int) -> dict[str, Tensor]:
        """Initial values of further learned parameters."""
        ...

    def buffers(self, channels: int) -> dict[str, Tensor]:
        """Initial values of what it keeps beside the running statistics; part of a state_dict."""
        ...
