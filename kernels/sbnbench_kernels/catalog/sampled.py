"""BatchNorm and the normalizers that estimate its statistics from a sample."""

from __future__ import annotations

from sbnbench.model import Normalizer
from sbnbench_kernels.catalog.common import (
    BETA,
    EPS,
    NUM_VIRTUAL,
    POSITION,
    RATIO,
    REDRAW,
    backward,
)

_EAGER = "sbnbench_kernels.eager.sampled"
_TRITON = "sbnbench_kernels.triton"
_FORMULA = "y = γ(x−μ_S)/σ_S + b; μ_S, σ_S² (biased) a channel of S = {sample}"
_MIXTURE = "μ = βμ_v+(1−β)μ_s, σ² = βσ_v²+(1−β)σ_s²+β(1−β)(μ_v−μ_s)²; v virtual rows, s = {sample}"
_CHEN = (
    "Chen et al., Batch Normalization Sampling, arXiv 1810.10962; TNNLS 2020, "
    "doi 10.1109/TNNLS.2020.2978753"
)
_BACKWARD = "which backward the paper used is not stated in what could be read [interpretation]"
_NO_ATEN = {"aten": "PyTorch has no fused operator for it"}
_VIRTUAL = (
    "Virtual rows are Gaussian with the data set's mean and deviation a channel [interpretation]"
)
_IDLE = (
    "backward=sampled sums over the virtual rows, whose gradient is zero where the output drops "
    "them: γ and b then learn nothing, hence the default exact"
)

NORMALIZERS: tuple[Normalizer, ...] = (
    Normalizer(
        name="bn",
        title="Batch Normalization",
        formula="y = γ(x−μ)/σ + b; μ, σ² (biased) a channel of the whole batch",
        source="Ioffe and Szegedy, Batch Normalization, arXiv 1502.03167",
        backends={
            "eager": f"{_EAGER}:BatchNorm",
            "aten": "sbnbench_kernels.aten.batch:BatchNorm",
            "triton": f"{_TRITON}:BatchNorm",
        },
        params=(EPS,),
    ),
    Normalizer(
        name="ns",
        title="Naive sampling",
        formula=_FORMULA.format(sample="random elements, without replacement"),
        source=f"{_CHEN}; {_BACKWARD}",
        backends={"eager": f"{_EAGER}:NaiveSampling", "triton": f"{_TRITON}:NaiveSampling"},
        params=(RATIO, backward("sampled"), REDRAW, EPS),
        notes="Accurate, but its memory access is irregular.",
        without=_NO_ATEN,
    ),
    Normalizer(
        name="bs",
        title="Batch Sampling",
        formula=_FORMULA.format(sample="a few whole samples of the batch"),
        source=f"{_CHEN}; {_BACKWARD}",
        backends={"eager": f"{_EAGER}:BatchSampling", "triton": f"{_TRITON}:BatchSampling"},
        params=(RATIO, backward("sampled"), REDRAW, EPS),
        without=_NO_ATEN,
    ),
    Normalizer(
        name="fs",
        title="Feature Sampling",
        formula=_FORMULA.format(sample="a small patch of each map of every sample"),
        source=f"{_CHEN}; {_BACKWARD}; the position of the patch is one too",
        backends={"eager": f"{_EAGER}:FeatureSampling", "triton": f"{_TRITON}:FeatureSampling"},
        params=(RATIO, POSITION, backward("sampled"), REDRAW, EPS),
        notes=(
            "One position shared by all samples can see a constant border: the variance collapses "
            "and training fails. Prefer per-sample."
        ),
        without=_NO_ATEN,
    ),
    Normalizer(
        name="vdn",
        title="Virtual Dataset Normalization",
        formula=_FORMULA.format(sample="the virtual rows at the end of the batch"),
        source=f"{_CHEN}; {_BACKWARD}",
        backends={"eager": f"{_EAGER}:VirtualDataset", "triton": f"{_TRITON}:VirtualDataset"},
        params=(NUM_VIRTUAL, backward("exact"), EPS),
        notes=f"{_VIRTUAL}. {_IDLE}.",
        without=_NO_ATEN,
    ),
    Normalizer(
        name="bs+vdn",
        title="Batch Sampling with virtual rows",
        formula=_MIXTURE.format(sample="a few whole real samples"),
        source=f"{_CHEN}; the mixture's moments are an [interpretation]; {_BACKWARD}",
        backends={
            "eager": f"{_EAGER}:BatchSamplingVirtual",
            "triton": f"{_TRITON}:BatchSamplingVirtual",
        },
        params=(RATIO, BETA, NUM_VIRTUAL, backward("sampled"), REDRAW, EPS),
        notes=f"{_VIRTUAL}.",
        without=_NO_ATEN,
    ),
    Normalizer(
        name="fs+vdn",
        title="Feature Sampling with virtual rows",
        formula=_MIXTURE.format(sample="a small patch of each map of every real sample"),
        source=f"{_CHEN}; the mixture's moments are an [interpretation]; {_BACKWARD}",
        backends={
            "eager": f"{_EAGER}:FeatureSamplingVirtual",
            "triton": f"{_TRITON}:FeatureSamplingVirtual",
        },
        params=(RATIO, POSITION, BETA, NUM_VIRTUAL, backward("sampled"), REDRAW, EPS),
        notes=f"{_VIRTUAL}.",
        without=_NO_ATEN,
    ),
)
