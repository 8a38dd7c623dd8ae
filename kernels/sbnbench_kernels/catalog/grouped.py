"""Normalizers with statistics of each sample: no batch, no running state."""

from __future__ import annotations

from sbnbench.model import Normalizer, Param
from sbnbench_kernels.catalog.common import EPS

_EAGER = "sbnbench_kernels.eager.grouped"
_ATEN = "sbnbench_kernels.aten.grouped"
_INDUCTOR = "sbnbench_kernels.inductor.peers"
_TRITON = "sbnbench_kernels.triton"
_FORMULA = "y = γ(x−μ)/σ + b; μ, σ² (biased) of {over}"

NORMALIZERS: tuple[Normalizer, ...] = (
    Normalizer(
        name="gn",
        title="Group Normalization",
        formula=_FORMULA.format(over="each sample and group of channels"),
        source="Wu and He, Group Normalization, arXiv 1803.08494",
        backends={
            "eager": f"{_EAGER}:GroupNorm",
            "aten": f"{_ATEN}:GroupNorm",
            "inductor": f"{_INDUCTOR}:GroupNorm",
            "triton": f"{_TRITON}:GroupNorm",
        },
        params=(
            Param("groups", "int", 32, "groups of channels; must divide their number", low=1),
            EPS,
        ),
        notes="eval() computes as training does.",
        running=False,
    ),
    Normalizer(
        name="ln",
        title="Layer Normalization of feature maps",
        formula=_FORMULA.format(over="each sample, all channels and positions"),
        source="Ba, Kiros and Hinton, Layer Normalization, arXiv 1607.06450",
        backends={
            "eager": f"{_EAGER}:LayerNorm",
            "aten": f"{_ATEN}:LayerNorm",
            "inductor": f"{_INDUCTOR}:LayerNorm",
            "triton": f"{_TRITON}:LayerNorm",
        },
        params=(EPS,),
        notes="GroupNorm with one group: γ and b per channel. eval() computes as training does.",
        running=False,
    ),
    Normalizer(
        name="in",
        title="Instance Normalization",
        formula=_FORMULA.format(over="each map of each sample"),
        source="Ulyanov, Vedaldi and Lempitsky, Instance Normalization, arXiv 1607.08022",
        backends={
            "eager": f"{_EAGER}:InstanceNorm",
            "aten": f"{_ATEN}:InstanceNorm",
            "inductor": f"{_INDUCTOR}:InstanceNorm",
            "triton": f"{_TRITON}:InstanceNorm",
        },
        params=(EPS,),
        notes="eval() computes as training does.",
        running=False,
    ),
)
