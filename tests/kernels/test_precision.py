"""Estimators on inputs that an accumulation in the wrong precision, or by E[x²] − E[x]², spoils."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sbnbench.registry import build, make_contender, normalizers
from sbnbench_kernels.contract import State
from sbnbench_kernels.module import Norm

BACKENDS = ("eager", "aten")
DROP_INS = [
    (n.name, backend)
    for n in normalizers().values()
    for backend in n.backends
    if n.kind == "A" and n.provider == "sbnbench" and backend in BACKENDS
]
ESTIMATORS = [one for one in DROP_INS if hasattr(build(make_contender(*one, {})), "statistics")]


def far(dtype: torch.dtype) -> Tensor:
    """Channel means a thousand deviations from zero."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(16, 6, 16, 16, generator=g, dtype=torch.float64)
    scale = torch.tensor([1e-2, 0.1, 1.0, 3.0, 10.0, 50.0]).view(1, -1, 1, 1)
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]).view(1, -1, 1, 1)
    return (scale * (noise + 1000 * sign)).to(dtype)


def large(dtype: torch.dtype) -> Tensor:
    """Values up to 6e4, whose squares and sums float16 cannot hold."""
    g = torch.Generator().manual_seed(1)
    x = torch.rand(16, 6, 16, 16, generator=g, dtype=torch.float64) * 2 - 1
    return (6e4 * x).to(dtype)


@pytest.mark.parametrize("make", [far, large])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("name", "backend"), ESTIMATORS)
def test_variance_of_what_was_given(name, backend, dtype, make):
    """Within 1e-3 of the same draw in float64 from the same rounded values."""
    op = build(make_contender(name, backend, {}))
    exact = build(make_contender(name, "eager", {}))
    x = make(dtype)
    mean, var = op.statistics(x, State(seed=3))
    mean_exact, var_exact = exact.statistics(x.double(), State(seed=3))
    assert var.isfinite().all()
    known = var_exact > 0  # rounding to bfloat16 can leave a channel constant
    assert known.any()
    torch.testing.assert_close(var[known].double(), var_exact[known], rtol=1e-3, atol=0)
    torch.testing.assert_close(mean.double(), mean_exact, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("make", [far, large])
@pytest.mark.parametrize(("name", "backend"), DROP_INS)
def test_no_drop_in_overflows_in_half_precision(name, backend, make):
    groups = {"groups": 3} if normalizers()[name].param("groups") else {}
    layer = Norm(name, 6, backend=backend, **groups)
    x = make(torch.float16).requires_grad_()
    for training in (True, False):
        y = layer.train(training)(x)
        y.backward(torch.ones_like(y))
        assert y.isfinite().all()
        assert x.grad.isfinite().all()
    assert all(b.isfinite().all() for b in layer.buffers())
