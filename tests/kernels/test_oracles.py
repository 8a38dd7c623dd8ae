"""Other people's implementations, of PyTorch and of timm, as oracles.

Needs the extra `oracles`; what is not installed is skipped.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.nn.modules._functions import SyncBatchNorm as TorchsSyncBatchNorm

from sbnbench.errors import NotApplicable
from sbnbench.registry import load_target, normalizers
from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.synchronised import SyncBatchNorm

SHAPE = (4, 6, 5, 4)


def op_of(name: str, backend: str = "eager", **params: Any) -> Any:
    """The op without the catalog's bounds, which PyTorch's samples ignore (ε < 0)."""
    return load_target(normalizers()[name].backends[backend])(**params)


def agree(op: Any, oracle: Any, x, weight, bias, state, **tolerance):
    """y, dx, dγ, db of the op are those of oracle(x, γ, b) under autograd."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    wanted = oracle(*leaves)
    dy = torch.randn(wanted.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(wanted, [t for t in leaves if t is not None], dy)
    x, weight, bias = (None if t is None else t.detach() for t in (x, weight, bias))
    y, saved = op.forward(x, weight, bias, state)
    got = [t for t in op.backward(dy, saved)[:3] if t is not None]
    pairs = zip((y, *got), (wanted.detach(), *gradients), strict=True)
    for value, right in pairs:
        torch.testing.assert_close(value, right, equal_nan=True, **tolerance)


# --- PyTorch's layers


def samples(name: str):
    pytest.importorskip("expecttest", reason="PyTorch's own test inputs need expecttest")
    from torch.testing._internal.common_methods_invocations import op_db

    (found,) = (
        op for op in op_db if op.name == f"nn.functional.{name}" and not op.variant_test_name
    )
    return found, list(found.sample_inputs("cpu", torch.float64))


BATCH = [
    ("bn", "eager", {}),
    ("bn", "aten", {}),
    ("syncbn", "eager", {}),
    ("ghost", "eager", {"size": 1000}),
    ("cbn", "eager", {"window": 1}),
    ("kn", "eager", {}),
]


@pytest.mark.parametrize(("name", "backend", "params"), BATCH)
def test_samples_of_batch_norm(name, backend, params):
    _, given = samples("batch_norm")
    compared = 0
    for sample in given:
        running, affine = sample.args[:2], sample.args[2:]
        options = {"training": False, "momentum": 0.1, "eps": 1e-5, **sample.kwargs}
        eps = options["eps"]
        mine, theirs = (
            [None if t is None else t.detach().clone() for t in running] for _ in range(2)
        )
        state = State(*mine, momentum=options["momentum"], training=options["training"])
        op = op_of(name, backend, eps=eps, **params)
        if sample.input.dim() < 2:
            continue  # no (N, C)

        def oracle(x, w, b, theirs=theirs, options=options):
            return F.batch_norm(x, *theirs, w, b, **options)

        agree(op, oracle, sample.input, *affine, state)
        for kept, right in zip(mine, theirs, strict=True):
            if kept is not None and not (name == "kn" and kept is mine[1]):
                torch.testing.assert_close(kept, right, equal_nan=True)
        compared += 1
    assert compared >= 10


@pytest.mark.parametrize("backend", ["eager", "aten"])
def test_samples_of_group_norm(backend):
    info, given = samples("group_norm")
    for sample in given:
        options = {"weight": None, "bias": None, "eps": 1e-5, **sample.kwargs}
        groups, eps = sample.args[0], options["eps"]
        op = op_of("gn", backend, eps=eps, groups=groups)

        def oracle(x, w, b, groups=groups, eps=eps):
            return F.group_norm(x, groups, w, b, eps)

        agree(op, oracle, sample.input, options["weight"], options["bias"], State())
    for error in info.error_inputs("cpu"):
        sample = error.sample_input
        if sample.input.dim() < 2 and backend == "aten":
            continue  # left to the layer, which refuses it first
        op = op_of("gn", backend, eps=1e-5, groups=sample.args[0])
        with pytest.raises(NotApplicable, match=r"groups=|expected \(N, C\)"):
            op.forward(sample.input, None, None, State())


@pytest.mark.parametrize("backend", ["eager", "aten"])
def test_samples_of_layer_norm(backend):
    """Those over all but the batch; γ and b are per channel here, so only where that is all."""
    compared = 0
    for sample in samples("layer_norm")[1]:
        shape, x = sample.args[0], sample.input
        if tuple(x.shape[1:]) != tuple(shape) or x.dim() < 2:
            continue
        affine = (*sample.args[1:], None, None)[:2] if x.dim() == 2 else (None, None)
        eps = sample.kwargs.get("eps", 1e-5)
        op = op_of("ln", backend, eps=eps)

        def oracle(x, w, b, shape=shape, eps=eps):
            return F.layer_norm(x, shape, w, b, eps)

        agree(op, oracle, x, *affine, State())
        compared += 1
    assert compared >= 2


@pytest.mark.parametrize("backend", ["eager", "aten"])
def test_samples_of_instance_norm(backend):
    for sample in samples("instance_norm")[1]:
        given = {k: sample.kwargs.get(k) for k in ("weight", "bias")}
        eps = sample.kwargs.get("eps", 1e-5)
        op = op_of("in", backend, eps=eps)

        def oracle(x, w, b, eps=eps):
            return F.instance_norm(x, weight=w, bias=b, eps=eps)

        agree(op, oracle, sample.input, *given.values(), State())


def _cuda_operators_by_definition() -> torch.library.Library:
    """The five operators that torch has for CUDA alone, under torch's own synchronised BatchNorm:
    what they do to one process's numbers. What is gathered, weighted and summed over the
    processes, and when, stays torch's."""

    def wide(t):
        return t.view(1, -1, *[1] * (len(SHAPE) - 2))

    axes = [0, *range(2, len(SHAPE))]

    def stats(x, eps):
        return x.mean(axes), (x.var(axes, correction=0) + eps).rsqrt()

    def gather(x, means, inverses, running_mean, running_var, momentum, eps, counts):
        n = counts[:, None]
        mean = (n * means).sum(0) / n.sum()
        var = (n * (inverses**-2 - eps + (means - mean) ** 2)).sum(0) / n.sum()
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * n.sum() / (n.sum() - 1), momentum)
        return mean, (var + eps).rsqrt()

    def normalize(x, weight, bias, mean, inverse, eps):
        return (x - wide(mean)) * wide(inverse * weight) + wide(bias)

    def sums(dy, x, mean, inverse, weight, *wanted):
        sum_dy, sum_dyd = dy.sum(axes), (dy * (x - wide(mean))).sum(axes)
        return sum_dy, sum_dyd, sum_dyd * inverse, sum_dy

    def gradient(dy, x, mean, inverse, weight, sum_dy, sum_dyd, counts):
        n = counts.sum()
        slope = wide(inverse**2 * sum_dyd / n)
        return (dy - wide(sum_dy / n) - (x - wide(mean)) * slope) * wide(inverse * weight)

    library = torch.library.Library("aten", "IMPL")
    for name, function in (
        ("batch_norm_stats", stats),
        ("batch_norm_gather_stats_with_counts", gather),
        ("batch_norm_elemt", normalize),
        ("batch_norm_backward_reduce", sums),
        ("batch_norm_backward_elemt", gradient),
    ):
        library.impl(name, function, "CPU")
    return library


def _two_processes(rank: int, file: str, out: str, device: str) -> None:
    """torch's SyncBatchNorm and this one's, each with another batch on each process."""
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.manual_seed(rank)
    torch.set_default_dtype(torch.float64)  # float32 would round μ, and Σ dy amplify it
    x, dy = (torch.randn(3 + rank, *SHAPE[1:], device=device) * 3 + 20 for _ in range(2))
    weight, bias = (torch.linspace(low, 2, 6, device=device) for low in (-1, -2))
    mean, var = torch.zeros(6, device=device), torch.ones(6, device=device)
    kept = _cuda_operators_by_definition() if device == "cpu" else None
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    # The layer's forward refuses CPU tensors before it comes to this.
    wanted = TorchsSyncBatchNorm.apply(*leaves, mean, var, 1e-5, 0.1, dist.group.WORLD, 2)
    right = [wanted.detach(), *torch.autograd.grad(wanted, leaves, dy), mean, var]
    del kept
    state = State(torch.zeros(6, device=device), torch.ones(6, device=device))
    op = SyncBatchNorm()
    y, saved = op.forward(x, weight, bias, state)
    got = [y, *op.backward(dy, saved), state.running_mean, state.running_var]
    torch.save([(a.cpu(), b.cpu()) for a, b in zip(got, right, strict=True)], f"{out}/{rank}.pt")
    dist.destroy_process_group()


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])
def test_sync_batch_norm(device):
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_two_processes, (f"{folder}/store", folder, device), nprocs=2)
        for rank in (0, 1):
            compared = torch.load(Path(folder) / f"{rank}.pt")
            assert len(compared) == 6
            for got, wanted in compared:
                torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


# --- timm


@pytest.fixture(scope="module")
def timm():
    try:
        import timm.layers
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        pytest.skip(f"timm cannot be imported: {error}")
    return timm.layers


ACTIVATED = {
    "frn": ("FilterResponseNormTlu2d", partial(op_of, "frn", eps=1e-6), {"eps": 1e-6}, "tau"),
    "evonorm-s0": ("EvoNorm2dS0", partial(op_of, "evonorm-s0", groups=3), {"groups": 3}, "v"),
    "evonorm-b0": ("EvoNorm2dB0", partial(op_of, "evonorm-b0", eps=1e-3), {"eps": 1e-3}, "v"),
}


@pytest.mark.parametrize("name", ACTIVATED)
@pytest.mark.parametrize("training", [True, False])
def test_timm(timm, name, training):
    made, make, options, extra = ACTIVATED[name]
    layer = getattr(timm, made)(6, **options).double().train(training)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(6, generator=generator, dtype=torch.float64))
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64) * 2 + 1
    dy = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    state = State(torch.zeros(6).double(), torch.ones(6).double(), training=training)
    state.extra[extra] = getattr(layer, extra).detach()
    op = make()
    y, saved = op.forward(x, layer.weight.detach(), layer.bias.detach(), state)
    dx, dweight, dbias, own = op.backward(dy, saved)
    leaf = x.clone().requires_grad_()
    wanted = layer(leaf)
    wanted.backward(dy)
    pairs = (
        (y, wanted),
        (dx, leaf.grad),
        (dweight, layer.weight.grad),
        (dbias, layer.bias.grad),
        (own[extra], getattr(layer, extra).grad),
    )
    # timm takes its moments in float32.
    for got, right in pairs:
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)
    if name == "evonorm-b0":
        torch.testing.assert_close(state.running_var, layer.running_var, rtol=1e-5, atol=1e-5)
