"""Any normalizer as a layer that takes BatchNorm's place."""

from __future__ import annotations

import warnings
from typing import Any, Literal, get_args

import msgspec
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_unflatten

from sbnbench.errors import CollapsedSample, InvalidParameter, NotApplicable
from sbnbench.model import Contender, format_param
from sbnbench.registry import build, make_contender, normalizers
from sbnbench_kernels import draws
from sbnbench_kernels.contract import Extended, Op, State
from sbnbench_kernels.draws import make_clock
from sbnbench_kernels.recompute import Replay, copy_state

Ranks = Literal["different", "same"]

_EXTRA = "extra_"

COLLAPSED = 1e-3
"""A sampled variance under this share of the running variance counts as collapsed."""

TRACEABLE = ("eager", "aten")
"""Backends whose ops a compiler can trace. In the place of others it gets the eager op, which
computes the same, and makes its own kernels from it."""

CHECKED_EVERY = 256
"""Training steps between two looks for a collapsed sample."""


class Norm(_BatchNorm):
    """A drop-in for nn.BatchNorm1d/2d/3d which normalizes with any registered normalizer.

    Norm("fs", 64, ratio=1/16) takes BatchNorm's arguments, has its parameters, buffers and
    state_dict keys, and computes what its op does (the normalizer's formula: `sbnbench list`).
    Input and output: (N, C, *spatial), in the input's dtype.

    In training it draws by (`seed`, `step`), `step` counting training calls on the host; it is
    `num_batches_tracked` after loading a state_dict, so that a resumed training draws on. In eval()
    it uses the running statistics, where the normalizer keeps any. A forward that activation
    checkpointing runs again draws what it drew before and counts once. Where torch.distributed is
    initialized, `ranks="different"` has every process draw positions of its own, so that together
    they see more of the data; with "same" all draw alike.

    torch.compile takes it without graph breaks and compiles once for all steps, torch.export in
    eval(); transforms of torch.func go through the forward, where BatchNorm lets them. All three
    trace the eager op where the backend's own are hand-written or compiled already.

    Where a sample collapses, that is sees a variance far under the running one as a constant
    border gives it, the op divides by nearly √ε and the output is that much larger; training
    samples are looked at every 256 steps and the finding is warned of (CollapsedSample) when the
    layer is switched to eval(), where waiting for the device costs nothing. Compiled code does not
    look, and where it runs inside a checkpoint that is not compiled it draws anew.

    `name` is the layer's in its model, for messages; convert sets it.

    Raises InvalidParameter, UnknownName or UsageError for what cannot be built, NotApplicable for
    an input the normalizer does not take.
    """

    def __init__(
        self,
        normalizer: str,
        num_features: int,
        eps: float | None = None,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "eager",
        seed: int = 0,
        ranks: Ranks = "different",
        **params: Any,
    ) -> None:
        if ranks not in get_args(Ranks):
            raise InvalidParameter(f"ranks is {ranks!r}; choose one of different, same")
        algorithm = normalizers()[normalizer]
        if eps is not None and algorithm.param("eps") is not None:
            params["eps"] = eps
        self._clock = make_clock(seed)  # first, as the base class resets the step
        super().__init__(
            num_features,
            eps=float(algorithm.resolve(params).get("eps", 0.0)),
            momentum=momentum,
            affine=affine,
            track_running_stats=track_running_stats and algorithm.running,
            device=device,
            dtype=dtype,
        )
        self.keeps_running = algorithm.running
        self.replaces: type[_BatchNorm] | None = None
        self.name = ""
        self.contender: Contender = make_contender(normalizer, backend, params)
        self.ranks = ranks
        self.num_virtual = int(algorithm.resolve(params).get("num_virtual", 0))
        self._op: Op = build(self.contender)
        self._traceable: Op = self._op if backend in TRACEABLE else build(_eager(self.contender))
        self._learned: tuple[str, ...] = ()
        if hasattr(self._op, "parameters"):
            self._extend(self._op, device, dtype)
        self._replay = Replay()
        self.register_buffer("_collapsed", None, persistent=False)
        self._collapsed: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """y (N, C, *spatial); in training it draws, and updates the running statistics."""
        if torch.compiler.is_compiling():
            return self._forward(x)
        try:
            return self._forward(x)
        except NotApplicable as error:
            where = f"layer {self.name}: " if self.name else ""
            raise NotApplicable(f"{where}{self.contender.id}: {error}") from error

    def _forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        again = self._replay.find() if self.training else None
        if again is not None:
            return self._apply_op(again, x)
        state = self._state()
        if self.training:
            self._replay.record(state)
            self._look_for_collapse(x, state)
        y = self._apply_op(state, x)
        self._keep(state)
        return y

    def train(self, mode: bool = True) -> Norm:
        super().train(mode)
        if not mode and self._collapsed is not None:
            channels, self._collapsed = int(self._collapsed.sum()), None
            if channels:
                warnings.warn(
                    f"{self.contender.id}: in {channels} of {self.num_features} channels a sampled "
                    f"variance was under {COLLAPSED:g} of the running variance; take a larger "
                    "ratio or other positions",
                    CollapsedSample,
                    stacklevel=2,
                )
        return self

    @property
    def seed(self) -> int:
        """What, with `step`, selects the draw."""
        return int(self._clock[0])

    @seed.setter
    def seed(self, seed: int) -> None:
        self._clock = make_clock(seed, self.step)

    @property
    def step(self) -> int:
        """Training calls so far."""
        return int(self._clock[1])

    @step.setter
    def step(self, step: int) -> None:
        self._clock = make_clock(self.seed, step)

    def now(self) -> tuple[int, int]:
        """Seed, this process's own where ranks differ, and step of the next training call."""
        return draws.now(self._clock, self.ranks == "different")

    def follow(self) -> None:
        """Takes the step from num_batches_tracked, which was set from outside."""
        tracked = self.num_batches_tracked
        if tracked is not None and not tracked.is_meta:
            self.step = int(tracked)

    def reset_running_stats(self) -> None:
        super().reset_running_stats()
        self.step = 0

    def extra_repr(self) -> str:
        params = "".join(f"{name}={format_param(v)}, " for name, v in self.contender.params)
        return (
            f"{self.contender.normalizer}, {self.num_features}, {params}momentum={self.momentum}, "
            f"affine={self.affine}, track_running_stats={self.track_running_stats}, "
            f"backend={self.contender.backend}, seed={self.seed}"
        )

    def _extend(
        self, op: Extended, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        parameters, buffers = op.parameters(self.num_features), op.buffers(self.num_features)
        self._learned = tuple(parameters)
        for name, value in parameters.items():
            self.register_parameter(_EXTRA + name, nn.Parameter(value.to(device, dtype)))
        for name, value in buffers.items():
            self.register_buffer(_EXTRA + name, value.to(device, dtype))

    def _apply_op(self, state: State, x: Tensor) -> Tensor:
        if torch._C._are_functorch_transforms_active():
            return self._transformed(state, x)
        learned = [self._parameters[_EXTRA + name] for name in self._learned]
        op = self._traceable if torch.compiler.is_compiling() else self._op
        y: Tensor = _Apply.apply(  # type: ignore[no-untyped-call]
            op, state, x, self.weight, self.bias, self._learned, *learned
        )
        return y

    def _transformed(self, state: State, x: Tensor) -> Tensor:
        """y under transforms of torch.func, which go through the forward itself."""
        if self._estimates() and not getattr(self._op, "exact_gradient", True):
            raise NotApplicable(
                f"{self.contender.id}: its backward is not the derivative of its forward, which "
                "torch.func would take; set backward=exact"
            )
        return self._traceable.forward(x, self.weight, self.bias, state)[0]

    def _state(self) -> State:
        extra = {
            name.removeprefix(_EXTRA): value
            for name, value in (*self._buffers.items(), *self._parameters.items())
            if name.startswith(_EXTRA) and value is not None
        }
        seed, step = self.now() if self._estimates() else (0, 0)
        return State(
            self.running_mean,
            self.running_var,
            self.momentum,
            self.training,
            seed,
            step,
            extra,
        )

    def _estimates(self) -> bool:
        """Whether a call takes statistics from its input and not from the averages."""
        return self.training or (self.keeps_running and self.running_mean is None)

    def _keep(self, state: State) -> None:
        for name, value in state.extra.items():
            if name not in self._learned:
                self.register_buffer(_EXTRA + name, value)
        if self.training:
            self._clock = draws.tick(self._clock)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)

    def _look_for_collapse(self, x: Tensor, state: State) -> None:
        statistics = getattr(self._op, "statistics", None)
        if statistics is None or state.running_var is None or torch.compiler.is_compiling():
            return
        if (state.step + 1) % CHECKED_EVERY:
            return
        with torch.no_grad():
            _, var = statistics(x, copy_state(state))
            collapsed = var < COLLAPSED * state.running_var
        self._collapsed = collapsed if self._collapsed is None else self._collapsed | collapsed

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002  the base class's name
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise NotApplicable(
                f"expected (N, {self.num_features}, …), got input size {tuple(input.shape)}"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # What an op keeps beyond BatchNorm's averages appears with its first forward, or here.
        for key, value in state_dict.items():
            name = key.removeprefix(prefix)
            if key.startswith(prefix + _EXTRA) and name not in self._parameters:
                self.register_buffer(name, torch.empty_like(value))
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.follow()


def _eager(contender: Contender) -> Contender:
    return msgspec.structs.replace(contender, backend="eager")


class _Apply(torch.autograd.Function):
    """An op's forward and backward as one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any,
        op: Op,
        state: State,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        learned: tuple[str, ...],
        *extra: Tensor,
    ) -> Tensor:
        y, saved = op.forward(x, weight, bias, state)
        leaves, ctx.spec = tree_flatten(saved)
        if torch.compiler.is_compiling():
            leaves = _unaliased(leaves, (x, weight, bias, *extra))
        ctx.op = op
        ctx.learned = {name: t.dtype for name, t in zip(learned, extra, strict=True)}
        ctx.save_for_backward(*(v for v in leaves if isinstance(v, Tensor)))
        ctx.others = [None if isinstance(v, Tensor) else (v,) for v in leaves]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        tensors = iter(ctx.saved_tensors)
        leaves = [next(tensors) if other is None else other[0] for other in ctx.others]
        dx, dweight, dbias, *own = ctx.op.backward(dy, tree_unflatten(leaves, ctx.spec))
        extra = (own[0][name].to(dtype) for name, dtype in ctx.learned.items())
        return None, None, dx, dweight, dbias, None, *extra


def _unaliased(leaves: list[Any], inputs: tuple[Tensor | None, ...]) -> list[Any]:
    """What a forward saves as a compiler wants it: the inputs themselves, and no view of anything.
    The copies come to nothing."""

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        same = [t for t in inputs if t is leaf]
        return same[0] if same else leaf.clone()

    return [own(leaf) for leaf in leaves]
