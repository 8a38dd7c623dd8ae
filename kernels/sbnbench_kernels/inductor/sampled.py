"""BatchNorm and its sampled relatives, compiled. Formulas: eager/sampled.py.

Forward reads the sample, then x, and writes y; the sampled backward reads the sample of dy and x,
then dy and x, and writes dx. Positions are arguments of the compiled code, so a new draw compiles
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sbnbench_kernels.contract import State
from sbnbench_kernels.eager import sampled as eager
from sbnbench_kernels.eager.arithmetic import accumulator, check_input, column, scale_of
from sbnbench_kernels.inductor.compiled import Compiled, Layout, layout
from sbnbench_kernels.inductor.parts import Form, form_of, positions_of
from sbnbench_kernels.inductor.pieces import Pieces
from sbnbench_kernels.inductor.sums import Chosen, buffer, moments, sums
from sbnbench_kernels.samplers import Sample, bessel, require_variance

Forms = tuple[Form, ...]


class Saved(NamedTuple):
    """What backward reads; `laid_out` is x's layout, `copied` the parts of x that forward copied
    out of scattered memory. No forms: the statistics were constants."""

    x: Tensor
    weight: Tensor | None
    bias_dtype: torch.dtype | None
    mean: Tensor
    rstd: Tensor
    forms: Forms
    positions: tuple[Tensor, ...]
    copied: tuple[Tensor, ...]
    laid_out: Layout


class SampledNorm(Compiled, eager.SampledNorm):
    """The eager op's parameters and draws, with compiled arithmetic."""

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, state: State
    ) -> tuple[Tensor, Any]:
        training, old_mean, old_var = state.training, state.running_mean, state.running_var
        sample: Sample = ()
        if training or old_mean is None or old_var is None:
            sample = self.sampler.draw(x.shape, state.seed, state.step, x.device)
        positions = tuple(positions_of(sample, x))
        momentum: float | None = state.momentum if training else 0.0
        share = None
        if momentum is None:  # the cumulative average: another number each step
            share = torch.full((), 1 / (state.step + 1), device=x.device)
        given = (x, weight, bias, old_mean, old_var, share, *positions)
        laid_out = layout(x)
        assert laid_out is not None
        layouts = (layout(weight), layout(bias), layout(old_mean), layout(old_var))
        key = ("forward", training, momentum, laid_out, layouts)
        found = self.programs.get(key)
        if found is None:
            check_input(x)
            if sample:
                require_variance(sample, x.shape)
            forms = tuple(form_of(s, x.shape[0]) for s in sample)
            correction = bessel(sample) if sample else 1.0
            keep = self.mode == "sampled"
            function = Forward(self.eps, forms, training, momentum, correction, keep)
            wide = any(f.is_wide() for f in forms)
            found = self.programs[key] = (self.compile(function, given, wide), forms)
        program, forms = found
        y, mean, rstd, *copied = program([t for t in given if t is not None])
        if training:
            state.step += 1
        bias_dtype = None if bias is None else bias.dtype
        kept = tuple(copied)
        return y, Saved(x, weight, bias_dtype, mean, rstd, forms, positions, kept, laid_out)

    def backward(self, dy: Tensor, saved: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        kept: Saved = saved
        x, weight, bias_dtype, mean, rstd, forms, positions, copied, laid_out = kept
        given = (dy, x, weight, mean, rstd, *positions, *copied)
        key = ("backward", forms, bias_dtype, layout(dy), laid_out, layout(weight))
        program = self.programs.get(key)
        if program is None:
            function = Backward(self.mode, forms, bias_dtype)
            wide = any(f.is_wide() for f in forms)
            program = self.programs[key] = self.compile(function, given, wide)
        found = list(program([t for t in given if t is not None]))
        dbias = None if bias_dtype is None else found.pop()
        dweight = None if weight is None else found.pop()
        return found.pop(), dweight, dbias


@dataclass(frozen=True)
class Forward:
    """y, μ, 1/σ and, to `keep` them for backward, the copies; in training the running statistics
    are changed in place. No forms: μ and σ are the running ones."""

    eps: float
    forms: Forms
    training: bool
    momentum: float | None
    correction: float
    keep: bool

    def __call__(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        old_mean: Tensor | None,
        old_var: Tensor | None,
        share: Tensor | None,
        *positions: Tensor,
    ) -> Sequence[Tensor]:
        dtype = accumulator(x)
        copied: list[Tensor] = []
        if self.forms:
            pieces = [f.pieces(x) for f in self.forms]
            parts = _taken(self.forms, x, positions, pieces)
            mean, var = _mixed(self.forms, parts, _chosen(self.forms, positions, pieces))
            if self.keep:
                copied = [p for f, p in zip(self.forms, parts, strict=True) if f.copies(x)]
        else:
            assert old_mean is not None
            assert old_var is not None
            # A copy: a later training call changes the averages.
            mean, var = old_mean.to(dtype, copy=True), old_var.to(dtype)
        rstd = torch.rsqrt(var + self.eps)
        scale = scale_of(weight, rstd)
        shift = -mean * scale if bias is None else bias.to(dtype) - mean * scale
        y = x.to(dtype) * column(buffer(scale), x) + column(buffer(shift), x)
        if self.training:
            momentum = self.momentum if share is None else share
            assert momentum is not None
            _average(old_mean, mean, momentum)
            _average(old_var, var * self.correction, momentum)
        return y.to(x.dtype), mean, rstd, *copied


@dataclass(frozen=True)
class Backward:
    """dx, then dγ and db where there are γ and b."""

    mode: eager.Backward
    forms: Forms
    bias_dtype: torch.dtype | None

    def __call__(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        *rest: Tensor,
    ) -> Sequence[Tensor]:
        """`rest`: the positions, then the copies that forward kept."""
        needed = sum(not f.whole for f in self.forms)
        positions, copied = rest[:needed], rest[needed:]
        scale = buffer(scale_of(weight, rstd))
        wide_dy, wide_x = dy.to(mean.dtype), x.to(mean.dtype)
        dx = wide_dy * column(scale, x)
        if self.mode == "sampled" and self.forms:
            pieces = [f.pieces(x) for f in self.forms]
            kept: Iterator[Tensor] | None = iter(copied)
            if pieces != [f.pieces(dy) for f in self.forms]:  # laid out differently
                pieces, kept = [None for _ in self.forms], None
            taken_dy = _taken(self.forms, dy, positions, pieces)
            taken_x = _taken(self.forms, x, positions, pieces, kept)
            chosen = _chosen(self.forms, positions, pieces)
            parts = [
                sums(part_dy, part, mean, bool(f.patch), which)
                for f, part_dy, part, which in zip(
                    self.forms, taken_dy, taken_x, chosen, strict=True
                )
            ]
            omega = [f.weight / f.size for f in self.forms]
            inner = (_weighted(omega, [p[k] for p in parts]) for k in (0, 1))
            slope, shift = _correction(scale, mean, rstd, *inner)
            dx = dx + (wide_x * column(slope, x) + column(shift, x))
            up = [f.stands_for / f.size for f in self.forms]
            sum_dy, sum_dyd = (_weighted(up, [p[k] for p in parts]) for k in (0, 1))
        else:
            sum_dy, sum_dyd = sums(dy, x, mean)
            if self.forms and self.mode != "detached":
                slope, shift = _correction(scale, mean, rstd, sum_dy, sum_dyd)
                omega_map = _weights(self.forms, x, positions)
                dx = dx + omega_map * (wide_x * column(slope, x) + column(shift, x))
        gradients = [dx.to(x.dtype)]
        if weight is not None:
            gradients.append((sum_dyd * rstd).to(weight.dtype))
        if self.bias_dtype is not None:
            gradients.append(sum_dy.to(self.bias_dtype))
        return gradients


def _correction(
    scale: Tensor, mean: Tensor, rstd: Tensor, mean_dy: Tensor, mean_dyd: Tensor
) -> tuple[Tensor, Tensor]:
    """a, b of dx = (γ/σ)·dy + a·x + b, which takes the sample's means of dy and dy·(x−μ) out."""
    slope = -scale * rstd.square() * mean_dyd
    return buffer(slope), buffer(-scale * mean_dy - slope * mean)


def _wheres(forms: Forms, positions: Sequence[Tensor]) -> list[Tensor | None]:
    """The position of each form; None: it is everything."""
    left = iter(positions)
    return [None if f.whole else next(left) for f in forms]


def _taken(
    forms: Forms,
    t: Tensor,
    positions: Sequence[Tensor],
    pieces: Sequence[Pieces | None],
    copied: Iterator[Tensor] | None = None,
) -> list[Tensor]:
    """The forms' parts of t, those found among `copied` from there."""
    return [
        next(copied) if copied and f.copies(t) else f.take(t, where, p)
        for f, where, p in zip(forms, _wheres(forms, positions), pieces, strict=True)
    ]


def _chosen(
    forms: Forms, positions: Sequence[Tensor], pieces: Sequence[Pieces | None]
) -> list[Chosen | None]:
    """Which values of the parts count, for each form."""
    wheres = _wheres(forms, positions)
    return [f.chosen(p, where) for f, p, where in zip(forms, pieces, wheres, strict=True)]


def _weights(forms: Forms, x: Tensor, positions: Sequence[Tensor]) -> Tensor | float:
    """ω of every value, (N, 1, *spatial): 0 outside the sample."""
    omega: Tensor | float = 0.0
    for f, where in zip(forms, _wheres(forms, positions), strict=True):
        each = f.weight / f.size
        omega = omega + (each if f.whole else each * f.mask(x, where).to(accumulator(x)))
    return omega


def _mixed(
    forms: Forms, parts: Sequence[Tensor], chosen: Sequence[Chosen | None]
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the mixture of the parts."""
    found = [
        moments(part, bool(f.patch), which)
        for f, part, which in zip(forms, parts, chosen, strict=True)
    ]
    if len(found) == 1:
        return found[0]
    weights = [f.weight for f in forms]
    mean = _weighted(weights, [m for m, _ in found])
    return mean, _weighted(weights, [v + (m - mean).square() for m, v in found])


def _weighted(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    total = weights[0] * tensors[0]
    for w, t in zip(weights[1:], tensors[1:], strict=True):
        total = total + w * t
    return total


def _average(old: Tensor | None, new: Tensor, momentum: float | Tensor) -> None:
    """old ← old + m·(new − old) in place."""
    if old is not None:
        old.copy_(old + momentum * (new.to(old.dtype) - old))


class BatchNorm(SampledNorm, eager.BatchNorm):
    """`bn`."""


class NaiveSampling(SampledNorm, eager.NaiveSampling):
    """`ns`."""


class BatchSampling(SampledNorm, eager.BatchSampling):
    """`bs`."""


class FeatureSampling(SampledNorm, eager.FeatureSampling):
    """`fs`."""


class VirtualDataset(SampledNorm, eager.VirtualDataset):
    """`vdn`."""


class BatchSamplingVirtual(SampledNorm, eager.BatchSamplingVirtual):
    """`bs+vdn`."""


class FeatureSamplingVirtual(SampledNorm, eager.FeatureSamplingVirtual):
    """`fs+vdn`."""
