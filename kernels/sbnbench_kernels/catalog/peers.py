"""Peers that, like BatchNorm, normalize a batch with statistics of that batch."""

from __future__ import annotations

from sbnbench.model import Normalizer, Param
from sbnbench_kernels.catalog.common import EPS, NO_ATEN

_EAGER = "sbnbench_kernels.eager"
_INDUCTOR = "sbnbench_kernels.inductor.peers"
_TRITON = "sbnbench_kernels.triton"
_GROUPS = Param("groups", "int", 32, "groups of channels; must divide their number", low=1)

NORMALIZERS: tuple[Normalizer, ...] = (
    Normalizer(
        name="brn",
        title="Batch Renormalization",
        formula=(
            "y = γ((x−μ_B)/σ_B·r + d) + b; r = clip(σ_B/σ, 1/rmax, rmax), "
            "d = clip((μ_B−μ)/σ, ±dmax), constant to the gradient; μ, σ moving averages"
        ),
        source="Ioffe, Batch Renormalization, arXiv 1702.03275, Algorithm 1",
        backends={
            "eager": f"{_EAGER}.renorm:BatchRenorm",
            "inductor": f"{_INDUCTOR}:BatchRenorm",
            "triton": f"{_TRITON}:BatchRenorm",
        },
        params=(
            Param("rmax", "float", 3.0, "bound of r at the end of the schedule", low=1.0),
            Param("dmax", "float", 5.0, "bound of d at the end of the schedule", low=0.0),
            Param(
                "steps",
                "int",
                40_000,
                "length of the schedule in training steps: plain bn for 1/8 of it, dmax at 5/8, "
                "rmax at the end; 0: rmax and dmax from the start",
                low=0,
            ),
            EPS,
        ),
        notes=(
            "σ, not σ², is averaged, without Bessel's correction, as published; running_var holds "
            "σ²−ε. Needs running statistics. eval() is bn's."
        ),
        without=NO_ATEN,
    ),
    Normalizer(
        name="ghost",
        title="Ghost Batch Normalization",
        formula="y = γ(x−μ_k)/σ_k + b; μ_k, σ_k² (biased) a channel of sub-batch k",
        source="Hoffer, Hubara and Soudry, arXiv 1705.08741, Algorithm 1",
        backends={
            "eager": f"{_EAGER}.ghost:GhostBatchNorm",
            "inductor": f"{_INDUCTOR}:GhostBatchNorm",
            "triton": f"{_TRITON}:GhostBatchNorm",
        },
        params=(Param("size", "int", 32, "samples in a sub-batch", low=1), EPS),
        notes=(
            "Running averages take one step a batch, to the sub-batches' mean [interpretation]. "
            "A batch that size does not divide is cut as evenly as can be. eval() is bn's."
        ),
        without=NO_ATEN,
    ),
    Normalizer(
        name="l1bn",
        title="L1 Batch Normalization",
        formula="y = γ(x−μ)/√(σ₁²+ε) + b; σ₁ = √(π/2)·mean|x−μ|",
        source=("Hoffer et al., Norm matters, arXiv 1803.01814; Wu et al., arXiv 1802.09769"),
        backends={
            "eager": f"{_EAGER}.l1bn:L1BatchNorm",
            "inductor": f"{_INDUCTOR}:L1BatchNorm",
            "triton": f"{_TRITON}:L1BatchNorm",
        },
        params=(EPS,),
        notes="ε stands under the root [interpretation]. running_var averages σ₁². eval() is bn's.",
        without=NO_ATEN,
    ),
    Normalizer(
        name="rbn",
        title="Range Batch Normalization",
        formula="y = γ(x−μ)/√(σ_R²+ε) + b; σ_R = mean over chunks of (max−min)/√(2 ln n)",
        source="Banner et al., Scalable Methods for 8-bit Training, arXiv 1805.11046, eq. 2",
        backends={
            "eager": f"{_EAGER}.rbn:RangeBatchNorm",
            "inductor": f"{_INDUCTOR}:RangeBatchNorm",
            "triton": f"{_TRITON}:RangeBatchNorm",
        },
        params=(
            Param("chunks", "int", 16, "at most so many equal parts, each with its range", low=1),
            EPS,
        ),
        notes=(
            "σ_R is up to twice σ, as published; γ takes up the factor. ε stands under the root "
            "[interpretation]. running_var averages σ_R². eval() is bn's."
        ),
        without=NO_ATEN,
    ),
    Normalizer(
        name="ebn",
        title="Extended Batch Normalization",
        formula="y = γ(x−μ_c)/σ + b; μ_c a channel, σ² = mean over N,C,H,W of (x−μ_c)²",
        source="Luo et al., Extended Batch Normalization, arXiv 2003.05569",
        backends={
            "eager": f"{_EAGER}.ebn:ExtendedBatchNorm",
            "inductor": f"{_INDUCTOR}:ExtendedBatchNorm",
            "triton": f"{_TRITON}:ExtendedBatchNorm",
        },
        params=(EPS,),
        notes="Deviations are from the channel's own mean [interpretation]. eval() is bn's.",
        without=NO_ATEN,
    ),
    Normalizer(
        name="sn",
        title="Switchable Normalization",
        formula="y = γ(x−Σw_kμ_k)/√(Σw′_kσ_k²+ε) + b; k = in, ln, bn; w, w′ learned softmaxes",
        source="Luo et al., Switchable Normalization, arXiv 1806.10779, eqs. 3–5",
        backends={
            "eager": f"{_EAGER}.switchable:SwitchableNorm",
            "inductor": f"{_INDUCTOR}:SwitchableNorm",
            "triton": f"{_TRITON}:SwitchableNorm",
        },
        params=(EPS,),
        notes=(
            "eval() takes bn's part from moving averages, where the paper averages over batches "
            "after training; momentum=None comes to the same. Not for (N, C)."
        ),
        without=NO_ATEN,
        keeps=("mean_logits", "var_logits"),
    ),
    Normalizer(
        name="bcn",
        title="Batch-Channel Normalization",
        formula="y = GN(h), an affine a group, h = γ(x−μ)/σ + b; μ, σ of the batch or estimates",
        source="Qiao et al., arXiv 1903.10520, and the authors' released code",
        backends={
            "eager": f"{_EAGER}.bcn:BatchChannelNorm",
            "inductor": f"{_INDUCTOR}:BatchChannelNorm",
            "triton": f"{_TRITON}:BatchChannelNorm",
        },
        params=(
            _GROUPS,
            Param(
                "estimate",
                "bool",
                False,
                "normalize with the running estimates, constant to the gradient (micro-batches)",
            ),
            EPS,
        ),
        notes="eval() takes h from the running statistics, groups from the sample.",
        without=NO_ATEN,
        keeps=("group_weight", "group_bias"),
    ),
    Normalizer(
        name="syncbn",
        title="Synchronized Batch Normalization",
        formula="y = γ(x−μ)/σ + b; μ, σ² a channel of the batches of all processes",
        source="torch.nn.SyncBatchNorm; Peng et al., MegDet, arXiv 1711.07240",
        backends={"eager": f"{_EAGER}.synchronised:SyncBatchNorm"},
        params=(EPS,),
        notes=(
            "Without torch.distributed, or in one process, it is bn. Every sampled normalizer has "
            "a synchronised form: sbnbench_kernels.eager.synchronised.synchronise."
        ),
        without={
            "aten": "torch.nn.SyncBatchNorm runs on GPUs in several processes alone",
            "inductor": "its reductions cross processes",
            "triton": "its reductions cross processes",
        },
    ),
    Normalizer(
        name="frn",
        title="Filter Response Normalization with TLU",
        formula="y = max(γx/√(mean_HW x²+ε) + b, τ)",
        source="Singh and Krishnan, Filter Response Normalization, arXiv 1911.09737, eqs. 1–3",
        backends={
            "eager": f"{_EAGER}.frn:FilterResponseNorm",
            "inductor": f"{_INDUCTOR}:FilterResponseNorm",
            "triton": f"{_TRITON}:FilterResponseNorm",
        },
        params=(
            Param("learned_eps", "bool", False, "learn ε = eps + |ε_l|, for maps of one value"),
            Param("eps", "float", 1e-6, "ε, added to the mean square", low=1e-12, high=1.0),
        ),
        kind="B",
        notes="Replaces norm and activation. eval() computes as training does.",
        without=NO_ATEN,
        running=False,
        keeps=("tau",),
    ),
    Normalizer(
        name="evonorm-s0",
        title="EvoNorm-S0",
        formula="y = γ·x·sigmoid(vx)/√(s²_{H,W,C/G}(x)+ε) + b",
        source="Liu et al., Evolving Normalization-Activation Layers, arXiv 2004.02967",
        backends={
            "eager": f"{_EAGER}.evonorm:EvoNormS0",
            "inductor": f"{_INDUCTOR}:EvoNormS0",
            "triton": f"{_TRITON}:EvoNormS0",
        },
        params=(_GROUPS, EPS),
        kind="B",
        notes="Replaces norm and activation. eval() computes as training does.",
        without=NO_ATEN,
        running=False,
        keeps=("v",),
    ),
    Normalizer(
        name="evonorm-b0",
        title="EvoNorm-B0",
        formula="y = γ·x/max(√(s²_{N,H,W}(x)+ε), vx + √(s²_{H,W}(x)+ε)) + b",
        source="Liu et al., Evolving Normalization-Activation Layers, arXiv 2004.02967",
        backends={
            "eager": f"{_EAGER}.evonorm:EvoNormB0",
            "inductor": f"{_INDUCTOR}:EvoNormB0",
            "triton": f"{_TRITON}:EvoNormB0",
        },
        params=(EPS,),
        kind="B",
        notes="Replaces norm and activation. eval() takes s²_{N,H,W} from running_var.",
        without=NO_ATEN,
        keeps=("v",),
    ),
)
