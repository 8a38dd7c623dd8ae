"""The sampled family on Triton against float64 formulas and autograd."""

from __future__ import annotations

from itertools import cycle, product

import pytest
import torch

import sbnbench_kernels.triton as backend
from sbnbench.errors import InvalidParameter, NotApplicable
from sbnbench.registry import build, normalizers, parse_contender
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.parts import take
from sbnbench_kernels.triton.box_launch import Fusion

CLASSES = {
    "bn": "BatchNorm",
    "ns": "NaiveSampling",
    "bs": "BatchSampling",
    "fs": "FeatureSampling",
    "vdn": "VirtualDataset",
    "bs+vdn": "BatchSamplingVirtual",
    "fs+vdn": "FeatureSamplingVirtual",
}
MODES = ["exact", "sampled", "detached"]
FORMATS = ["contiguous", "channels_last", "sliced"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES = [(name, mode) for name, mode in product(CLASSES, MODES) if name != "bn" or mode == "exact"]
QUICK = [(3, 4, 9, 7), (4, 8, 4, 8), (8, 3, 16)]
FULL = [
    (12, 5), (40, 33), (16, 16), (3, 2, 1, 1), (2, 3, 7), (5, 8, 16), (2, 5, 7, 7), (1, 8, 14, 14),
    (4, 3, 5, 33), (2, 1, 1, 96), (3, 40, 2, 2), (2, 3, 3, 4, 5), (17, 2, 4, 4), (2, 48, 6, 6),
]  # fmt: skip


def op_of(name: str, **given):
    params = normalizers()[name].resolve(given)
    return getattr(backend, CLASSES[name])(**params)


def params_of(name: str, mode: str, ratio: float = 1 / 4) -> dict[str, object]:
    params: dict[str, object] = {} if name == "bn" else {"backward": mode}
    if name not in ("bn", "vdn"):
        params["ratio"] = ratio
    if "+" in name:
        params["beta"] = 0.3
    return params


def run(op, inputs, state):
    y, saved = op.forward(inputs.x, inputs.weight, inputs.bias, state)
    return y, *op.backward(inputs.dy, saved)


def check(kit, name, mode, shape, dtype, format, **more):  # noqa: A002
    inputs = kit.make_inputs(shape, dtype, format)
    op = op_of(name, **params_of(name, mode), **more)
    try:
        sample = op.sampler.draw(shape, 3, 5, torch.device("cpu"))
        if sum(s.size for s in sample) < 2:
            raise NotApplicable
    except NotApplicable:
        with pytest.raises(NotApplicable):
            run(op, inputs, State(seed=3, step=5))
        return
    result = run(op, inputs, State(seed=3, step=5))
    expected = kit.reference(sample, "exact" if name == "bn" else mode, inputs)
    # A sample of few, nearly equal values divides by nearly √ε: conditioning, not arithmetic.
    few = 5 if sample[0].size < 9 else 1
    kit.assert_near(result, expected, kit.tolerance[dtype] * few)
    assert result[0].dtype == result[1].dtype == dtype


CHOICES = ["usual", "split", "looped"]
FUSED = cycle(product(FORMATS[:2], CHOICES))
SETTINGS = cycle(product(FORMATS, DTYPES, CHOICES))


@pytest.mark.parametrize(
    ("name", "mode", "shape", "format", "dtype", "choice"),
    [(n, m, s, *next(SETTINGS)) for (n, m), s in product(CASES, QUICK)],
    indirect=["choice"],
)
def test_agrees_with_float64(kit, choice, name, mode, shape, format, dtype):  # noqa: A002
    check(kit, name, mode, shape, dtype, format)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode", "shape", "format", "dtype", "choice"),
    [(n, m, s, *next(SETTINGS)) for (n, m), s in product(CASES, FULL)],
    indirect=["choice"],
)
def test_full_grid(kit, choice, name, mode, shape, format, dtype):  # noqa: A002
    check(kit, name, mode, shape, dtype, format)


@pytest.mark.slow
@pytest.mark.parametrize("position", ["per-sample", "shared", "fixed"])
def test_positions(kit, choice, position):
    for format, shape in product(FORMATS[:2], [(3, 4, 11), (4, 5, 9, 8), (2, 3, 4, 5, 6)]):  # noqa: A001
        check(kit, "fs", "exact", shape, torch.float32, format, position=position)
        check(kit, "fs", "sampled", shape, torch.float32, format, position=position)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_running_statistics_and_inference(kit, choice, name):
    inputs = kit.make_inputs((6, 5, 7, 6), torch.float32)
    wide = inputs._replace(x=inputs.x.double(), dy=inputs.dy.double())
    params = params_of(name, "sampled")
    label = ",".join(f"{k}={v}" for k, v in params.items())
    eager = build(parse_contender(f"{name}[{label}]" if label else name))
    states = [
        State(torch.full((5,), 0.5, dtype=d), torch.full((5,), 2.0, dtype=d), momentum=m, seed=1)
        for m in (0.3, None)
        for d in (torch.float32, torch.float64)
    ]
    for ours, theirs in (states[:2], states[2:]):
        op = op_of(name, **params)
        for training in (True, True, False):
            ours.training = theirs.training = training
            kit.assert_near(run(op, inputs, ours), run(eager, wide, theirs), 5e-5)
            kit.assert_near(
                (ours.running_mean, ours.running_var), (theirs.running_mean, theirs.running_var),
                2e-5,
            )  # fmt: skip
            assert ours.step == theirs.step
        kit.assert_near(op.statistics(inputs.x, ours), eager.statistics(wide.x, theirs), 2e-5)
        assert ours.step == theirs.step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode", "add", "format", "choice"),
    [(*c, a, *next(FUSED)) for c, a in product(CASES, (False, True))],
    indirect=["choice"],
)
def test_fused_relu_and_residual(kit, choice, name, mode, add, format):  # noqa: A002
    inputs = kit.make_inputs((5, 6, 9, 7), torch.float32, format)
    residual = kit.make_inputs((5, 6, 9, 7), torch.float32, seed=1).x if add else None
    op = op_of(name, **params_of(name, mode))
    op.fusion = Fusion(relu=True, residual=add)
    sample = op.sampler.draw(inputs.x.shape, 3, 5, torch.device("cpu"))
    mode = "exact" if name == "bn" else mode
    before = kit.reference(sample, mode, inputs).y + (residual.double() if add else 0)
    # No gradient where rounding decides on which side of 0 a value lies.
    dy = inputs.dy * (before.abs() > 1e-3)
    state = State(seed=3, step=5)
    extra = (residual,) if add else ()
    y, saved = op.forward(inputs.x, inputs.weight, inputs.bias, state, *extra)
    dx, dweight, dbias, *rest = op.backward(dy, saved)
    behind = inputs._replace(dy=dy * (before > 0))
    expected = kit.reference(sample, mode, behind)._replace(y=before.relu())
    kit.assert_near((y, dx, dweight, dbias), expected, 2e-5)
    assert len(rest) == add
    for dresidual in rest:
        assert torch.equal(dresidual, behind.dy)


def test_a_residual_alone_and_what_is_asked_wrongly(kit):
    inputs = kit.make_inputs((5, 6, 9, 7), torch.float32)
    op = op_of("bn")
    with pytest.raises(InvalidParameter, match="residual"):
        op.forward(inputs.x, None, None, State(), inputs.dy)
    op.fusion = Fusion(residual=True)
    y, saved = op.forward(inputs.x, None, None, State(), inputs.dy)
    plain, _ = op_of("bn").forward(inputs.x, None, None, State())
    torch.testing.assert_close(y, plain + inputs.dy)
    dx, dweight, dbias, dresidual = op.backward(inputs.dy, saved)
    assert dweight is None
    assert dbias is None
    assert dresidual is inputs.dy
    assert not dx.isnan().any()
    with pytest.raises(NotApplicable, match="float64"):
        op_of("bn").forward(inputs.x.double(), None, None, State())
    with pytest.raises(NotApplicable, match="empty"):
        op_of("bn").forward(inputs.x[:0], None, None, State())


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["usual", "split"], indirect=True)
@pytest.mark.parametrize("name", CLASSES)
def test_one_affine_parameter(kit, choice, name):
    inputs = kit.make_inputs((5, 6, 9, 7), torch.float32)
    op = op_of(name, **params_of(name, "sampled"))
    sample = op.sampler.draw(inputs.x.shape, 0, 0, torch.device("cpu"))
    mode = "exact" if name == "bn" else "sampled"
    for weight, bias in ((inputs.weight, None), (None, inputs.bias)):
        y, saved = op.forward(inputs.x, weight, bias, State())
        dx, dweight, dbias = op.backward(inputs.dy, saved)
        filled = inputs._replace(
            weight=torch.ones(6) if weight is None else weight,
            bias=torch.zeros(6) if bias is None else bias,
        )
        expected = kit.reference(sample, mode, filled)
        kit.assert_near((y, dx), expected[:2], 2e-5)
        assert (dweight is None) == (weight is None)
        assert (dbias is None) == (bias is None)


def test_a_large_offset_costs_no_accuracy(kit, choice):
    """E[x²]−E[x]² in float32 would lose every digit of the variance here."""
    inputs = kit.make_inputs((6, 4, 9, 8), torch.float32, offset=2000.0)
    for name in ("bn", "fs", "bs"):
        op = op_of(name, **params_of(name, "sampled"))
        mean, var = op.statistics(inputs.x, State(seed=3, step=5))
        (share,) = op.sampler.draw(inputs.x.shape, 3, 5, torch.device("cpu"))
        values = take(share.part, inputs.x.double()).transpose(0, 1).flatten(1)
        kit.assert_near((mean, var), (values.mean(1), values.var(1, correction=0)), 2e-5)


@pytest.mark.slow
def test_backward_leaves_saved_alone_and_repeats_bit_for_bit(kit, choice):
    inputs = kit.make_inputs((6, 4, 9, 8), torch.float32)
    for name in CLASSES:
        op = op_of(name, **params_of(name, "sampled"))
        y, saved = op.forward(inputs.x, inputs.weight, inputs.bias, State(seed=2))
        again, _ = op.forward(inputs.x, inputs.weight, inputs.bias, State(seed=2))
        first, second = op.backward(inputs.dy, saved), op.backward(inputs.dy, saved)
        assert torch.equal(y, again)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
