"""Norm in BatchNorm's place."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

from sbnbench.errors import CollapsedSample, InvalidParameter, NotApplicable, UnknownName
from sbnbench_kernels.contract import State
from sbnbench_kernels.module import Norm

FAMILY = ["bn", "ns", "bs", "fs", "vdn", "bs+vdn", "fs+vdn"]
GROUPED = [("gn", {"groups": 3}), ("ln", {}), ("in", {})]
ALL = [*((name, {}) for name in FAMILY), *GROUPED]
TORCHS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@pytest.mark.parametrize("backend", ["eager", "aten"])
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 7), (6, 4, 7, 5), (3, 4, 3, 5, 4)])
def test_bn_is_nn_batch_norm_step_by_step(kit, shape, backend):
    ours = Norm("bn", 4, dtype=torch.float64, backend=backend)
    theirs = TORCHS[len(shape)](4).double()
    for layer in (ours, theirs):
        torch.manual_seed(0)
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    for step in range(5):
        x, _, _, dy = kit.make_inputs(shape, seed=step)
        xs = [x.clone().requires_grad_() for _ in range(2)]
        ys = [layer(x) for layer, x in zip((ours, theirs), xs, strict=True)]
        for y in ys:
            y.backward(dy)
        torch.testing.assert_close(ys[0], ys[1])
        torch.testing.assert_close(xs[0].grad, xs[1].grad)
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(("name", "params"), ALL)
def test_gradients_are_the_ops(kit, name, params):
    layer = Norm(name, 6, dtype=torch.float64, seed=5, **params)
    x, weight, bias, dy = kit.make_inputs((7, 6, 8, 9))
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    for step in range(3):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(dy)
        y_op, saved = layer._op.forward(x, weight, bias, State(seed=5, step=step))
        expected = layer._op.backward(dy, saved)
        assert torch.equal(y, y_op)
        for ours, ops in zip(
            (leaf.grad, layer.weight.grad, layer.bias.grad), expected, strict=True
        ):
            assert torch.equal(ours, ops)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("name", FAMILY)
def test_state_dicts_load_strictly_both_ways(name, track, affine):
    options = {"affine": affine, "track_running_stats": track}
    ours, theirs = Norm(name, 4, **options), nn.BatchNorm2d(4, **options)
    for t in theirs.state_dict().values():
        t.copy_(torch.randint(1, 9, t.shape))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    back = nn.BatchNorm2d(4, **options)
    back.load_state_dict(ours.state_dict(), strict=True)
    for key, value in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[key], value)
    assert ours.step == (int(theirs.num_batches_tracked) if track else 0)


@pytest.mark.parametrize(("name", "params"), GROUPED)
def test_grouped_keep_weight_and_bias_alone(name, params):
    layer = Norm(name, 6, **params)
    assert list(layer.state_dict()) == ["weight", "bias"]
    x = torch.randn(3, 6, 5, 5)
    assert torch.equal(layer(x), layer.eval()(x))


def test_a_resumed_training_draws_on(kit):
    x = kit.make_inputs((8, 6, 12, 10), torch.float32).x
    layer = Norm("fs", 6, seed=3)
    for _ in range(3):
        layer(x)
    resumed = Norm("fs", 6, seed=3)
    resumed.load_state_dict(layer.state_dict())
    assert resumed.step == layer.step == 3
    for _ in range(3):
        assert torch.equal(resumed(x), layer(x))
    layer.reset_running_stats()
    assert layer.step == 0


def test_copies_and_pickles_behave_alike(kit):
    x = kit.make_inputs((8, 6, 12, 10), torch.float32).x
    layer = Norm("fs", 6, seed=3, ratio=0.25)
    layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    copies = [
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ]
    expected = layer(x)
    for other in copies:
        assert torch.equal(other(x), expected)
        assert other.step == 2


def test_layers_differ_by_their_seed(kit):
    x = kit.make_inputs((8, 6, 12, 10), torch.float32).x
    assert not torch.equal(Norm("fs", 6, seed=0)(x), Norm("fs", 6, seed=1)(x))


def test_num_batches_tracked_counts_training_calls_alone():
    layer = Norm("bs", 4)
    x = torch.randn(16, 4, 3, 3)
    layer(x)
    layer.eval()(x)
    layer.train()(x)
    assert int(layer.num_batches_tracked) == layer.step == 2


@pytest.mark.parametrize("name", FAMILY)
def test_eval_uses_running_statistics(kit, name):
    x = kit.make_inputs((8, 6, 12, 10), torch.float32).x
    layer = Norm(name, 6)
    layer(x)
    layer.eval()
    plain = nn.BatchNorm2d(6).eval()
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), plain(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_half_precision(kit, dtype):
    x = kit.make_inputs((8, 6, 12, 10), dtype).x.requires_grad_()
    layer = Norm("fs", 6, dtype=dtype)
    y = layer(x)
    y.sum().backward()
    assert y.dtype == layer.weight.grad.dtype == layer.running_var.dtype == dtype


def test_device_and_dtype():
    layer = Norm("fs", 4, device="meta", dtype=torch.bfloat16)
    assert layer.weight.is_meta
    assert layer.running_mean.dtype == torch.bfloat16
    layer.to_empty(device="cpu").reset_parameters()
    assert layer.running_var.tolist() == [1] * 4


def test_repr_says_what_it_is():
    text = repr(Norm("fs", 64, ratio="1/8", seed=3))
    assert text == (
        "Norm(fs, 64, ratio=1/8, momentum=0.1, affine=True, track_running_stats=True, "
        "backend=eager, seed=3)"
    )


def test_mistakes_are_told():
    with pytest.raises(UnknownName, match="did you mean"):
        Norm("bnn", 4)
    with pytest.raises(InvalidParameter, match="a ratio lies in"):
        Norm("fs", 4, ratio=2)
    with pytest.raises(InvalidParameter, match="no parameter 'ration'"):
        Norm("fs", 4, ration=0.5)
    with pytest.raises(NotApplicable, match="expected"):
        Norm("bn", 4)(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        Norm("bn", 4)(torch.zeros(1, 4, 1, 1))


def test_eps_is_an_argument_as_batch_norms():
    assert Norm("fs", 4, 1e-3).eps == 1e-3
    assert Norm("fs", 4).eps == 1e-5
    x = torch.randn(4, 4, 5, 5) / 100
    torch.testing.assert_close(Norm("bn", 4, 1e-3)(x), nn.BatchNorm2d(4, 1e-3)(x))


def test_it_is_a_batch_norm_to_torchs_tools(kit):
    model = nn.Sequential(Norm("fs", 6, ratio=1))
    batches = [kit.make_inputs((5, 6, 4, 4), torch.float32, seed=s).x for s in range(3)]
    torch.optim.swa_utils.update_bn(batches, model)
    torch.testing.assert_close(model[0].running_mean, sum(b.mean((0, 2, 3)) for b in batches) / 3)


def test_a_collapsed_sample_is_reported_at_eval():
    x = torch.randn(8, 4, 16, 16)
    border = x.clone()
    border[:, 1] = 3.0
    border[:, 1, :2, :2] = torch.randn(8, 2, 2) * 50
    layer = Norm("fs", 4, position="fixed", momentum=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapsedSample)
        for _ in range(256):
            layer(x)
        layer.eval()
        layer.train()
    layer.running_var.fill_(1.0)
    for _ in range(256):
        layer(border)
        layer.running_var.fill_(1.0)
    with pytest.warns(CollapsedSample, match="fs.*in 1 of 4 channels"):
        layer.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapsedSample)
        layer.train().eval()


class Counting:
    """An op with a state of its own, as a plug-in may bring."""

    def forward(self, x, weight, bias, state):
        calls = state.extra.get("calls", torch.zeros(()))
        state.extra["calls"] = calls + 1
        state.step += 1
        return x + calls, ()

    def backward(self, dy, saved):
        return dy, None, None


def test_what_an_op_keeps_is_a_buffer():
    layer = Norm("bn", 4, affine=False)
    layer._op = Counting()
    x = torch.zeros(2, 4)
    assert [layer(x)[0, 0].item() for _ in range(3)] == [0, 1, 2]
    assert layer.state_dict()["extra_calls"] == 3
    fresh = nn.Sequential(Norm("bn", 4, affine=False))
    fresh.load_state_dict({f"0.{k}": v for k, v in layer.state_dict().items()}, strict=True)
    fresh[0]._op = Counting()
    assert fresh(x)[0, 0] == 3


def test_autocast_keeps_the_inputs_dtype(kit):
    x, _, _, dy = kit.make_inputs((8, 6, 12, 10), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        for name, params in ALL:
            layer = Norm(name, 6, **params)
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            y.backward(dy)
            assert y.dtype == leaf.grad.dtype == torch.bfloat16
            assert layer.weight.grad.dtype == torch.float32


def test_an_unused_output_and_frozen_parameters():
    layer = Norm("fs", 4).requires_grad_(False)
    x = torch.randn(4, 4, 8, 8, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        assert not layer(x).requires_grad
