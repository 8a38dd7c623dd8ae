"""Peers that need more than a batch: iterations, weights, other layers, reference samples."""

from __future__ import annotations

from sbnbench.model import Normalizer, Param
from sbnbench_kernels.catalog.common import EAGER_ALONE, EPS

_EAGER = "sbnbench_kernels.eager"

NORMALIZERS: tuple[Normalizer, ...] = (
    Normalizer(
        name="mabn",
        title="Moving Average Batch Normalization",
        formula="y = γ·r·x/√(χ²+ε) + b; χ² = E[x²] over the last iterations, r a renormalization",
        source="Yan et al., arXiv 2001.06838, Algorithms 1 and 2, and the authors' released code",
        backends={"eager": f"{_EAGER}.mabn:MovingAverageBatchNorm"},
        params=(
            Param("buffer", "int", 16, "iterations that statistics are averaged over", low=1),
            Param("warmup", "int", 100, "iterations that use the batch alone", low=0),
            Param("renorm_after", "int", 1000, "iterations before r leaves 1", low=0),
            Param("rmax", "float", 5.0, "r lies in [1/rmax, rmax]", low=1.0),
            EPS,
        ),
        kind="C",
        notes=(
            "Subtracts no mean: centralize the weights before it "
            "(eager.weight_standardization.Centralized). Its backward is the paper's and not the "
            "derivative of its forward. The authors train with momentum=0.02."
        ),
        without=EAGER_ALONE,
        keeps=("square", "slope"),
    ),
    Normalizer(
        name="online",
        title="Online Normalization",
        formula="y = hold(γ(x_t−μ_{t−1})/σ_{t−1} + b); μ, σ² stream from sample to sample",
        source="Chiley et al., Online Normalization, arXiv 1905.05894",
        backends={"eager": f"{_EAGER}.online:OnlineNorm"},
        params=(
            Param("forward_decay", "float", 0.999, "α_f, of the streams μ, σ²", low=0.0, high=1.0),
            Param("backward_decay", "float", 0.99, "α_b, of the control", low=0.0, high=1.0),
            Param(
                "control",
                "choice",
                "clamp",
                "how y is held in bounds: clamped, scaled by its sample's RMS, or not",
                choices=("clamp", "scale", "none"),
            ),
            Param("bound", "float", 5.0, "where control=clamp clamps", low=1e-6),
            EPS,
        ),
        kind="C",
        notes=(
            "Its backward is the paper's control process and not the derivative of its forward. "
            "Runs with a batch of one; the layer's momentum is not used."
        ),
        without=EAGER_ALONE,
        keeps=("u", "v"),
    ),
    Normalizer(
        name="cbn",
        title="Cross-Iteration Batch Normalization",
        formula="y = γ(x−μ̄)/σ̄ + b; μ̄, σ̄² over the last iterations, corrected for moved weights",
        source="Yao et al., Cross-Iteration Batch Normalization, arXiv 2002.05712",
        backends={"eager": f"{_EAGER}.cbn:CrossIterationBatchNorm"},
        params=(
            Param("window", "int", 8, "iterations united, this one with them", low=1),
            Param("burnin", "int", 0, "iterations that use the batch alone", low=0),
            EPS,
        ),
        kind="C",
        notes=(
            "eager.cbn.watch(conv, norm) gives it the weights before it; without them it averages "
            "uncorrected. eval() is bn's."
        ),
        without=EAGER_ALONE,
        keeps=("past_mean", "past_var"),
    ),
    Normalizer(
        name="kn",
        title="Kalman Normalization",
        formula="y = γ(x−μ̂)/σ̂ + b; μ̂ = pμ̂_before + (1−p)μ, σ̂² likewise + p(1−p)(μ−μ̂_before)²",
        source="Wang et al., Kalman Normalization, arXiv 1802.03133; authors' released code",
        backends={"eager": f"{_EAGER}.kalman:KalmanNorm"},
        params=(
            Param("p", "float", 0.1, "weight of the layer before's prediction", low=0.0, high=1.0),
            EPS,
        ),
        kind="C",
        notes=(
            "eager.kalman.chain(norms) joins layers; alone it is bn. The prediction is constant to "
            "the gradient here. eval() is bn's."
        ),
        without=EAGER_ALONE,
        keeps=("mean", "var"),
    ),
    Normalizer(
        name="vbn",
        title="Virtual Batch Normalization",
        formula="y = γ(x_i−μ_i)/σ_i + b; μ_i, σ_i² of the reference batch with sample i",
        source="Salimans et al., Improved Techniques for Training GANs, arXiv 1606.03498, 3.5",
        backends={"eager": f"{_EAGER}.virtual_batch:VirtualBatchNorm"},
        params=(
            Param("num_virtual", "int", 32, "reference samples at the end of the batch", low=1),
            EPS,
        ),
        kind="C",
        notes=(
            "Append the same samples of the data set to every training batch; eval() keeps their "
            "last statistics and takes none."
        ),
        without=EAGER_ALONE,
    ),
    Normalizer(
        name="ws",
        title="Weight Standardization",
        formula="Ŵ = (W−μ_o)/√(σ_o²+ε) over the weights of each output channel o",
        source="Qiao et al., Weight Standardization, arXiv 1903.10520",
        backends={},
        kind="C",
        notes=(
            "Normalizes a convolution's weights, no activations: take "
            "eager.weight_standardization.WSConv2d (or its parametrization Standardized), followed "
            "by gn, or by bcn where batches are not tiny."
        ),
        without=dict.fromkeys(
            ("eager", "aten", "inductor", "triton"),
            "it normalizes a convolution's weights, not activations; use "
            "sbnbench_kernels.eager.weight_standardization.WSConv2d with gn or bcn after it",
        ),
        running=False,
    ),
)
