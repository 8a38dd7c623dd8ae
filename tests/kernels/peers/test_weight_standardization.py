"""Weight Standardization and centralization."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from sbnbench.errors import NotApplicable
from sbnbench_kernels.eager.weight_standardization import (
    Centralized,
    Standardized,
    WSConv1d,
    WSConv2d,
    WSConv3d,
    centralize,
    standardize,
)


def formula(weight):
    rows = weight.flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    return (centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()).view_as(weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_formula(check, dtype):
    weight = check.draw((8, 3, 3, 2), dtype=dtype) + 5
    got, wanted = standardize(weight), formula(weight.double())
    assert got.dtype == dtype
    check.near(got, wanted, check.TOLERANCE[dtype], "weight")


def test_gradient(check):
    weight = check.draw((4, 3, 2, 2)).requires_grad_()
    assert torch.autograd.gradcheck(standardize, weight)
    assert torch.autograd.gradcheck(centralize, weight)
    assert centralize(weight).flatten(1).mean(1).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("made", "plain", "shape"),
    [
        (WSConv1d, nn.Conv1d, (2, 4, 9)),
        (WSConv2d, nn.Conv2d, (2, 4, 9, 8)),
        (WSConv3d, nn.Conv3d, (2, 4, 5, 4, 4)),
    ],
)
def test_is_a_drop_in_for_the_convolution(check, made, plain, shape):
    options = {"stride": 2, "padding": 1, "groups": 2, "padding_mode": "circular"}
    torch.manual_seed(0)
    layer, other = made(4, 6, 3, **options), plain(4, 6, 3, **options)
    other.load_state_dict(layer.state_dict())
    other.weight.data = formula(layer.weight.data)
    x = check.draw(shape, dtype=torch.float32)
    torch.testing.assert_close(layer(x), other(x), rtol=1e-4, atol=1e-4)


def test_parametrizations(check):
    torch.manual_seed(0)
    x = check.draw((2, 4, 6, 6), dtype=torch.float32)
    for parametrization, function in ((Standardized(), standardize), (Centralized(), centralize)):
        layer = nn.Conv2d(4, 6, 3)
        wanted = F.conv2d(x, function(layer.weight), layer.bias)
        parametrize.register_parametrization(layer, "weight", parametrization)
        torch.testing.assert_close(layer(x), wanted)


def test_constant_and_single_weights():
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        assert not standardize(torch.full((3, 2, 2, 2), 0.1, dtype=dtype)).isnan().any()
    with pytest.raises(NotApplicable, match="more than 1 weight"):
        standardize(torch.ones(4, 1, 1, 1))
