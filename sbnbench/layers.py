"""The BatchNorm layers of EfficientNet-Lite0, so that a plan can be made before torch is imported.

Shapes are those of a layer's input for images of 224×224; the order is that of a forward pass.
"""

from __future__ import annotations

from sbnbench.errors import UnknownName, UsageError

PREFIX = "real:"
SYNTHETIC = "synthetic"

LAYERS: dict[str, tuple[int, tuple[int, ...]]] = {
    "_bn0": (32, (112, 112)),
    "_blocks.0._bn1": (32, (112, 112)),
    "_blocks.0._bn2": (16, (112, 112)),
    "_blocks.1._bn0": (96, (112, 112)),
    "_blocks.1._bn1": (96, (56, 56)),
    "_blocks.1._bn2": (24, (56, 56)),
    "_blocks.2._bn0": (144, (56, 56)),
    "_blocks.2._bn1": (144, (56, 56)),
    "_blocks.2._bn2": (24, (56, 56)),
    "_blocks.3._bn0": (144, (56, 56)),
    "_blocks.3._bn1": (144, (28, 28)),
    "_blocks.3._bn2": (40, (28, 28)),
    "_blocks.4._bn0": (240, (28, 28)),
    "_blocks.4._bn1": (240, (28, 28)),
    "_blocks.4._bn2": (40, (28, 28)),
    "_blocks.5._bn0": (240, (28, 28)),
    "_blocks.5._bn1": (240, (14, 14)),
    "_blocks.5._bn2": (80, (14, 14)),
    "_blocks.6._bn0": (480, (14, 14)),
    "_blocks.6._bn1": (480, (14, 14)),
    "_blocks.6._bn2": (80, (14, 14)),
    "_blocks.7._bn0": (480, (14, 14)),
    "_blocks.7._bn1": (480, (14, 14)),
    "_blocks.7._bn2": (80, (14, 14)),
    "_blocks.8._bn0": (480, (14, 14)),
    "_blocks.8._bn1": (480, (14, 14)),
    "_blocks.8._bn2": (112, (14, 14)),
    "_blocks.9._bn0": (672, (14, 14)),
    "_blocks.9._bn1": (672, (14, 14)),
    "_blocks.9._bn2": (112, (14, 14)),
    "_blocks.10._bn0": (672, (14, 14)),
    "_blocks.10._bn1": (672, (14, 14)),
    "_blocks.10._bn2": (112, (14, 14)),
    "_blocks.11._bn0": (672, (14, 14)),
    "_blocks.11._bn1": (672, (7, 7)),
    "_blocks.11._bn2": (192, (7, 7)),
    "_blocks.12._bn0": (1152, (7, 7)),
    "_blocks.12._bn1": (1152, (7, 7)),
    "_blocks.12._bn2": (192, (7, 7)),
    "_blocks.13._bn0": (1152, (7, 7)),
    "_blocks.13._bn1": (1152, (7, 7)),
    "_blocks.13._bn2": (192, (7, 7)),
    "_blocks.14._bn0": (1152, (7, 7)),
    "_blocks.14._bn1": (1152, (7, 7)),
    "_blocks.14._bn2": (192, (7, 7)),
    "_blocks.15._bn0": (1152, (7, 7)),
    "_blocks.15._bn1": (1152, (7, 7)),
    "_blocks.15._bn2": (320, (7, 7)),
    "_bn1": (1280, (7, 7)),
}
"""Name of the module in the network → (channels, spatial)."""


def layer_of(source: str) -> str | None:
    """The layer of `real:LAYER`, or None for `synthetic`.

    UnknownName for a layer that the network does not have, UsageError for any other source.
    """
    if source == SYNTHETIC:
        return None
    if not source.startswith(PREFIX):
        raise UsageError(f"input source '{source}': write {SYNTHETIC} or {PREFIX}LAYER")
    layer = source.removeprefix(PREFIX)
    if layer not in LAYERS:
        raise UnknownName("layer", layer, LAYERS)
    return layer


def layer_shape(source: str) -> tuple[int, tuple[int, ...]]:
    """(channels, spatial) of `real:LAYER`; UsageError for `synthetic`, which has any shape."""
    layer = layer_of(source)
    if layer is None:
        raise UsageError(f"input source '{source}' has no shape of its own; give one")
    return LAYERS[layer]
