"""BatchNorm and its sampled relatives on Triton: the reference's formulas, samples and parameters
(see eager/sampled.py), by kernels that differ in the sample alone.

In micro-batches, where a program can hold its channels or pass twice over them, forward and
backward are one launch each; else sums over parts, their merging, and an element-wise pass.

`fusion` adds a ReLU and the addition of a residual to the pass that writes y, for `bn` as for the
others, so that fusing is never mistaken for sampling. With a residual, `forward` takes it as last
argument and `backward` gives its gradient as fourth result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from sbnbench.errors import InvalidParameter, NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager import sampled
from sbnbench_kernels.running import momentum_of
from sbnbench_kernels.samplers import Sample, bessel, require_variance
from sbnbench_kernels.triton import box_backward, box_launch
from sbnbench_kernels.triton.box_launch import Fusion
from sbnbench_kernels.triton.layout import Layout, check, dense, like


class Saved(NamedTuple):
    """What backward reads. An empty sample says that the statistics were constants."""

    x: Tensor
    layout: Layout
    y: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    rstd: Tensor
    sample: Sample


class BoxOp(sampled.SampledNorm):
    """The sampled family on Triton; see eager.sampled.SampledNorm for shapes and errors.

    Statistics are float32; γ and b are copied where they are not contiguous.
    """

    fusion = Fusion()

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        state: State,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, Saved]:
        check(x)
        if (residual is not None) != self.fusion.residual:
            raise InvalidParameter("a residual is given exactly where fusion.residual says so")
        x, layout = dense(x)
        running = running_pair(state)
        if state.training or running is None:
            sample = self._draw(x, state)
            factor, correction = 0.0, 1.0
            if state.training:
                factor, correction = momentum_of(state), bessel(sample)
                state.step += 1
            else:
                running = None
            y, stats = box_launch.forward(
                x, layout, weight, bias, running, sample, self.eps, factor, correction, self.fusion,
                residual,
            )  # fmt: skip
        else:
            sample = ()
            stats, scale, shift = box_launch.given_statistics(
                x, layout, weight, bias, running, self.eps
            )
            residual = None if residual is None else like(residual, layout)
            y = box_launch.affine_pass(x, layout, scale, shift, self.fusion, residual)
        kept = y if self.fusion.relu and self.fusion.residual else None
        return y, Saved(x, layout, kept, weight, bias, stats.mean, stats.rstd, sample)

    def backward(self, dy: Tensor, saved: Saved) -> Any:  # type: ignore[override]
        given = box_backward.Given(
            saved.x, like(dy, saved.layout), saved.y, saved.weight, saved.bias, saved.mean,
            saved.rstd,
        )  # fmt: skip
        out = box_backward.backward(given, saved.layout, saved.sample, self.mode, self.fusion)
        return tuple(out) if self.fusion.residual else tuple(out)[:3]

    def statistics(self, x: Tensor, state: State) -> tuple[Tensor, Tensor]:
        check(x)
        x, layout = dense(x)
        sample = self._draw(x, state)
        state.step += 1
        stats, _, _ = box_launch.sample_statistics(x, layout, sample, self.eps)
        return stats.mean, stats.var

    def _draw(self, x: Tensor, state: State) -> Sample:
        sample = self.sampler.draw(x.shape, state.seed, state.step, x.device)
        require_variance(sample, x.shape)
        return sample


def running_pair(state: State) -> tuple[Tensor, Tensor] | None:
    """The running statistics; NotApplicable where there is one without the other."""
    mean, var = state.running_mean, state.running_var
    if (mean is None) != (var is None):
        raise NotApplicable("a running mean and a running variance come together")
    return None if mean is None or var is None else (mean, var)


class BatchNorm(BoxOp, sampled.BatchNorm):
    """`bn`: the sample is everything."""


class NaiveSampling(BoxOp, sampled.NaiveSampling):
    """`ns`: random elements, gathered; its exact backward is one scattered launch more."""


class BatchSampling(BoxOp, sampled.BatchSampling):
    """`bs`: a few whole samples of the batch."""


class FeatureSampling(BoxOp, sampled.FeatureSampling):
    """`fs`: a small patch of each feature map of every sample."""


class VirtualDataset(BoxOp, sampled.VirtualDataset):
    """`vdn`: the last `num_virtual` rows."""


class BatchSamplingVirtual(BoxOp, sampled.BatchSamplingVirtual):
    """`bs+vdn`: weight `beta` on the virtual rows, the rest on `bs` of the real ones."""


class FeatureSamplingVirtual(BoxOp, sampled.FeatureSamplingVirtual):
    """`fs+vdn`: weight `beta` on the virtual rows, the rest on `fs` of the real ones."""
