"""BatchNorm and the normalizers that estimate its statistics from a sample."""

from __future__ import annotations

from sbnbench.model import Normalizer
from sbnbench_kernels.catalog.common import (
    BACKWARD,
    BETA,
    EPS,
    NO_ATEN,
    NUM_VIRTUAL,
    POSITION,
    RATIO,
    REDRAW,
)

_EAGER = "sbnbench_kernels.eager.sampled"
_INDUCTOR = "sbnbench_kernels.inductor.sampled"
_TRITON = "sbnbench_kernels.triton"
_FORMULA = "y = γ(x−μ_S)/σ_S + b; μ_S, σ_S² (biased) a channel of S = {sample}"
_MIXTURE = "μ = βμ_v+(1−β)μ_s, σ² = βσ_v²+(1−β)σ_s²+β(1−β)(μ_v−μ_s)²; v virtual rows, s = {sample}"
_CHEN = (
    "Chen et al., Batch Normalization Sampling, arXiv 1810.10962; TNNLS 2020, "
    "doi 10.1109/TNNLS.2020.2978753"
)
_BACKWARD = "which backward the paper used is not stated in what could be read [interpretation]"
_VIRTUAL = (
    "Virtual rows are Gaussian with the data set's mean and deviation a channel [interpretation]"
)
_IDLE = (
    "The gradient of virtual rows is zero where the output drops them, so that backward=sampled "
    "averages over idle values (with vdn alone γ and b learn nothing): hence the default exact"
)
_WANDERS = (
    "backward=sampled leaves dx a mean, so that weights wander along what the normalization "
    "cancels and the running averages lag behind while the learning rate is high; backward=exact "
    "does not."
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
            "native": "sbnbench_kernels.aten.batch:NativeBatchNorm",
            "inductor": f"{_INDUCTOR}:BatchNorm",
            "triton": f"{_TRITON}:BatchNorm",
        },
        params=(EPS,),
    ),
    Normalizer(
        name="ns",
        title="Naive sampling",
        formula=_FORMULA.format(sample="random elements, without replacement"),
        source=f"{_CHEN}; {_BACKWARD}",
        backends={
            "eager": f"{_EAGER}:NaiveSampling",
            "inductor": f"{_INDUCTOR}:NaiveSampling",
            "triton": f"{_TRITON}:NaiveSampling",
        },
        params=(RATIO, BACKWARD, REDRAW, EPS),
        notes=f"Accurate, but its memory access is irregular. {_WANDERS}",
        without=NO_ATEN,
    ),
    Normalizer(
        name="bs",
        title="Batch Sampling",
        formula=_FORMULA.format(sample="a few whole samples of the batch"),
        source=f"{_CHEN}; {_BACKWARD}",
        backends={
            "eager": f"{_EAGER}:BatchSampling",
            "inductor": f"{_INDUCTOR}:BatchSampling",
            "triton": f"{_TRITON}:BatchSampling",
        },
        params=(RATIO, BACKWARD, REDRAW, EPS),
        notes=_WANDERS,
        without=NO_ATEN,
    ),
    Normalizer(
        name="fs",
        title="Feature Sampling",
        formula=_FORMULA.format(sample="a small patch of each map of every sample"),
        source=f"{_CHEN}; {_BACKWARD}; the position of the patch is one too",
        backends={
            "eager": f"{_EAGER}:FeatureSampling",
            "inductor": f"{_INDUCTOR}:FeatureSampling",
            "triton": f"{_TRITON}:FeatureSampling",
        },
        params=(RATIO, POSITION, BACKWARD, REDRAW, EPS),
        notes=(
            "One position shared by all samples can see a constant border: the variance collapses "
            f"and training fails. Prefer per-sample. {_WANDERS}"
        ),
        without=NO_ATEN,
    ),
    Normalizer(
        name="vdn",
        title="Virtual Dataset Normalization",
        formula=_FORMULA.format(sample="the virtual rows at the end of the batch"),
        source=f"{_CHEN}; {_BACKWARD}",
        backends={
            "eager": f"{_EAGER}:VirtualDataset",
            "inductor": f"{_INDUCTOR}:VirtualDataset",
            "triton": f"{_TRITON}:VirtualDataset",
        },
        params=(NUM_VIRTUAL, BACKWARD, EPS),
        notes=f"{_VIRTUAL}. {_IDLE}.",
        without=NO_ATEN,
    ),
    Normalizer(
        name="bs+vdn",
        title="Batch Sampling with virtual rows",
        formula=_MIXTURE.format(sample="a few whole real samples"),
        source=f"{_CHEN}; the mixture's moments are an [interpretation]; {_BACKWARD}",
        backends={
            "eager": f"{_EAGER}:BatchSamplingVirtual",
            "inductor": f"{_INDUCTOR}:BatchSamplingVirtual",
            "triton": f"{_TRITON}:BatchSamplingVirtual",
        },
        params=(RATIO, BETA, NUM_VIRTUAL, BACKWARD, REDRAW, EPS),
        notes=f"{_VIRTUAL}. {_IDLE}.",
        without=NO_ATEN,
    ),
    Normalizer(
        name="fs+vdn",
        title="Feature Sampling with virtual rows",
        formula=_MIXTURE.format(sample="a small patch of each map of every real sample"),
        source=f"{_CHEN}; the mixture's moments are an [interpretation]; {_BACKWARD}",
        backends={
            "eager": f"{_EAGER}:FeatureSamplingVirtual",
            "inductor": f"{_INDUCTOR}:FeatureSamplingVirtual",
            "triton": f"{_TRITON}:FeatureSamplingVirtual",
        },
        params=(RATIO, POSITION, BETA, NUM_VIRTUAL, BACKWARD, REDRAW, EPS),
        notes=f"{_VIRTUAL}. {_IDLE}.",
        without=NO_ATEN,
    ),
)
