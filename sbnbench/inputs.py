"""Workload → seeded tensors, synthetic or real.

The same workload gives bit-same tensors. Values are made on the CPU in float32, then rounded to
the workload's dtype and moved; `double` gives the rounded values back in float64, so that a
reference sees what the contender saw.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sbnbench import registry
from sbnbench.activations import activations
from sbnbench.errors import NotApplicable, Unavailable, UsageError
from sbnbench.layers import LAYERS, layer_of
from sbnbench.model import Contender, Workload
from sbnbench.population import (
    ROWS,
    VIRTUAL,
    Population,
    Writer,
    cache_folder,
    check_space,
    disk_bytes,
    open_population,
)
from sbnbench.synthetic import Channels, code_hash, generator

_FOLLOWS = 0.3
"""Share of x̂ in dy: Σ dy·x̂ must not vanish, or half of a backward goes unchecked."""


@dataclass(frozen=True)
class Inputs:
    """x and dy, (N + v, C, *spatial) with v virtual rows at the end; γ and b, (C,)."""

    workload: Workload
    num_virtual: int
    x: Tensor
    dy: Tensor
    weight: Tensor
    bias: Tensor

    def fresh(self, k: int) -> Inputs:
        """Another draw for the same workload; `fresh(0)` is what `make` gave."""
        return make(self.workload, self.num_virtual, k)

    def double(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, dy, γ and b as float64 on the CPU, contiguous."""
        x, dy, weight, bias = (
            t.to("cpu", torch.float64).contiguous()
            for t in (self.x, self.dy, self.weight, self.bias)
        )
        return x, dy, weight, bias


def make(workload: Workload, num_virtual: int = 0, draw: int = 0) -> Inputs:
    """Inputs of a workload with `num_virtual` virtual rows after its real ones.

    γ is 0.5 … 1.5, negative in one channel of eight; b has deviation 0.5; both are float32 under
    the half precisions. dy has a scale and an offset of its own in each channel. Real rows are
    `batch` neighbours in the population, from the start again where it ends. Virtual rows do not
    change the real ones, and one virtual row is the first of two.

    NotApplicable where the memory format or so many virtual rows do not exist for this input,
    UsageError where the shape is not the layer's, Unavailable without the extra `real`.
    """
    made = make_real(workload, draw)
    return with_virtual(made, num_virtual, draw) if num_virtual else made


def make_real(workload: Workload, draw: int = 0) -> Inputs:
    """`make` without virtual rows."""
    check(workload)
    layer = layer_of(workload.source)
    if layer is None:
        channels = Channels(workload.channels, workload.spatial, workload.seed)
        x = channels.rows(workload.batch, "batch", draw)
        scale = channels.mean, channels.deviation
    else:
        found = activations(layer)
        start = _start(workload, draw)
        x = found.rows([(start + n) % ROWS for n in range(workload.batch)])
        scale = found.mean.float(), found.var.sqrt().float()
    dy = _gradient(x, *scale, workload.seed, "real", draw)
    source = generator("affine", workload.seed, draw)
    weight = 0.5 + torch.rand(workload.channels, generator=source)
    weight[torch.rand(workload.channels, generator=source) < 1 / 8] *= -1
    bias = 0.5 * torch.randn(workload.channels, generator=source)
    return Inputs(
        workload,
        0,
        place(x, workload),
        place(dy, workload),
        _affine(weight, workload),
        _affine(bias, workload),
    )


def with_virtual(real: Inputs, num_virtual: int, draw: int = 0) -> Inputs:
    """What `make_real` gave, with virtual rows of the same draw after its own."""
    workload = real.workload
    check(workload, num_virtual)
    layer = layer_of(workload.source)
    if layer is None:
        channels = Channels(workload.channels, workload.spatial, workload.seed)
        x = channels.virtual(num_virtual, "batch", draw)
        scale = channels.mean, channels.deviation
    else:
        found = activations(layer)
        start = _start(workload, draw)
        x = found.virtual([(start + n) % VIRTUAL for n in range(num_virtual)])
        scale = found.mean.float(), found.var.sqrt().float()
    dy = _gradient(x, *scale, workload.seed, "virtual", draw)
    x, dy = (
        place(torch.cat((rows, place(virtual, workload))), workload)
        for rows, virtual in ((real.x, x), (real.dy, dy))
    )
    return replace(real, num_virtual=num_virtual, x=x, dy=dy)


def virtual_rows(contender: Contender) -> int:
    """Rows that the harness appends for this contender: its parameter `num_virtual`, or none."""
    params = registry.normalizers()[contender.normalizer].resolve(dict(contender.params))
    return int(params.get("num_virtual", 0))


def check(workload: Workload, num_virtual: int = 0) -> None:
    """Raises what `make` would, without making anything."""
    if workload.format == "channels_last" and len(workload.spatial) < 2:
        raise NotApplicable(
            f"channels_last needs two or three spatial sizes; the input is {workload.shape}"
        )
    layer = layer_of(workload.source)
    if layer is None:
        return
    if (workload.channels, workload.spatial) != LAYERS[layer]:
        raise UsageError(
            f"layer {layer} has (channels, spatial) {LAYERS[layer]}, "
            f"the workload {(workload.channels, workload.spatial)}"
        )
    if num_virtual > VIRTUAL:
        raise NotApplicable(f"{num_virtual} virtual rows asked for; real inputs have {VIRTUAL}")


def population(workload: Workload) -> Population:
    """What batches of this workload are drawn from when errors are estimated.

    For `real:LAYER` all captured crops; for `synthetic` as many rows of the same distribution,
    made once and kept in the same cache. Rows are read when they are asked for.
    """
    check(workload)
    layer = layer_of(workload.source)
    if layer is not None:
        return activations(layer)
    folder = _synthetic_folder(workload)
    found = open_population(folder, workload.channels, workload.spatial)
    if found is None:
        check_space(disk_bytes(workload.channels, workload.spatial))
        channels = Channels(workload.channels, workload.spatial, workload.seed)
        with Writer(folder, workload.channels, workload.spatial) as writer:
            for start in range(0, ROWS, 16):
                writer.put(start, channels.rows(16, "population", start))
            writer.put(ROWS, channels.virtual(VIRTUAL, "population"))
        found = open_population(folder, workload.channels, workload.spatial)
    if found is None:
        raise Unavailable(f"{folder} cannot be read back; set SBNBENCH_CACHE")
    return found


def place(values: Tensor, workload: Workload) -> Tensor:
    """`values` in the workload's dtype and memory format on its device."""
    placed = values.to(workload.device, getattr(torch, workload.dtype))
    if workload.format == "channels_last" and placed.ndim > 3:
        last = torch.channels_last if placed.ndim == 4 else torch.channels_last_3d
        return placed.contiguous(memory_format=last)
    return placed.contiguous()


def _start(workload: Workload, draw: int) -> int:
    """The first row of a draw: 97 has no factor in common with ROWS, so no two of the first ROWS
    draws start alike."""
    return 97 * (31 * workload.seed + draw)


def _gradient(x: Tensor, mean: Tensor, deviation: Tensor, *key: object) -> Tensor:
    """dy = s_c · (noise + 0.3·x̂ + o_c), with s_c log-normal and o_c of deviation 0.2."""
    source = generator("gradient", *key)
    wide = (-1, *(1,) * (x.ndim - 2))
    channels = x.shape[1]
    scale = torch.exp(0.5 * torch.randn(channels, generator=source))
    offset = 0.2 * torch.randn(channels, generator=source)
    slope = _FOLLOWS / deviation.clamp(min=torch.finfo(torch.float32).tiny)
    slope[deviation == 0] = 0
    # Row by row, so that a virtual row does not depend on how many follow it.
    dy = torch.empty_like(x)
    for row in dy:
        row.normal_(generator=source)
    dy.addcmul_(x, slope.reshape(wide))
    return dy.add_((offset - mean * slope).reshape(wide)).mul_(scale.reshape(wide))


def _affine(values: Tensor, workload: Workload) -> Tensor:
    """γ and b stay in float32 under the half precisions, as mixed-precision training has them."""
    wide = torch.float64 if workload.dtype == "float64" else torch.float32
    return values.to(workload.device, wide)


def _synthetic_folder(workload: Workload) -> Path:
    size = "x".join(str(n) for n in (workload.channels, *workload.spatial))
    return cache_folder() / f"synthetic-{code_hash()}" / f"{size}-{workload.seed}"
