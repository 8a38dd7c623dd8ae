"""Activation checkpointing: what runs again draws again what it drew, and counts once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from sbnbench_kernels.module import Norm

REENTRANT = pytest.mark.parametrize("reentrant", [True, False])


def net(name: str = "fs") -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(
        nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1, dtype=torch.float64),
            Norm(name, 4, ratio=1 / 8, dtype=torch.float64, seed=i, backward="exact"),
            nn.ReLU(),
        )
        for i in range(3)
    )


def batch(seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(8, 4, 10, 9, generator=g, dtype=torch.float64).requires_grad_()


def run(blocks: nn.ModuleList, x: torch.Tensor, reentrant: bool | None) -> torch.Tensor:
    for block in blocks:
        x = block(x) if reentrant is None else checkpoint(block, x, use_reentrant=reentrant)
    return x


def same(a: nn.Module, b: nn.Module) -> None:
    """Gradients, averages and counts of two models."""
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-12)
    for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(p, q), name
    for p, q in zip(a.modules(), b.modules(), strict=True):
        if isinstance(p, Norm):
            assert p.step == q.step


@REENTRANT
@pytest.mark.parametrize("name", ["ns", "bs", "fs"])
def test_gradients_averages_and_steps_are_those_without_a_checkpoint(name, reentrant):
    plain, checked = net(name), net(name)
    for step in range(4):
        run(plain, batch(step), None).square().sum().backward()
        run(checked, batch(step), reentrant).square().sum().backward()
        same(plain, checked)


@REENTRANT
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_several_forwards_may_be_backpropagated_in_any_order(order, reentrant):
    plain, checked = net(), net()
    for blocks, mode in ((plain, None), (checked, reentrant)):
        losses = [run(blocks, batch(i), mode).square().sum() for i in range(3)]
        for i in order:
            losses[i].backward()
    same(plain, checked)


@REENTRANT
def test_forwards_run_ahead_as_in_a_pipeline(reentrant):
    plain, checked = net(), net()
    for blocks, mode in ((plain, None), (checked, reentrant)):
        ahead = [run(blocks, batch(0), mode)]
        for i in range(1, 5):
            ahead.append(run(blocks, batch(i), mode))
            ahead.pop(0).square().sum().backward()
        ahead.pop().square().sum().backward()
    same(plain, checked)


@REENTRANT
def test_a_layer_may_run_several_times_within_a_region_and_in_several(reentrant):
    def twice(block: nn.Module, x: torch.Tensor, mode: bool | None) -> torch.Tensor:
        def region(x: torch.Tensor) -> torch.Tensor:
            return block(block(x).sin()) + x

        for _ in range(3):
            x = region(x) if mode is None else checkpoint(region, x, use_reentrant=mode)
        return x

    plain, checked = net()[0], net()[0]
    for step in range(2):
        twice(plain, batch(step), None).square().sum().backward()
        twice(checked, batch(step), reentrant).square().sum().backward()
        same(plain, checked)


def test_a_region_may_run_again_more_than_once():
    plain, checked = net(), net()
    for blocks, mode in ((plain, None), (checked, False)):
        loss = run(blocks, batch(0), mode).square().sum()
        for retain in (True, True, False):
            loss.backward(retain_graph=retain)
    same(plain, checked)


def test_regions_may_be_nested():
    def nested(blocks: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
        def outer(x: torch.Tensor) -> torch.Tensor:
            x = blocks[0](x)
            x = checkpoint(blocks[1], x, use_reentrant=False)
            return blocks[2](x)

        for _ in range(2):
            x = checkpoint(outer, x, use_reentrant=False)
        return x

    plain, checked = net(), net()
    for step in range(2):
        run(plain, run(plain, batch(step), None), None).square().sum().backward()
        nested(checked, batch(step)).square().sum().backward()
        same(plain, checked)


@REENTRANT
def test_branches_and_unchecked_layers_beside_a_region(reentrant):
    def branches(blocks: nn.ModuleList, x: torch.Tensor, mode: bool | None) -> torch.Tensor:
        left = run(blocks[:1], x, mode)
        right = blocks[0](x.cos())
        return run(blocks[:2], left + right, mode) + blocks[1](left)

    plain, checked = net(), net()
    for step in range(3):
        branches(plain, batch(step), None).square().sum().backward()
        branches(checked, batch(step), reentrant).square().sum().backward()
        for blocks in (plain, checked):
            for p in blocks[2].parameters():
                p.grad = torch.zeros_like(p)
        same(plain, checked)


@REENTRANT
def test_training_calls_without_a_graph_between_do_not_mislead(reentrant):
    plain, checked = net(), net()
    for blocks, mode in ((plain, None), (checked, reentrant)):
        with torch.no_grad():
            run(blocks, batch(7), None)
        loss = run(blocks, batch(0), mode).square().sum()
        with torch.no_grad():
            run(blocks, batch(8), None)
        loss.backward()
    same(plain, checked)


@REENTRANT
def test_checkpoint_sequential(reentrant):
    plain, checked = nn.Sequential(*net()), nn.Sequential(*net())
    plain(batch(0)).square().sum().backward()
    y = checkpoint_sequential(checked, 2, batch(0), use_reentrant=reentrant)
    y.square().sum().backward()
    same(plain, checked)


def test_the_test_can_fail():
    """Without the replay a recomputation draws anew: the gradients then differ."""
    plain, checked = net(), net()
    for block in checked:
        block[1]._replay.find = lambda: None
    for blocks, mode in ((plain, None), (checked, False)):
        run(blocks, batch(0), mode).square().sum().backward()
    with pytest.raises(AssertionError):
        same(plain, checked)


def test_nothing_is_kept_where_nothing_can_run_again():
    blocks = net()
    run(blocks, batch(0), None).sum().backward()
    assert not blocks[0][1]._replay._calls
    clone = copy.deepcopy(blocks)
    run(clone, batch(0), False).sum().backward()
    assert len(clone[0][1]._replay._calls) == 1
    assert not copy.deepcopy(clone)[0][1]._replay._calls
