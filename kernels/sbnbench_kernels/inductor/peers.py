"""The grouped normalizers and the peers, traced from their eager ops and compiled.

Formulas and sources: the modules of `eager`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sbnbench_kernels.contract import State
from sbnbench_kernels.eager import (
    bcn,
    ebn,
    evonorm,
    frn,
    ghost,
    grouped,
    l1bn,
    rbn,
    renorm,
    switchable,
)
from sbnbench_kernels.inductor.traced import Traced


class GroupNorm(Traced, grouped.GroupNorm):
    """`gn`."""


class LayerNorm(Traced, grouped.LayerNorm):
    """`ln`."""


class InstanceNorm(Traced, grouped.InstanceNorm):
    """`in`."""


class BatchRenorm(Traced, renorm.BatchRenorm):
    """`brn`."""

    def numbers(self, x: Tensor, state: State) -> dict[str, Tensor]:
        rmax, dmax = super()._limits(state)
        return {
            name: torch.full((), value, dtype=torch.float64, device=x.device)
            for name, value in (("rmax", rmax), ("dmax", dmax))
        }

    def _limits(self, state: State) -> tuple[Any, Any]:
        return state.extra["rmax"], state.extra["dmax"]


class GhostBatchNorm(Traced, ghost.GhostBatchNorm):
    """`ghost`."""


class L1BatchNorm(Traced, l1bn.L1BatchNorm):
    """`l1bn`."""


class RangeBatchNorm(Traced, rbn.RangeBatchNorm):
    """`rbn`."""


class ExtendedBatchNorm(Traced, ebn.ExtendedBatchNorm):
    """`ebn`."""


class SwitchableNorm(Traced, switchable.SwitchableNorm):
    """`sn`."""


class BatchChannelNorm(Traced, bcn.BatchChannelNorm):
    """`bcn`."""


class FilterResponseNorm(Traced, frn.FilterResponseNorm):
    """`frn`."""


class EvoNormS0(Traced, evonorm.EvoNormS0):
    """`evonorm-s0`."""


class EvoNormB0(Traced, evonorm.EvoNormB0):
    """`evonorm-b0`."""
