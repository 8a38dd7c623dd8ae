"""mabn and online over several iterations, against their algorithms written out step by step."""

from __future__ import annotations

import math

import pytest
import torch

from sbnbench.errors import NotApplicable
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.mabn import MovingAverageBatchNorm
from sbnbench_kernels.eager.online import OnlineNorm

EPS = 1e-5


def spread(t, x):
    return t.view(1, -1, *[1] * (x.dim() - 2))


class Mabn:
    """The released algorithm, one channel vector at a time."""

    def __init__(self, running_var, momentum, buffer, warmup, renorm_after, rmax=5.0):
        self.rv, self.momentum = running_var.clone(), momentum
        self.buffer, self.warmup, self.renorm_after, self.rmax = buffer, warmup, renorm_after, rmax
        self.squares, self.slopes, self.iteration = [], [], 0

    def step(self, x, dy, w, b):
        self.iteration += 1
        dims = (0, *range(2, x.dim()))
        self.squares = [*self.squares, (x * x).mean(dims)][-self.buffer :]
        alone = self.iteration <= self.buffer or self.iteration < self.warmup
        chi = self.squares[-1] if alone else torch.stack(self.squares).mean(0)
        r = torch.ones_like(chi)
        if self.iteration > max(self.renorm_after, self.warmup):
            r = ((chi + EPS).sqrt() / (self.rv + EPS).sqrt()).clamp(1 / self.rmax, self.rmax)
        self.rv = (1 - self.momentum) * self.rv + self.momentum * chi
        z = x / spread(chi + EPS, x).sqrt()
        y = spread(w, x) * spread(r, x) * z + spread(b, x)
        g = dy * spread(w * r, x)
        self.slopes = [*self.slopes, (g * z).mean(dims)][-self.buffer :]
        psi = self.slopes[-1] if alone else torch.stack(self.slopes).mean(0)
        dx = (g - z * spread(psi, x)) / spread(chi + EPS, x).sqrt()
        return y, dx, (dy * spread(r, x) * z).sum(dims), dy.sum(dims)


class Online:
    """The published recursion, sample by sample."""

    def __init__(self, mean, var, forward_decay, backward_decay, control, bound=5.0):
        self.mean, self.var = mean.clone(), var.clone()
        self.u, self.v = torch.zeros_like(mean), torch.zeros_like(mean)
        self.f, self.b, self.control, self.bound = forward_decay, backward_decay, control, bound

    def forward(self, x, w, b):
        xhats, stds = [], []
        for sample in x:
            flat = sample.reshape(len(sample), -1)
            std = (self.var + EPS).sqrt()
            xhats.append(((flat - self.mean[:, None]) / std[:, None]).reshape(sample.shape))
            stds.append(std)
            m, s = flat.mean(1), flat.var(1, correction=0)
            self.var = self.f * self.var + (1 - self.f) * s
            self.var = self.var + self.f * (1 - self.f) * (m - self.mean) ** 2
            self.mean = self.f * self.mean + (1 - self.f) * m
        self.kept = torch.stack(xhats), stds
        z = self.kept[0] * spread(w, x) + spread(b, x)
        return self.hold(z)

    def hold(self, z):
        if self.control == "clamp":
            return z.clamp(-self.bound, self.bound)
        if self.control == "scale":
            power = z.square().mean(tuple(range(1, z.dim())), keepdim=True)
            return z / (power + EPS).sqrt()
        return z

    def backward(self, x, dy, w, b):
        xhat, stds = self.kept
        z = (xhat * spread(w, x) + spread(b, x)).detach().requires_grad_()
        (dz,) = torch.autograd.grad(self.hold(z), z, dy)
        g, dx = dz * spread(w, x), []
        for g_t, x_t, std in zip(g, xhat, stds, strict=True):
            g_t, x_t = g_t.reshape(len(g_t), -1), x_t.reshape(len(x_t), -1)
            tilde = g_t - (1 - self.b) * self.v[:, None] * x_t
            self.v = self.v + (tilde * x_t).mean(1)
            out = tilde / std[:, None] - (1 - self.b) * self.u[:, None]
            self.u = self.u + out.mean(1)
            dx.append(out.reshape(x.shape[1:]))
        dims = (0, *range(2, x.dim()))
        return torch.stack(dx), (dz * xhat).sum(dims), dz.sum(dims)


def batches(check, shape, count):
    weight, bias = check.draw((1, shape[1]), 2)[0], check.draw((1, shape[1]), 3)[0]
    for step in range(count):
        yield check.draw(shape, 10 + step), check.draw(shape, 50 + step), weight, bias


@pytest.mark.parametrize("kind", ["nc", "ncl", "nchw", "ncdhw"])
@pytest.mark.parametrize(
    "settings",
    [
        {"buffer": 3, "warmup": 0, "renorm_after": 5},
        {"buffer": 3, "warmup": 7, "renorm_after": 5},
        {"buffer": 1, "warmup": 2, "renorm_after": 0},
        {"buffer": 16, "warmup": 100, "renorm_after": 1000},
    ],
    ids=str,
)
def test_mabn(check, kind, settings):
    state, op = check.state(6, momentum=0.2), MovingAverageBatchNorm(**settings)
    plain = Mabn(state.running_var, 0.2, **settings)
    mean = state.running_mean.clone()
    for x, dy, w, b in batches(check, check.SHAPES[kind], 10):
        y, saved = op.forward(x, w, b, state)
        got = (y, *op.backward(dy, saved))
        assert torch.equal(got[1], op.backward(dy, saved)[0])
        for value, wanted in zip(got, plain.step(x, dy, w, b), strict=True):
            torch.testing.assert_close(value, wanted)
        torch.testing.assert_close(state.running_var, plain.rv)
    assert torch.equal(state.running_mean, mean)
    assert state.step == 10


def test_mabn_alone_is_what_autograd_gives(check):
    """While it still uses the batch alone, its backward is the derivative of its forward."""

    def formula(x, w, b, rm, rv, momentum):
        square = x.transpose(0, 1).flatten(1).square().mean(1)
        y = spread(w, x) * x / (spread(square, x) + EPS).sqrt() + spread(b, x)
        return y, rm, (1 - momentum) * rv + momentum * square.detach()

    for dtype in check.TOLERANCE:
        for memory in ("contiguous", "channels_last"):
            op = MovingAverageBatchNorm()
            check(op, formula, (8, 6, 5, 4), dtype, check.FORMATS[memory])


def test_mabn_that_continues_another_layer(check):
    """A step counter without buffers, as a BatchNorm's checkpoint gives it: no slot of zeros."""
    op, state, x = MovingAverageBatchNorm(buffer=4), check.state(6), check.draw((8, 6, 5, 4))
    state.step = 5000
    y, saved = op.forward(x, None, None, state)
    dx, *_ = op.backward(x, saved)
    assert y.isfinite().all()
    assert dx.isfinite().all()
    wanted = x.square().mean((0, 2, 3))
    torch.testing.assert_close(state.extra["square"].nanmean(0), wanted)


@pytest.mark.parametrize("kind", ["nc", "ncl", "nchw", "ncdhw"])
@pytest.mark.parametrize("control", ["clamp", "scale", "none"])
def test_online(check, kind, control):
    given = {"forward_decay": 0.9, "backward_decay": 0.8, "control": control, "bound": 1.5}
    state, op = check.state(6), OnlineNorm(**given)
    plain = Online(state.running_mean, state.running_var, *given.values())
    for x, dy, w, b in batches(check, check.SHAPES[kind], 4):
        y, saved = op.forward(x, w, b, state)
        torch.testing.assert_close(y, plain.forward(x, w, b))
        got = op.backward(dy, saved)
        assert torch.equal(got[0], op.backward(dy, saved)[0])
        for value, wanted in zip(got, plain.backward(x, dy, w, b), strict=True):
            torch.testing.assert_close(value, wanted)
        for value, wanted in (
            (state.running_mean, plain.mean),
            (state.running_var, plain.var),
            (state.extra["u"], plain.u),
            (state.extra["v"], plain.v),
        ):
            torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_online_dtypes_and_formats(check, dtype, memory):
    shape = (8, 6, 5, 4)
    state, op = check.state(6), OnlineNorm()
    plain = Online(state.running_mean, state.running_var, 0.999, 0.99, "clamp")
    x, dy, w, b = next(batches(check, shape, 1))
    x = x.to(dtype).contiguous(memory_format=check.FORMATS[memory])
    dy, tolerance = dy.to(dtype), check.TOLERANCE[dtype]
    y, saved = op.forward(x, w.float(), b.float(), state)
    dx, dweight, dbias = op.backward(dy, saved)
    assert (y.dtype, dx.dtype, dweight.dtype) == (dtype, dtype, torch.float32)
    assert y.is_contiguous(memory_format=check.FORMATS[memory])
    wanted = plain.forward(x.double(), w, b)
    check.near(y, wanted, tolerance, "y")
    for name, value, right in zip(
        ("dx", "dweight", "dbias"),
        (dx, dweight, dbias),
        plain.backward(x.double(), dy.double(), w, b),
        strict=True,
    ):
        check.near(value, right, 4 * tolerance, name)


def test_online_without_control_passes_the_gradient_on(check):
    """α_b = 1 leaves dx = γ·dy/σ."""
    state, op = check.state(6), OnlineNorm(backward_decay=1.0, control="none")
    x, dy, w, b = next(batches(check, (5, 6, 3, 3), 1))
    _, saved = op.forward(x, w, b, state)
    dx, *_ = op.backward(dy, saved)
    rstd = saved.rstd.view(5, 6, 1, 1)
    torch.testing.assert_close(dx, dy * spread(w, x) * rstd)


def test_online_gradient_loses_its_mean_and_its_part_along_the_output():
    """What the control is for: the accumulated mean of dx, and of g·x̂, stay bounded."""
    generator = torch.Generator().manual_seed(0)
    state = State(torch.zeros(2).double(), torch.ones(2).double())
    op, totals = OnlineNorm(forward_decay=0.99, control="none"), []
    for _ in range(60):
        x = torch.randn(16, 2, 4, 4, generator=generator, dtype=torch.float64) * 2 + 1
        dy = 1 + 0.5 * x
        _, saved = op.forward(x, None, None, state)
        totals.append(op.backward(dy, saved)[0].mean().item())
    assert abs(math.fsum(totals[-10:]) / 10) < 0.02 * abs(totals[0])


@pytest.mark.parametrize("op", [MovingAverageBatchNorm(), OnlineNorm()], ids=["mabn", "online"])
def test_eval(check, op):
    state = check.state(6, training=False)
    before = state.running_mean.clone(), state.running_var.clone()

    def formula(x, w, b, rm, rv, _):
        rm = torch.zeros_like(rm) if isinstance(op, MovingAverageBatchNorm) else rm
        y = torch.nn.functional.batch_norm(x, rm, rv, w, b, False, 0, EPS)
        return (y if isinstance(op, MovingAverageBatchNorm) else y.clamp(-5, 5)), *before

    check(op, formula, (4, 6, 3, 3), state=state)
    check(op, formula, (1, 6), state=state)


@pytest.mark.parametrize("make", [MovingAverageBatchNorm, OnlineNorm], ids=["mabn", "online"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.1, 6e4, -6e4])
def test_constant_input_stays_finite(check, make, dtype, value):
    op, x = make(), torch.full((8, 4, 3, 3), value, dtype=dtype)
    state = State(torch.zeros(4), torch.ones(4))
    for _ in range(3):
        y, saved = op.forward(x, torch.ones(4), torch.zeros(4), state)
        gradients = op.backward(check.draw(tuple(x.shape), dtype=dtype), saved)
        assert all(t.isfinite().all() for t in (y, *gradients))


@pytest.mark.parametrize("op", [MovingAverageBatchNorm(), OnlineNorm()], ids=["mabn", "online"])
def test_need_running_statistics(op):
    with pytest.raises(NotApplicable, match="track_running_stats"):
        op.forward(torch.randn(4, 3), None, None, State())
