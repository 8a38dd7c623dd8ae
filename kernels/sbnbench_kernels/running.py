"""Running statistics as nn.BatchNorm keeps them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sbnbench_kernels.contract import State


def momentum_of(state: State) -> float:
    """The weight of the batch that is about to be averaged in: `momentum`, or for the cumulative
    average 1/(number of batches with this one)."""
    return 1 / (state.step + 1) if state.momentum is None else state.momentum


def lerp_weight(state: State, like: Tensor) -> Any:
    """`momentum_of` as lerp takes it. The cumulative average's is a tensor: in a compiled graph the
    step is a symbol, which lerp cannot compare with ½."""
    weight = momentum_of(state)
    if state.momentum is not None:
        return weight
    return torch.full((), weight, dtype=like.dtype, device=like.device)


def update_running(state: State, mean: Tensor, var: Tensor, correction: float) -> None:
    """new = (1−m)·old + m·batch in place, `var` (C,) biased and multiplied by `correction`."""
    for kept, new in ((state.running_mean, mean), (state.running_var, var.detach() * correction)):
        if kept is not None:
            kept.lerp_(new.detach().to(kept.dtype), lerp_weight(state, kept))
