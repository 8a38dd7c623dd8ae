"""Reading and writing the sampled part of a tensor (N, C, *spatial), of any strides."""

from __future__ import annotations

import torch
from torch import Tensor

from sbnbench_kernels.samplers import Elements
from sbnbench_kernels.sampling import Box


def take(part: Box | Elements, t: Tensor) -> Tensor:
    """The part's values, channels in dimension 1: a view of whole rows, else a copy."""
    if isinstance(part, Box) and part.corners is None:
        return t.narrow(0, part.start, part.count)
    view, index = _indexed(part, t)
    return view[index]


def put(part: Box | Elements, t: Tensor, values: Tensor) -> None:
    """Writes `values`, shaped as `take` gives them, over the part."""
    if isinstance(part, Elements):
        view, index = _indexed(part, t)
        view[index] = values
    elif part.corners is None:
        t.narrow(0, part.start, part.count).copy_(values)
    else:
        # Not through windows: they overlap, and a compiler refuses to write to what overlaps.
        t[_inside(part, part.corners)] = values.movedim(1, -1)


def _indexed(part: Box | Elements, t: Tensor) -> tuple[Tensor, tuple[Tensor | slice, ...]]:
    if isinstance(part, Elements):
        # torch.unravel_index would wait for the device.
        rest = part.positions
        place: list[Tensor] = []
        for size in reversed(t.shape[2:]):
            place.insert(0, rest % size)
            rest = rest // size
        return t, (rest, slice(None), *place)
    assert part.corners is not None
    windows = t.narrow(0, part.start, part.count)
    for dim, size in enumerate(part.patch, start=2):
        windows = windows.unfold(dim, size, 1)
    row = torch.arange(part.count, device=t.device)
    return windows, (row, slice(None), *part.corners.unbind(1))


def _inside(box: Box, corners: Tensor) -> tuple[Tensor | slice, ...]:
    """Indices of a box's patches in the whole tensor."""
    dims, device = len(box.patch), corners.device
    rows = torch.arange(box.start, box.start + box.count, device=device)
    index: list[Tensor | slice] = [rows.view(-1, *(1,) * dims), slice(None)]
    for dim, size in enumerate(box.patch):
        steps = torch.arange(size, device=device).view(*(1,) * dim, -1, *(1,) * (dims - dim - 1))
        index.append(corners[:, dim].view(-1, *(1,) * dims) + steps)
    return tuple(index)
