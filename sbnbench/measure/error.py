"""How wrong the statistics of a normalizer are, with no regard to time.

Batches are drawn from a population of activations, each of independently chosen rows, so that the
theory of simple random samples holds whatever the batch and the population sizes are. For a
channel c that an op estimates by (μ_S, σ_S²), against a reference (μ, σ²):

    mean: |μ_S − μ| / σ          var: |ln(σ_S² / σ²)|

Both are pure numbers that do not change when a channel is shifted or scaled, so channels may be
summarised together. The mean's error is what a normalized value is off by. The logarithm makes
half and twice the variance equally wrong and is, for small errors, twice the relative error of σ,
that is of the layer's output.

There are two references. `batch`: full statistics of the same real rows, what sampling adds to
BatchNorm; zero for `bn`. `population`: those of all rows, the batch's own noise included; for
`bn` that noise alone. References are float64, of the values before they are rounded to the
workload's dtype. A draw is summarised by the median and the 95th percentile over channels; an
estimate is the mean over draws with Student's 95 % interval.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from sbnbench.errors import NotApplicable, VerificationFailed
from sbnbench.inputs import place, population, virtual_rows
from sbnbench.model import Contender, ErrorOptions, Estimate, Workload
from sbnbench.population import ROWS, VIRTUAL
from sbnbench_kernels.contract import Estimator, State

Result = tuple[dict[str, Estimate], dict[str, list[list[float]]], dict[str, Any]]
"""Estimates, samples (one list, a value a draw) and facts, as a Record holds them."""

DEAD = 1e-6
"""A channel is dead when its σ² is under this fraction of the median channel's."""
COLLAPSED = 1e-6
"""σ_S²/σ² is taken as at least this: a constant sample is very wrong (13.8), not infinitely."""

_KEEP_BYTES = 1 << 30
_LEVEL = 0.95


def measure_error(
    op: Any, contender: Contender, workload: Workload, options: ErrorOptions, seed: int
) -> Result:
    """The estimation error of an op with `statistics`, over `options.draws` batches.

    `seed` selects the op's positions; the batches depend on the workload alone, so all contenders
    of a block are tried on the same ones. NotApplicable for an op without `statistics`, or where
    no channel varies; VerificationFailed for statistics that are no numbers.
    """
    if not hasattr(op, "statistics"):
        raise NotApplicable(f"{contender.id} offers no statistics to hold against BatchNorm's")
    return _study(workload, options).measure(op, virtual_rows(contender), seed)


class ErrorStudy:
    """The batches of one workload and their full statistics, shared by all its contenders.

    Batches are kept, on the workload's device, while they fit in 1 GiB, and else put together
    again for every contender.
    """

    def __init__(self, workload: Workload, options: ErrorOptions) -> None:
        self.workload = workload
        self.population = population(workload)
        source = np.random.Generator(np.random.Philox(key=[workload.seed, workload.batch]))
        rows = source.integers(0, ROWS, size=(options.draws, workload.batch))
        mean, var = map(torch.stack, zip(*map(self.population.statistics, rows), strict=True))
        floor = DEAD * self.population.var.median()
        alive = (self.population.var > floor) & (var > floor)
        # Of (2, C) inputs a draw may take the same row twice: no variance to compare with.
        usable = alive.any(1)
        if not usable.any():
            raise NotApplicable(f"no channel of {workload.layer} varies within a batch")
        self.rows = rows[usable.numpy()]
        self.virtual = source.permuted(np.tile(np.arange(VIRTUAL), (len(self.rows), 1)), axis=1)
        self.references = {
            "batch": (mean[usable], var[usable], alive[usable]),
            "population": (
                self.population.mean,
                self.population.var,
                (self.population.var > floor).expand_as(alive[usable]),
            ),
        }
        self._kept: dict[int, Tensor] = {}

    def batch(self, draw: int, num_virtual: int = 0) -> Tensor:
        """x of a draw, with virtual rows of the draw's own choice at the end."""
        x = self._kept.get(draw)
        if x is None:
            x = place(self.population.rows(self.rows[draw]), self.workload)
            if x.nbytes * (len(self._kept) + 1) <= _KEEP_BYTES:
                self._kept[draw] = x
        if num_virtual == 0:
            return x
        virtual = self.population.virtual(self.virtual[draw][:num_virtual])
        return place(torch.cat((x, place(virtual, self.workload))), self.workload)

    @torch.no_grad()
    def measure(self, op: Estimator, num_virtual: int, seed: int) -> Result:
        """Estimates, samples and facts of one op."""
        if num_virtual > VIRTUAL:
            raise NotApplicable(f"{num_virtual} virtual rows asked for; there are {VIRTUAL}")
        state = State(seed=seed)
        found = [op.statistics(self.batch(d, num_virtual), state) for d in range(len(self.rows))]
        mean, var = (torch.stack(parts).cpu().double() for parts in zip(*found, strict=True))
        if not (mean.isfinite().all() and var.isfinite().all()):
            raise VerificationFailed("the statistics are not all finite")
        samples: dict[str, list[list[float]]] = {}
        collapsed = 0
        for name, (true_mean, true_var, alive) in self.references.items():
            ratio = var / true_var
            if name == "batch":
                collapsed = int((alive & (ratio < COLLAPSED)).sum())
            errors = {
                "mean": (mean - true_mean).abs() / true_var.sqrt(),
                "var": ratio.clamp(min=COLLAPSED).log().abs(),
            }
            for moment, error in errors.items():
                error = error.masked_fill(~alive, torch.nan)
                for summary, q in (("median", 0.5), ("p95", 0.95)):
                    values = error.nanquantile(q, dim=1)
                    samples[f"{moment}_{name}_{summary}"] = [values.tolist()]
        alive = self.references["batch"][2]
        facts = {
            "draws": len(self.rows),
            "population_rows": ROWS,
            "channels": alive.shape[1],
            "dead_channels": int((~self.references["population"][2][0]).sum()),
            "dead_in_batch": float((~alive).sum(1).double().mean()),
            "collapsed_share": collapsed / int(alive.sum()),
        }
        return {key: _estimate(values[0]) for key, values in samples.items()}, samples, facts


_study = lru_cache(maxsize=1)(ErrorStudy)


def release() -> None:
    """Let go of the batches kept for the last workload."""
    _study.cache_clear()


def _estimate(values: list[float]) -> Estimate:
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean)
    half = float(stdtrit(len(values) - 1, 0.5 + _LEVEL / 2)) * float(
        np.std(values, ddof=1) / len(values) ** 0.5
    )
    return Estimate(mean, mean - half, mean + half, level=_LEVEL)
