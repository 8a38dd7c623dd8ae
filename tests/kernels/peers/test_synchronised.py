"""syncbn and the synchronised sampled family, on two gloo processes against one process."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sbnbench_kernels.contract import State
from sbnbench_kernels.eager.sampled import (
    BatchNorm,
    BatchSampling,
    BatchSamplingVirtual,
    FeatureSampling,
    NaiveSampling,
    VirtualDataset,
)
from sbnbench_kernels.eager.synchronised import (
    SyncBatchNorm,
    Synchronised,
    synchronise,
    union,
)

SIZES = (3, 5)
"""Rows of the two processes: not equal."""


def whole(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(SIZES), 4, 6, 6, generator=generator, dtype=torch.float64)
    return x * torch.tensor([1.0, 5, 0.2, 2]).view(1, 4, 1, 1) + 30


WEIGHT = torch.tensor([0.5, -1.0, 2.0, 1.5], dtype=torch.float64)
BIAS = torch.tensor([0.1, 0.0, -3.0, 1.0], dtype=torch.float64)


def state():
    zeros, ones = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    return State(zeros, ones, momentum=0.3, seed=4)


OPS = {
    f"{name}-{mode}": partial(make, eps=1e-5, backward=mode, **given)
    for name, make, given in (
        ("ns", NaiveSampling, {"ratio": 0.25, "redraw": 1}),
        ("bs", BatchSampling, {"ratio": 0.5, "redraw": 1}),
        ("fs", FeatureSampling, {"ratio": 0.25, "redraw": 1, "position": "per-sample"}),
        (
            "bs+vdn",
            BatchSamplingVirtual,
            {"ratio": 0.5, "redraw": 1, "beta": 0.4, "num_virtual": 1},
        ),
    )
    for mode in ("exact", "sampled", "detached")
}


def _process(rank: int, file: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    rows = slice(0, SIZES[0]) if rank == 0 else slice(SIZES[0], None)
    x, dy = whole()[rows], whole(1)[rows]
    found = {}
    for name, op in {
        "bn": SyncBatchNorm(),
        **{k: synchronise(v()) for k, v in OPS.items()},
    }.items():
        kept = state()
        y, saved = op.forward(x, WEIGHT, BIAS, kept)
        found[name] = (y, *op.backward(dy, saved), kept.running_mean, kept.running_var)
        if name != "bn":
            sample = op.op.sampler.draw(x.shape, kept.seed, 0, x.device)
            found[name] += (sample, op.statistics(x, state()))
    found["far"] = union(
        [rank + 1], torch.full((1, 4), 1e6 + rank), torch.full((1, 4), float(rank))
    )
    found["one"] = SyncBatchNorm().forward(x[:1, :, 0, 0], None, None, state())[0]
    torch.save(found, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found():
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, (f"{folder}/store", folder), nprocs=2)
        return [torch.load(Path(folder) / f"{k}.pt", weights_only=False) for k in (0, 1)]


def test_is_batch_norm_of_the_whole_batch(found):
    op, kept = BatchNorm(eps=1e-5), state()
    y, saved = op.forward(whole(), WEIGHT, BIAS, kept)
    dx, dweight, dbias = op.backward(whole(1), saved)
    both = [f["bn"] for f in found]
    torch.testing.assert_close(torch.cat([b[0] for b in both]), y)
    torch.testing.assert_close(torch.cat([b[1] for b in both]), dx)
    torch.testing.assert_close(both[0][2] + both[1][2], dweight)
    torch.testing.assert_close(both[0][3] + both[1][3], dbias)
    for b in both:
        torch.testing.assert_close(b[4], kept.running_mean)
        torch.testing.assert_close(b[5], kept.running_var)


@pytest.mark.parametrize("name", OPS)
def test_sampled_forms(found, name):
    """Against the formulas over the union of both samples, written out with ω of every value."""
    x, dy = whole(), whole(1)
    omega, up = torch.zeros(len(x), 6, 6).double(), torch.zeros(len(x), 6, 6).double()
    samples = [f[name][6] for f in found]
    start = 0
    for sample, rows in zip(samples, SIZES, strict=True):
        for k, share in enumerate(sample):
            total = sum(s[k].size for s in samples)
            mask = _mask(share.part, rows)
            omega[start : start + rows] += mask * share.weight / total
            up[start : start + rows] += mask * share.stands_for / share.size
        start += rows
    assert omega.sum().item() == pytest.approx(1)
    omega, up = omega[:, None], up[:, None]
    mode = name.split("-")[-1]

    leaf = x.clone().requires_grad_()
    mean = (omega * leaf).sum((0, 2, 3), keepdim=True)
    var = (omega * (leaf - mean).square()).sum((0, 2, 3), keepdim=True)
    if mode != "exact":
        mean, var = mean.detach(), var.detach()
    xhat = (leaf - mean) / (var + 1e-5).sqrt()
    y = xhat * WEIGHT.view(1, 4, 1, 1) + BIAS.view(1, 4, 1, 1)
    y.backward(dy)
    dx = leaf.grad
    if mode == "sampled":
        g = dy * WEIGHT.view(1, 4, 1, 1)
        of_g, of_gx = ((omega * t).sum((0, 2, 3), keepdim=True) for t in (g, g * xhat.detach()))
        dx = (g - of_g - xhat.detach() * of_gx) / (var + 1e-5).sqrt()
    else:
        up = torch.ones_like(up)

    torch.testing.assert_close(torch.cat([f[name][0] for f in found]), y.detach())
    torch.testing.assert_close(torch.cat([f[name][1] for f in found]), dx)
    dweight = (up * dy * xhat.detach()).sum((0, 2, 3))
    torch.testing.assert_close(found[0][name][2] + found[1][name][2], dweight)
    torch.testing.assert_close(found[0][name][3] + found[1][name][3], (up * dy).sum((0, 2, 3)))
    correction = 1 / (1 - omega.square().sum().item())
    for f in found:
        torch.testing.assert_close(f[name][4], 0.3 * mean.detach().flatten())
        torch.testing.assert_close(f[name][5], 0.7 + 0.3 * correction * var.detach().flatten())
        torch.testing.assert_close(f[name][7], (mean.detach().flatten(), var.detach().flatten()))


def _mask(part, rows):
    mask = torch.zeros(rows, 6, 6).double()
    if hasattr(part, "positions"):
        mask.view(-1)[part.positions] = 1
    elif part.corners is None:
        mask[part.start : part.start + part.count] = 1
    else:
        for row, (top, left) in enumerate(part.corners.tolist()):
            mask[row, top : top + part.patch[0], left : left + part.patch[1]] = 1
    return mask


def test_union_is_stable(found):
    """Means of 10⁶ and 10⁶+1 in float32: their square would have no digit left."""
    for f in found:
        count, mean, var = f["far"]
        assert count.item() == 3
        torch.testing.assert_close(mean, torch.full((1, 4), 1e6 + 2 / 3), atol=0.05, rtol=0)
        torch.testing.assert_close(var, torch.full((1, 4), 2 / 3 + 2 / 9), atol=0.05, rtol=0)


def test_one_row_in_each_process_is_enough(found):
    assert all(f["one"].isfinite().all() for f in found)


def test_one_process_is_batch_norm():
    x, dy = whole(), whole(1)
    results = []
    for op in (SyncBatchNorm(), BatchNorm(eps=1e-5)):
        kept = state()
        y, saved = op.forward(x, WEIGHT, BIAS, kept)
        results.append((y, *op.backward(dy, saved), kept.running_mean, kept.running_var))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        SyncBatchNorm().forward(x[:1, :, 0, 0], None, None, state())


def test_vdn_needs_no_communication():
    op = VirtualDataset(eps=1e-5, num_virtual=2, backward="exact")
    assert synchronise(op) is op
    assert isinstance(synchronise(BatchNorm(eps=1e-5)), Synchronised)
    virtual = whole(3)[:2]
    parts = [torch.cat((whole(seed)[:4], virtual)) for seed in (0, 1)]
    first, second = (op.statistics(x, state()) for x in parts)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
