"""Running statistics as nn.BatchNorm keeps them."""

from __future__ import annotations

from torch import Tensor

from sbnbench_kernels.contract import State


def momentum_of(state: State) -> float:
    """The weight of the batch that is about to be averaged in: `momentum`, or for the cumulative
    average 1/(number of batches with this one)."""
    return 1 / (state.step + 1) if state.momentum is None else state.momentum


def update_running(state: State, mean: Tensor, var: Tensor, correction: float) -> None:
    """new = (1−m)·old + m·batch in place, `var` (C,) biased and multiplied by `correction`."""
    weight = momentum_of(state)
    if state.running_mean is not None:
        state.running_mean.lerp_(mean.detach().to(state.running_mean.dtype), weight)
    if state.running_var is not None:
        state.running_var.lerp_((var.detach() * correction).to(state.running_var.dtype), weight)
