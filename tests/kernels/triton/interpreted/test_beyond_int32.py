"""Offsets of 2³¹ and more: tensors whose memory is never touched but at their end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from sbnbench_kernels.samplers import Elements, Share
from sbnbench_kernels.sampling import Box
from sbnbench_kernels.triton import box_backward, box_launch, heuristics
from sbnbench_kernels.triton.box_backward import Given, gradient_tables
from sbnbench_kernels.triton.layout import Layout, dense

ROWS, CHANNELS, SPATIAL = 66000, 8, (64, 65)
"""2.2·10⁹ values, 4.4 GB of addresses in bfloat16."""


@pytest.fixture(params=["contiguous", "channels_last"])
def huge(request) -> tuple[torch.Tensor, Layout]:
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(False)
    size = (ROWS, CHANNELS, *SPATIAL)
    if request.param == "channels_last":
        x = torch.empty(ROWS, *SPATIAL, CHANNELS, dtype=torch.bfloat16).movedim(-1, 1)
    else:
        x = torch.empty(size, dtype=torch.bfloat16)
    x[-2:] = torch.randn(2, *size[1:]) + torch.arange(CHANNELS).view(1, -1, 1, 1)
    given, layout = dense(x)
    assert given is x
    assert layout.wide
    return x, layout


def shares() -> list[Share]:
    patch = Box(ROWS - 2, 2, torch.tensor([[3, 60], [50, 0]]), (7, 5))
    positions = torch.tensor([ROWS * 4160 - 1, ROWS * 4160 - 5000, ROWS * 4160 - 8320])
    return [
        Share(Box(ROWS - 2, 2, None, ()), 1.0, 2 * 4160, 2 * 4160),
        Share(patch, 1.0, 70, 2 * 4160),
        Share(Elements(positions), 1.0, 3, 2 * 4160),
    ]


def values_of(share: Share, x: torch.Tensor) -> torch.Tensor:
    """(C, s) in float64."""
    end = x[-2:].double()
    if isinstance(share.part, Elements):
        return end.transpose(0, 1).flatten(1)[:, share.part.positions - (ROWS - 2) * 4160]
    if share.part.corners is None:
        return end.transpose(0, 1).flatten(1)
    rows = zip(end, share.part.corners.tolist(), strict=True)
    return torch.cat([r[:, h : h + 7, w : w + 5].flatten(1) for r, (h, w) in rows], 1)


@pytest.mark.slow
@pytest.mark.parametrize("share", shares(), ids=["rows", "patches", "elements"])
def test_sums(kit, huge, share):
    x, layout = huge
    stats, _, _ = box_launch.sample_statistics(x, layout, (share,), 1e-5)
    values = values_of(share, x)
    expected = values.mean(1), values.var(1, correction=0)
    kit.assert_near((stats.mean, stats.var), expected, 2e-5)
    given = Given(x, x, None, None, None, stats.mean, stats.rstd)
    table, _ = gradient_tables(given, layout, box_launch.box_arguments(share, layout))
    centred = values - stats.mean.double()[:, None]
    sums = values.sum(1), (values * centred).sum(1) * stats.rstd
    kit.assert_near(table.sum(1), sums, 1e-4)


@pytest.mark.slow
def test_passes(kit, huge, monkeypatch):
    """Only the last program runs; the others would take days here."""
    x, layout = huge
    p = heuristics.pass_launch(layout)
    last = p.programs(layout) - 1
    monkeypatch.setattr(heuristics.PassLaunch, "programs", lambda *_: 1)
    monkeypatch.setattr(
        interpreter.interpreter_builder,
        "create_get_program_id",
        lambda axis: interpreter.TensorHandle(np.array([last], dtype=np.int32), tl.int32),
    )
    scale = torch.arange(1.0, CHANNELS + 1)
    shift = torch.linspace(-3, 3, CHANNELS)
    y = box_launch.affine_pass(x, layout, scale, shift)
    dx = torch.empty_like(x)
    box_backward.dx_pass(
        Given(x, x, None, None, None, scale, scale), layout, (scale, shift, shift, None),
        box_backward.Gradients(dx, None, None, None),
    )  # fmt: skip
    # Of the last program's values: the last position, and the channels that it covers.
    reached = slice(None) if layout.channels_last else slice(-1, None)
    tail, a, b = x[-1, reached, -1, -1].double(), scale[reached], shift[reached]
    kit.assert_near((y[-1, reached, -1, -1],), (tail * a + b,), 1e-2)
    kit.assert_near((dx[-1, reached, -1, -1],), (tail * a + tail * b + b,), 1e-2)
