"""BatchNorm and its sampled relatives, compiled. Formulas: eager/sampled.py.

Forward reads the sample, then x, and writes y; the sampled backward reads the sample of dy and x,
then dy and x, and writes dx. Positions are arguments of the compiled code, so a new draw compiles
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sbnbench_kernels.contract import State
from sbnbench_kernels.eager import sampled as eager
from sbnbench_kernels.eager.arithmetic import accumulator, check_input, column, scale_of
from sbnbench_kernels.inductor.compiled import Compiled, Layout, Program, layout
from sbnbench_kernels.inductor.parts import Form, form_of, positions_of
from sbnbench_kernels.inductor.passes import affine, can_pair, leaves_tails
from sbnbench_kernels.inductor.sums import buffer, moments, sums
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
            function = Forward(self.eps, forms, training, momentum, correction, keep, can_pair(x))
            found = self.programs[key] = (self._program(function, given), forms)
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
            function = Backward(self.mode, forms, bias_dtype, can_pair(dy, x))
            program = self.programs[key] = self._program(function, given)
        found = list(program([t for t in given if t is not None]))
        dbias = None if bias_dtype is None else found.pop()
        dweight = None if weight is None else found.pop()
        return found.pop(), dweight, dbias

    def _program(self, function: Forward | Backward, given: Sequence[Tensor | None]) -> Program:
        """One program, or two where the passes that sum and the one that writes want their loops
        ended differently."""
        x = given[0]
        assert x is not None
        if not (function.pairs and function.by_channel and leaves_tails(x)):
            return self.compile(function, given)
        summed = self.compile(function.sum_up, given)
        tensors, coefficients = function.reads, function.coefficients
        table = torch.empty(x.shape[1], dtype=accumulator(x), device=x.device)
        written = self.compile(
            function.write, (*given[:tensors], *[table] * coefficients), scalar_tails=True
        )

        def program(arguments: list[Tensor]) -> Sequence[Any]:
            read = arguments[:tensors]
            found = summed(arguments)
            return *written([*read, *found[:coefficients]]), *found[coefficients:]

        return program


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
    pairs: bool
    reads: ClassVar[int] = 1
    """Tensors like x among the arguments, which come first."""
    coefficients: ClassVar[int] = 2
    by_channel: ClassVar[bool] = True

    def __call__(self, x: Tensor, *rest: Any) -> Sequence[Tensor]:
        scale, shift, *found = self.sum_up(x, *rest)
        return *self.write(x, scale, shift), *found

    def write(self, x: Tensor, scale: Tensor, shift: Tensor) -> Sequence[Tensor]:
        return [affine([(x, scale)], shift, self.pairs)]

    def sum_up(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        old_mean: Tensor | None,
        old_var: Tensor | None,
        share: Tensor | None,
        *positions: Tensor,
    ) -> Sequence[Tensor]:
        """γ/σ, b − μγ/σ; μ, 1/σ and the copies."""
        dtype = accumulator(x)
        copied: list[Tensor] = []
        if self.forms:
            parts = _taken(self.forms, x, positions)
            mean, var = _mixed(self.forms, parts)
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
        if self.training:
            momentum = self.momentum if share is None else share
            assert momentum is not None
            _average(old_mean, mean, momentum)
            _average(old_var, var * self.correction, momentum)
        return buffer(scale), buffer(shift), mean, rstd, *copied


@dataclass(frozen=True)
class Backward:
    """dx, then dγ and db where there are γ and b."""

    mode: eager.Backward
    forms: Forms
    bias_dtype: torch.dtype | None
    pairs: bool
    reads: ClassVar[int] = 2

    @property
    def by_sample(self) -> bool:
        """Whether dx takes the means of a sample out everywhere: of the sampled dy and x in mode
        `sampled`, of all of them where the sample is everything."""
        return bool(self.forms) and (
            self.mode == "sampled" or (self.mode == "exact" and all(f.whole for f in self.forms))
        )

    @property
    def coefficients(self) -> int:
        return 3 if self.forms and self.mode != "detached" else 1

    @property
    def by_channel(self) -> bool:
        """Whether the coefficients are the same all over a channel."""
        return self.by_sample or self.coefficients == 1

    def __call__(self, dy: Tensor, x: Tensor, *rest: Any) -> Sequence[Tensor]:
        found = self.sum_up(dy, x, *rest)
        means, gradients = found[: self.coefficients], found[self.coefficients :]
        if self.by_channel:
            return *self.write(dy, x, *means), *gradients
        scale, slope, shift = (column(m, x) for m in means)
        positions = [t for t in rest[3:] if t is not None]
        correction = x.to(scale.dtype) * slope + shift
        dx = dy.to(scale.dtype) * scale + _weights(self.forms, x, positions) * correction
        return dx.to(x.dtype), *gradients

    def write(self, dy: Tensor, x: Tensor, scale: Tensor, *correction: Tensor) -> Sequence[Tensor]:
        if not correction:
            return [affine([(dy, scale)], None, self.pairs)]
        slope, shift = correction
        return [affine([(dy, scale), (x, slope)], shift, self.pairs)]

    def sum_up(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        *rest: Tensor,
    ) -> Sequence[Tensor]:
        """a of dx = a·dy + c·x + d, and c and d where they are not 0; dγ, db. `rest`: the
        positions, then the copies that forward kept."""
        needed = sum(not f.whole for f in self.forms)
        positions, copied = rest[:needed], rest[needed:]
        scale = buffer(scale_of(weight, rstd))
        found = [scale]
        if self.by_sample:
            taken_dy = _taken(self.forms, dy, positions)
            taken_x = _taken(self.forms, x, positions, iter(copied))
            parts = [
                sums(part_dy, part, mean, bool(f.patch))
                for f, part_dy, part in zip(self.forms, taken_dy, taken_x, strict=True)
            ]
            omega = [f.weight / f.size for f in self.forms]
            inner = (_weighted(omega, [p[k] for p in parts]) for k in (0, 1))
            found += _correction(scale, mean, rstd, *inner)
            up = [f.stands_for / f.size for f in self.forms]
            sum_dy, sum_dyd = (_weighted(up, [p[k] for p in parts]) for k in (0, 1))
        else:
            sum_dy, sum_dyd = sums(dy, x, mean)
            if self.coefficients == 3:
                found += _correction(scale, mean, rstd, sum_dy, sum_dyd)
        if weight is not None:
            found.append((sum_dyd * rstd).to(weight.dtype))
        if self.bias_dtype is not None:
            found.append(sum_dy.to(self.bias_dtype))
        return found


def _correction(
    scale: Tensor, mean: Tensor, rstd: Tensor, mean_dy: Tensor, mean_dyd: Tensor
) -> tuple[Tensor, Tensor]:
    """a, b of dx = (γ/σ)·dy + a·x + b, which takes the sample's means of dy and dy·(x−μ) out."""
    slope = -scale * rstd.square() * mean_dyd
    return buffer(slope), buffer(-scale * mean_dy - slope * mean)


def _taken(
    forms: Forms, t: Tensor, positions: Sequence[Tensor], copied: Iterator[Tensor] | None = None
) -> list[Tensor]:
    """The forms' parts of t, those found among `copied` from there."""
    left = iter(positions)
    wheres = [None if f.whole else next(left) for f in forms]
    return [
        next(copied) if copied and f.copies(t) else f.take(t, where)
        for f, where in zip(forms, wheres, strict=True)
    ]


def _weights(forms: Forms, x: Tensor, positions: Sequence[Tensor]) -> Tensor | float:
    """ω of every value, (N, 1, *spatial): 0 outside the sample."""
    left = iter(positions)
    omega: Tensor | float = 0.0
    for f in forms:
        each = f.weight / f.size
        omega = omega + (each if f.whole else each * f.mask(x, next(left)).to(accumulator(x)))
    return omega


def _mixed(forms: Forms, parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the mixture of the parts."""
    found = [moments(part, bool(f.patch)) for f, part in zip(forms, parts, strict=True)]
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
