"""Virtual samples for a whole model: appended to its input in training, dropped from its output.

Each virtual sample is Gaussian noise with the data set's mean and standard deviation a channel,
drawn anew each training step [interpretation: Chen et al., arXiv 1810.10962, do not say in what
could be read from which distribution, nor how often]. Since a sample is noise in every pixel, its
feature maps have the scale of the data's at the input and drift from it with depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sbnbench.errors import NotApplicable, UsageError
from sbnbench_kernels import draws
from sbnbench_kernels.contract import State
from sbnbench_kernels.module import Norm
from sbnbench_kernels.recompute import Replay

Moments = tuple[Tensor, Tensor]
"""Mean and standard deviation of a data set, (C,) each."""


def data_moments(
    mean: Sequence[float] | Tensor | float | None,
    std: Sequence[float] | Tensor | float | None,
    loader: Iterable[Any] | None,
    batches: int = 64,
) -> Moments:
    """The given mean and standard deviation a channel, or those of a loader's first batches.

    A batch is a tensor (N, C, *spatial), or a sequence or mapping whose first value is one.
    UsageError where neither is given.
    """
    if mean is not None and std is not None:
        given = (torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in (mean, std))
        return tuple(v.to(torch.float32) for v in given)  # type: ignore[return-value]
    if loader is None:
        raise UsageError(
            "virtual samples need the data set's mean and standard deviation a channel: "
            "give mean= and std=, or loader="
        )
    count, centre, squares = 0, torch.zeros(()), torch.zeros(())
    for _, batch in zip(range(batches), loader, strict=False):
        x = _first_tensor(batch).detach().double().transpose(0, 1).flatten(1).cpu()
        # Two batches' sums of squares about their means merge to those about the common mean.
        total, step = count + x.shape[1], x.mean(1) - centre
        squares = squares + (x - x.mean(1, keepdim=True)).square().sum(1)
        squares = squares + step.square() * count * x.shape[1] / total
        centre, count = centre + step * x.shape[1] / total, total
    if count == 0:
        raise UsageError("the loader gave no batch to take mean and standard deviation from")
    return centre.float(), (squares / count).sqrt().float()


class VirtualSamples:
    """The two hooks that give a model its virtual samples.

    They act where one of `layers` is in training. The draw is selected by (`seed`, the first
    layer's step), so that it comes back after a resume, and in a model that a checkpoint runs
    again. Noise is made on the input's device from a generator seeded on the host.
    """

    def __init__(self, layers: Sequence[Norm], moments: Moments, seed: int) -> None:
        self.layers = tuple(layers)
        self.mean, self.std = moments
        self.seed = seed
        self.count = layers[0].num_virtual
        self._replay = Replay()

    def attach(self, model: nn.Module) -> None:
        """Next to the model's forward: its own hooks see the batch as the user gave it."""
        model.register_forward_pre_hook(self.append, with_kwargs=True)
        model.register_forward_hook(self.drop, prepend=True, with_kwargs=True)

    def append(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The inputs with virtual rows at the end of the batch."""
        if not self._active():
            return None
        key = _input_of(args, kwargs)
        x = args[key] if isinstance(key, int) else kwargs[key]
        larger = torch.cat([x, self._draw(x)])
        if isinstance(key, int):
            return (*args[:key], larger, *args[key + 1 :]), kwargs
        return args, {**kwargs, key: larger}

    def drop(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """The output without the rows of virtual samples, in every tensor that has them."""
        if not self._active():
            return None
        key = _input_of(args, kwargs)
        rows = (args[key] if isinstance(key, int) else kwargs[key]).shape[0]

        def real(value: Any) -> Any:
            batched = isinstance(value, Tensor) and value.dim() and value.shape[0] == rows
            return value[: rows - self.count] if batched else value

        return tree_map(real, output)

    def _active(self) -> bool:
        return any(layer.training for layer in self.layers)

    def _draw(self, x: Tensor) -> Tensor:
        state = self._replay.find()
        if state is None:
            state = State(seed=self.seed, step=self.layers[0].now()[1])
            self._replay.record(state)
        shape = (self.count, *x.shape[1:])
        noise = draws.noise(state.seed, state.step, shape, x.device)
        column = (-1, *(1,) * (x.dim() - 2))
        try:
            mean, std = (v.to(x.device).view(column).expand(shape) for v in (self.mean, self.std))
        except RuntimeError:
            raise NotApplicable(
                f"mean and std are of {self.mean.numel()} channels, the input {tuple(x.shape)} "
                f"has {x.shape[1]}"
            ) from None
        last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        return torch.addcmul(mean, noise, std).to(x.dtype, memory_format=layout)


def detach(model: nn.Module) -> VirtualSamples | None:
    """Takes the hooks of VirtualSamples off the model and its submodules, and gives the last."""
    found = None
    for module in model.modules():
        for hooks, flags in (
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
            (module._forward_hooks, module._forward_hooks_with_kwargs),
        ):
            for key, hook in list(hooks.items()):
                owner = getattr(hook, "__self__", None)
                if isinstance(owner, VirtualSamples):
                    del hooks[key]
                    flags.pop(key, None)
                    found = owner
    return found


def _input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | str:
    """Where the batch is: the first floating-point tensor with channels."""
    named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    tensors = [(k, v) for k, v in named if isinstance(v, Tensor)]
    found = [(k, v) for k, v in tensors if v.is_floating_point() and v.dim() > 1]
    if not found:
        raise NotApplicable("virtual samples need a floating-point input (N, C, …)")
    key, x = found[0]
    if any(v.dim() and v.shape[0] == x.shape[0] for k, v in tensors if k != key):
        raise NotApplicable(
            "virtual samples can be appended to one input alone; the model takes several with "
            f"{x.shape[0]} rows"
        )
    return key


def _first_tensor(batch: Any) -> Tensor:
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values() if isinstance(batch, dict) else batch))
    return batch
