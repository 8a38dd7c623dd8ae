"""Swapping the BatchNorm layers of a model for another normalizer, and back."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sbnbench.errors import SbnbenchWarning, UnknownName, UsageError
from sbnbench.registry import normalizers
from sbnbench_kernels.module import Norm, Ranks
from sbnbench_kernels.virtual import Moments, VirtualSamples, data_moments, detach

SWAPPED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, Norm)
"""The exact types that are swapped. A subclass may do more than normalize, and is left alone."""

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def convert(
    model: nn.Module,
    normalizer: str,
    *,
    backend: str | None = None,
    inplace: bool = False,
    only: str | Sequence[str] | None = None,
    skip: str | Sequence[str] | None = None,
    seed: int = 0,
    ranks: Ranks = "different",
    mean: Sequence[float] | Tensor | float | None = None,
    std: Sequence[float] | Tensor | float | None = None,
    loader: Iterable[Any] | None = None,
    **params: Any,
) -> nn.Module:
    """The model with its BatchNorm layers normalizing as `normalizer` does.

    model = convert(model, "fs", ratio=1/16); convert(model, "bn") takes it back.

    Swapped are BatchNorm1d, 2d and 3d, SyncBatchNorm (statistics are then each process's own) and
    layers swapped before; of these, those whose qualified name matches a pattern of `only` and
    none of `skip` (as in fnmatch: `layer1.*`). A layer keeps its parameters (the same objects with
    `inplace`, so that an optimizer goes on; a copy of the model otherwise), running statistics,
    num_batches_tracked, device, dtype, mode and hooks; a normalizer without running statistics
    drops them. Each layer draws by a seed of its own, made from `seed` and its name; under
    torch.distributed each process draws other positions, or with `ranks="same"` the same.

    `backend` is eager where none is given; `bn` without a backend is torch's own layer again.

    A normalizer with virtual samples makes the model append them to its input in training and drop
    them from its output (a tensor, or tuples, lists and dicts of tensors), by hooks: its class and
    state_dict keys stay. It needs the data set's `mean` and `std` a channel, or a `loader` to
    estimate them from. BatchNorm layers that were not swapped see these samples too. They are the
    same in every process, so that the layers' statistics agree without communication.

    Raises UsageError (a pattern that matches nothing, no layer to swap, no moments), UnknownName
    and InvalidParameter; NotApplicable comes at the first forward. Warns of BatchNorm subclasses
    that were left alone.
    """
    algorithm = normalizers()[normalizer]
    if algorithm.kind != "A":
        raise UsageError(f"{normalizer} is no drop-in for BatchNorm: it needs more than a layer")
    resolved = algorithm.resolve(params)
    plain = normalizer == "bn" and backend is None
    moments = data_moments(mean, std, loader) if "num_virtual" in resolved else None

    if not inplace:
        model = copy.deepcopy(model)
    swapped: dict[nn.Module, nn.Module] = {}
    for name in _chosen(model, _patterns(only), _patterns(skip)):
        old = model.get_submodule(name)
        if old not in swapped:
            own = _seed_of(name, seed)
            how = {"backend": backend or "eager", "seed": own, "ranks": ranks, **params}
            swapped[old] = _torchs(old) if plain else _norm(old, normalizer, name, how)
        if not name:
            model = swapped[old]
        else:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, swapped[old])
    _supply(model, moments, seed)
    return model


def _chosen(model: nn.Module, only: Sequence[str], skip: Sequence[str]) -> list[str]:
    """Names of the layers to swap; a shared layer has several."""
    names = []
    for name, layer in model.named_modules(remove_duplicate=False):
        if type(layer) in SWAPPED:
            names.append(name)
        elif isinstance(layer, _BatchNorm):
            warnings.warn(
                f"{name} is left as it is: {type(layer).__name__} may do more than BatchNorm",
                SbnbenchWarning,
                stacklevel=3,
            )
    if not names:
        raise UsageError(f"{type(model).__name__} has no BatchNorm layer to convert")
    for pattern in (*only, *skip):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UnknownName("layer", pattern, names)
    return [
        name
        for name in names
        if (not only or any(fnmatchcase(name, pattern) for pattern in only))
        and not any(fnmatchcase(name, pattern) for pattern in skip)
    ]


def _patterns(given: str | Sequence[str] | None) -> Sequence[str]:
    return (given,) if isinstance(given, str) else given or ()


def _norm(old: nn.Module, normalizer: str, name: str, how: dict[str, Any]) -> Norm:
    assert isinstance(old, _BatchNorm)
    new = Norm(
        normalizer,
        old.num_features,
        old.eps,
        old.momentum,
        old.affine,
        _tracks(old),
        **_factory(old),
        **how,
    )
    new.name = name
    new.replaces = old.replaces if isinstance(old, Norm) else type(old)
    _move(old, new)
    return new


def _torchs(old: nn.Module) -> _BatchNorm:
    """torch's layer, of the type that was there before, BatchNorm2d where that is not known."""
    assert isinstance(old, _BatchNorm)
    if not isinstance(old, Norm):
        return old
    kind = old.replaces or nn.BatchNorm2d
    new = kind(old.num_features, old.eps, old.momentum, old.affine, _tracks(old), **_factory(old))
    _move(old, new)
    return new


def _tracks(old: _BatchNorm) -> bool:
    """Whether a layer in old's place keeps averages; fresh ones where only its normalizer
    does not."""
    return old.track_running_stats or (isinstance(old, Norm) and not old.keeps_running)


def _factory(old: _BatchNorm) -> dict[str, Any]:
    like = next((t for t in (old.weight, old.running_mean) if t is not None), None)
    return {} if like is None else {"device": like.device, "dtype": like.dtype}


def _move(old: _BatchNorm, new: _BatchNorm) -> None:
    """Parameters, averages, mode and hooks, the very objects."""
    new.weight, new.bias = old.weight, old.bias
    if old.track_running_stats and new.track_running_stats:
        new.running_mean, new.running_var = old.running_mean, old.running_var
        new.num_batches_tracked = old.num_batches_tracked
    if isinstance(new, Norm):
        new.follow()
    new.training = old.training
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))


def _seed_of(name: str, seed: int) -> int:
    """63 bits that differ from layer to layer."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _supply(model: nn.Module, moments: Moments | None, seed: int) -> None:
    """Virtual samples for the layers that want them: with new moments, or those given before."""
    before = detach(model)
    layers = [m for m in model.modules() if isinstance(m, Norm) and m.num_virtual]
    if not layers:
        return
    if len({layer.num_virtual for layer in layers}) > 1:
        raise UsageError("layers of one model must agree in num_virtual")
    if moments is not None:
        VirtualSamples(layers, moments, seed).attach(model)
    elif before is not None:
        VirtualSamples(layers, (before.mean, before.std), before.seed).attach(model)
