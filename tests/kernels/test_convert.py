"""convert: another normalizer in the place of a model's BatchNorm layers."""

from __future__ import annotations

import copy
import pickle
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sbnbench.errors import NotApplicable, SbnbenchWarning, UnknownName, UsageError
from sbnbench.registry import normalizers
from sbnbench_kernels.convert import convert
from sbnbench_kernels.module import Norm
from sbnbench_kernels.virtual import VirtualSamples, data_moments

DROP_INS = ["ns", "bs", "fs", "gn", "ln", "in"]
VIRTUAL = ["vdn", "bs+vdn", "fs+vdn"]
MOMENTS = {"mean": [0.5, -1.0, 2.0], "std": [1.0, 2.0, 0.5]}


class Net(nn.Module):
    """A small CNN that can checkpoint its blocks and give its output in several forms."""

    def __init__(self, channels: int = 3, width: int = 8, form: str = "tensor") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
            for c in (channels, width)
        )
        self.neck = nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, 10)
        self.form = form
        self.checkpointed: bool | None = None
        self.rows = 0

    def forward(self, x: Tensor):
        self.rows = x.shape[0]
        for block in self.blocks:
            if self.checkpointed is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.checkpointed)
        features = self.neck(x).mean((2, 3))
        y = self.head(features)
        return {
            "tensor": y,
            "tuple": (y, features),
            "dict": {"logits": y, "inner": [features, 3], "scale": torch.ones(2)},
            "named": Output(y, features),
        }[self.form]


class Output(NamedTuple):
    logits: Tensor
    features: Tensor


def images(rows: int = 8, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, 12, 11, generator=g)


def norms(model: nn.Module) -> dict[str, Norm]:
    return {name: m for name, m in model.named_modules() if isinstance(m, Norm)}


def options(name: str) -> dict[str, object]:
    return {**(MOMENTS if "vdn" in name else {}), **({"groups": 4} if name == "gn" else {})}


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.BatchNorm1d(4), torch.randn(6, 4, 9)),
        (nn.BatchNorm2d(4, eps=1e-3, momentum=None), torch.randn(6, 4, 9, 8)),
        (nn.BatchNorm3d(4, affine=False), torch.randn(3, 4, 5, 4, 3)),
        (nn.BatchNorm2d(4, track_running_stats=False), torch.randn(6, 4, 9, 8)),
        (nn.SyncBatchNorm(4), torch.randn(6, 4, 9, 8)),
    ],
)
def test_every_kind_of_batch_norm_there_and_back(layer, x):
    model = nn.Sequential(layer)
    converted = convert(model, "bn", backend="eager")
    assert isinstance(converted[0], Norm)
    assert isinstance(model[0], type(layer)), "not in place"
    plain = model if type(layer) is not nn.SyncBatchNorm else nn.Sequential(nn.BatchNorm2d(4))
    for _ in range(2):
        torch.testing.assert_close(converted(x), plain(x))
    torch.testing.assert_close(converted.eval()(x), plain.eval()(x))
    back = convert(converted, "bn")
    assert type(back[0]) is type(layer)
    assert back[0].eps == layer.eps
    assert back[0].momentum == layer.momentum
    torch.testing.assert_close(back.state_dict(), plain.state_dict())
    assert not back[0].training


@pytest.mark.parametrize("name", DROP_INS)
def test_what_a_layer_keeps(name):
    model = Net().double()
    x = images().double()
    model(x)
    model.blocks[0].eval()
    model.blocks[0][1].weight.requires_grad_(False)
    seen: list[str] = []
    handle = model.blocks[1][1].register_forward_hook(lambda *_: seen.append("forward"))
    model.blocks[1][1].register_full_backward_hook(lambda *_: seen.append("backward"))
    old = dict(model.named_modules())
    parameters = {k: id(p) for k, p in model.named_parameters()}
    buffers = {k: id(b) for k, b in model.named_buffers()}
    result = convert(model, name, inplace=True, **options(name))
    assert result is model
    assert {k: id(p) for k, p in model.named_parameters()} == parameters
    assert all(buffers[k] == id(b) for k, b in model.named_buffers())
    assert len(norms(model)) == 3
    for key, layer in norms(model).items():
        assert layer.training == old[key].training
        assert layer.weight.dtype == torch.float64
        if layer.track_running_stats:
            assert layer.step == int(layer.num_batches_tracked) == 1
            assert layer.running_mean is old[key].running_mean
    model(x).sum().backward()
    assert seen == ["forward", "backward"]
    handle.remove()
    model(x)
    assert seen == ["forward", "backward"]


def test_converted_layers_load_a_plain_checkpoint_and_the_reverse():
    plain, converted = Net(), convert(Net(), "fs")
    plain(images())
    converted.load_state_dict(plain.state_dict(), strict=True)
    Net().load_state_dict(converted.state_dict(), strict=True)
    assert all(layer.step == 1 for layer in norms(converted).values())


def test_bn_gives_back_torchs_layers_with_what_was_learned():
    model = convert(Net(), "fs", only="blocks.*")
    model(images())
    back = convert(model, "bn")
    assert [type(m) for m in back.modules()] == [type(m) for m in Net().modules()]
    for key, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[key], value)
    assert not norms(convert(convert(Net(), "gn", groups=4), "bn"))


def test_swapped_layers_are_swapped_again():
    model = convert(convert(Net(), "gn", groups=4), "fs", ratio=0.5, only="blocks.*")
    chosen = {k: layer.contender.id for k, layer in norms(model).items()}
    assert chosen == {
        "blocks.0.1": "fs[ratio=1/2,eps=1e-05]@eager",
        "blocks.1.1": "fs[ratio=1/2,eps=1e-05]@eager",
        "neck.1": "gn[groups=4,eps=1e-05]@eager",
    }
    assert norms(model)["blocks.0.1"].running_mean is not None
    assert norms(model)["neck.1"].replaces is nn.BatchNorm2d


def test_only_and_skip():
    assert set(norms(convert(Net(), "bs", only="neck.*"))) == {"neck.1"}
    assert set(norms(convert(Net(), "bs", skip=["neck.*", "*.0.1"]))) == {"blocks.1.1"}
    with pytest.raises(UnknownName, match=r"unknown layer 'nekc.1'; did you mean neck\.1"):
        convert(Net(), "bs", only="nekc.1")


def test_layers_draw_by_seeds_of_their_own():
    first, again, other = (convert(Net(), "fs", seed=s) for s in (0, 0, 1))
    seeds = [[layer.seed for layer in norms(m).values()] for m in (first, again, other)]
    assert seeds[0] == seeds[1]
    assert len({*seeds[0], *seeds[2]}) == 6


def test_a_shared_layer_stays_shared_and_a_root_is_swapped():
    layer = nn.BatchNorm2d(4)
    model = convert(nn.Sequential(layer, nn.Sequential(layer)), "fs")
    assert model[0] is model[1][0]
    assert isinstance(convert(layer, "fs"), Norm)


def test_what_cannot_be_converted_is_told():
    class Activated(nn.BatchNorm2d):
        pass

    with pytest.raises(UsageError, match="no BatchNorm layer"):
        convert(nn.Sequential(nn.Linear(2, 2)), "fs")
    with pytest.warns(SbnbenchWarning, match="1 is left as it is: Activated"):
        model = convert(nn.Sequential(nn.BatchNorm2d(2), Activated(2)), "fs")
    assert type(model[1]) is Activated
    with pytest.raises(UnknownName, match="did you mean"):
        convert(Net(), "bnn")
    with pytest.raises(UsageError, match="give mean= and std=, or loader="):
        convert(Net(), "vdn")


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict", "named"])
@pytest.mark.parametrize("name", VIRTUAL)
def test_virtual_samples_are_appended_and_dropped(name, form):
    model = convert(Net(form=form), name, num_virtual=2, **MOMENTS)
    x = images()
    for training, rows in ((True, 10), (False, 8)):
        model.train(training)
        y = model(x)
        assert model.rows == rows
        if form == "tensor":
            assert y.shape == (8, 10)
        elif form == "dict":
            assert y["logits"].shape == (8, 10)
            assert y["inner"][0].shape == (8, 8)
            assert (y["inner"][1], y["scale"].shape) == (3, (2,))
        else:
            assert type(y) is (tuple if form == "tuple" else Output)
            assert [t.shape for t in y] == [(8, 10), (8, 8)]
    assert list(model.state_dict()) == list(Net().state_dict())


def test_virtual_samples_have_the_data_sets_moments():
    model = convert(Net(), "vdn", num_virtual=50, **MOMENTS)
    inputs: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    x = images().contiguous(memory_format=torch.channels_last)
    model(x)
    model(x)
    assert torch.equal(inputs[0][:8], x)
    assert inputs[0].is_contiguous(memory_format=torch.channels_last)
    virtual = inputs[0][8:]
    assert virtual.mean((0, 2, 3)).tolist() == pytest.approx(MOMENTS["mean"], abs=0.1)
    assert virtual.std((0, 2, 3)).tolist() == pytest.approx(MOMENTS["std"], rel=0.1)
    assert not torch.equal(inputs[1][8:], virtual), "drawn anew each step"


def test_vdn_takes_the_moments_of_the_virtual_rows_in_every_layer():
    model = convert(Net(), "vdn", num_virtual=3, **MOMENTS)
    captured: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(layer: Norm, args: tuple[Tensor], y: Tensor) -> None:
        captured[layer.seed] = (args[0].detach(), y.detach())

    for layer in norms(model).values():
        layer.register_forward_hook(keep)
    model(images())
    assert len(captured) == 3
    for x, y in captured.values():
        dims = [d for d in range(x.dim()) if d != 1]
        assert y[-3:].mean(dims).abs().max() < 1e-5
        torch.testing.assert_close(
            y, F.batch_norm(x, x[-3:].mean(dims), x[-3:].var(dims, correction=0)), atol=1e-4, rtol=0
        )


def test_moments_are_estimated_from_a_loader():
    x = images(30, seed=4) * torch.tensor([1.0, 3.0, 0.2]).view(3, 1, 1) + 100
    labels = torch.zeros(10)
    batches = [
        [(b, labels) for b in x.split(10)],
        list(x.split(7)),
        [{"image": b, "label": labels} for b in x.split(10)],
    ]
    for loader in batches:
        mean, std = data_moments(None, None, loader)
        torch.testing.assert_close(mean, x.mean((0, 2, 3)))
        torch.testing.assert_close(std, x.std((0, 2, 3), correction=0), rtol=1e-4, atol=1e-6)
    model = convert(Net(), "vdn", loader=batches[0])
    assert model(x).shape == (30, 10)
    with pytest.raises(UsageError, match="no batch"):
        convert(Net(), "vdn", loader=[])


def test_virtual_samples_resume_and_survive_copies():
    model = convert(Net(), "fs+vdn", seed=3, **MOMENTS)
    for step in range(3):
        model(images(seed=step))
    resumed = convert(Net(), "fs+vdn", seed=3, **MOMENTS)
    resumed.load_state_dict(model.state_dict())
    copies = [resumed, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    expected = model(images())
    for other in copies:
        assert torch.equal(other(images()), expected)


def test_virtual_samples_are_taken_away_and_kept_with_their_layers():
    model = convert(Net(), "vdn", **MOMENTS)
    partly = convert(model, "fs", only="blocks.*")
    partly(images())
    assert partly.rows == 9
    for back in (convert(model, "fs"), convert(model, "bn"), convert(partly, "bn")):
        back(images())
        assert back.rows == 8
        assert not back._forward_hooks
        assert not back._forward_pre_hooks
    again = convert(model, "vdn", num_virtual=2, **MOMENTS)
    again(images())
    assert again.rows == 10
    outer = convert(nn.Sequential(model, nn.Flatten()), "vdn", num_virtual=3, **MOMENTS)
    outer(images())
    assert outer[0].rows == 11
    with pytest.raises(UsageError, match="agree in num_virtual"):
        convert(model, "vdn", only="neck.*", num_virtual=2, **MOMENTS)


def test_inputs_that_cannot_have_virtual_samples():
    model = convert(nn.Sequential(nn.BatchNorm2d(3)), "vdn", **MOMENTS)
    with pytest.raises(NotApplicable, match="floating-point input"):
        model(torch.ones(4, 3, 5, 5, dtype=torch.int64))
    with pytest.raises(NotApplicable, match="of 3 channels"):
        model(torch.ones(4, 2, 5, 5))

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x, scale=None):
            return self.norm(x) if scale is None else self.norm(x) * scale

    two = convert(Two(), "vdn", **MOMENTS)
    assert two(x=images()).shape == images().shape
    with pytest.raises(NotApplicable, match="one input alone"):
        two(images(), scale=torch.ones(8, 1, 1, 1))


def gradients(model: Net, batches: list[Tensor], amp: bool = False) -> list[Tensor]:
    """Accumulated over the batches."""
    model.zero_grad()
    for x in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = model(x).float().square().mean()
        loss.backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["fs", *VIRTUAL])
def test_checkpointing_recomputes_the_same_draw(name, reentrant):
    plain, checked = (convert(Net(), name, seed=5, **options(name)) for _ in range(2))
    checked.checkpointed = reentrant
    batches = [images(seed=s).requires_grad_() for s in range(3)]
    for a, b in zip(gradients(plain, batches), gradients(checked, batches), strict=True):
        torch.testing.assert_close(a, b)
    for key, value in plain.state_dict().items():
        assert torch.equal(checked.state_dict()[key], value), key
    steps = [layer.step for layer in norms(checked).values()]
    assert steps == [3, 3, 3]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_the_whole_model_draws_the_same_virtual_samples(reentrant):
    plain, checked = (convert(Net(), "fs+vdn", seed=5, **MOMENTS) for _ in range(2))
    for step in range(3):
        x = images(seed=step).requires_grad_()
        plain(x).square().mean().backward()
        checkpoint(checked, x, use_reentrant=reentrant).square().mean().backward()
    for a, b in zip(plain.parameters(), checked.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(plain.state_dict(), checked.state_dict())


@pytest.mark.parametrize("name", ["fs", *VIRTUAL])
def test_autocast(name):
    model = convert(Net(), name, **options(name))
    full = gradients(model, [images()])
    model.load_state_dict(convert(Net(), name, **options(name)).state_dict())
    half = gradients(model, [images()], amp=True)
    for a, b in zip(full, half, strict=True):
        assert b.dtype == torch.float32
        assert b.isfinite().all()
        assert (a - b).norm() <= 0.15 * a.norm() + 0.02


@pytest.mark.parametrize("name", ["fs", *VIRTUAL])
def test_gradient_accumulation_is_the_sum_of_its_steps(name):
    batches = [images(seed=s) for s in range(3)]
    whole = convert(Net(), name, seed=5, **options(name))
    accumulated = gradients(whole, batches)
    stepwise = convert(Net(), name, seed=5, **options(name))
    parts = [gradients(stepwise, [x]) for x in batches]
    for total, *each in zip(accumulated, *parts, strict=True):
        torch.testing.assert_close(total, sum(each))


QUICK = ("bn", "fs", "gn", "vdn")
TRAINED = [(n.name, None) for n in normalizers().values() if n.kind == "A"]
TRAINED += [(name, "sampled") for name in ("ns", "bs", "fs", "bs+vdn", "fs+vdn")]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(*one, marks=() if one[0] in QUICK and not one[1] else pytest.mark.slow)
        for one in TRAINED
    ],
)
def test_training_on_digits_lowers_the_loss(name, mode):
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(digits.target)
    params: dict[str, object] = {"backward": mode} if mode else {}
    if "vdn" in name:
        params |= {"mean": float(x.mean()), "std": float(x.std()), "num_virtual": 4}
    if normalizers()[name].param("ratio"):
        params["ratio"] = 1 / 4
    if normalizers()[name].param("groups"):
        params["groups"] = 4
    if name == "brn":
        params["steps"] = 100
    model = convert(Net(channels=1, width=16), name, **params)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    g = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(100):
        rows = torch.randint(len(x), (64,), generator=g)
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.85 * losses[0], losses[::10]
    with torch.no_grad():
        accuracy = (model.eval()(x).argmax(1) == y).float().mean().item()
    # The sampled backward lets the weights wander where the normalization cancels it, and the
    # running averages lag behind while the learning rate is high: no accuracy is asked of it.
    assert mode == "sampled" or accuracy > 0.5


def test_hooks_belong_to_virtual_samples_alone():
    model = convert(Net(), "vdn", **MOMENTS)
    (hook,) = model._forward_hooks.values()
    assert isinstance(hook.__self__, VirtualSamples)
    assert hook.__self__.layers == tuple(norms(model).values())
