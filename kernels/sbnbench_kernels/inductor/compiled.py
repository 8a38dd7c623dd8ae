"""A pure function compiled by Inductor, once for each layout of its arguments.

The function is traced to ATen and handed to Inductor directly. What torch.compile would add around
the generated code, guards over every argument and the wrappers of autograd, costs more than the
normalization of a small tensor; here the layouts of the arguments are the only guard. There is no
recompile limit that could be hit, and nothing ever falls back to eager code.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from sbnbench.environment import compiler_problem
from sbnbench.errors import Unavailable

Program = Callable[[list[Tensor]], Sequence[Any]]
"""Compiled code: takes the arguments that are not None in a list, which it empties, and gives the
function's outputs in order."""

Layout = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]


def layout(t: Tensor | None) -> Layout | None:
    """What compiled code depends on: sizes, strides, dtype, device; not values or the offset."""
    return None if t is None else (t.shape, t.stride(), t.dtype, t.device)


class Compiled:
    """Mixin of ops: their programs by key, and what compiling took."""

    def __init__(self, *args: Any, **params: Any) -> None:
        super().__init__(*args, **params)
        self.programs: dict[Hashable, Any] = {}
        self.compile_seconds = 0.0

    def compile(
        self,
        function: Callable[..., Sequence[Tensor]],
        arguments: Sequence[Tensor | None],
        vectors: bool = False,
    ) -> Program:
        """The program of `function` for arguments laid out as these.

        `function` is pure but for changes of its arguments in place, and gives tensors. `vectors`
        where loops of less than a fourth of a vector shall be one all the same. Unavailable where
        code for the device cannot be built on this machine.
        """
        start = perf_counter()
        present = [a is not None for a in arguments]

        def only_tensors(*tensors: Tensor) -> Sequence[Tensor]:
            left = iter(tensors)
            return function(*(next(left) if here else None for here in present))

        given = [a for a in arguments if a is not None]
        program = compile_program(only_tensors, given, vectors)
        self.compile_seconds += perf_counter() - start
        return program


def get_ready() -> None:
    """Import Inductor and have it find out what this CPU can do: two seconds that a process which
    forks others spends for all of them."""
    from torch._inductor import (
        compile_fx,  # noqa: F401
        cpu_vec_isa,
    )

    if not compiler_problem():
        cpu_vec_isa.pick_vec_isa()


def compile_program(
    function: Callable[..., Sequence[Tensor]], arguments: Sequence[Tensor], vectors: bool = False
) -> Program:
    """`function` for tensors laid out as `arguments`; see `Compiled.compile`."""
    on_cpu = all(t.device.type == "cpu" for t in arguments)
    problem = compiler_problem() if on_cpu else ""
    if problem:
        raise Unavailable(f"inductor: {problem}")
    # Code must not depend on a mode that a caller happens to be in, such as verification's.
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        with torch.no_grad():
            return _lower(function, arguments, vectors)
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def _lower(
    function: Callable[..., Sequence[Tensor]], arguments: Sequence[Tensor], vectors: bool
) -> Program:
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    settings = {
        "size_asserts": False,  # the layout has been compared
        "scalar_asserts": False,
        "assert_indirect_indexing": False,  # positions are our own
        "fx_graph_cache": True,
        # A mask or product that several sums need is computed for each, not written and read.
        "realize_reads_threshold": 64,
        "realize_opcount_threshold": 400,
        "cpp.enable_floating_point_contract_flag": "fast",  # a·x+b in one instruction, rounded once
        "cpp.enable_tiling_heuristics": not vectors,
        "cpp.threads": torch.get_num_threads(),  # in the generated code, so in the cache's key too
    }
    # Without an environment of shapes, though there are none to find out, nothing is kept on disk.
    fake = FakeTensorMode(shape_env=ShapeEnv())
    with fake:
        # Fresh tensors of the same layout: the offset of a view is not part of it.
        examples = [
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)
            for t in arguments
        ]
        # Annotations would come along into the graph, which then could not be kept.
        pure = torch.func.functionalize(lambda *given: function(*given), remove="mutations")
        graph = make_fx(pure, decomposition_table=select_decomp_table())(*examples)
        keep_copies(graph)
    with config.patch(settings), tracing(TracingContext(fake)):
        try:
            from torch._inductor.compile_fx import compile_fx_inner

            made: Any = compile_fx_inner(graph, examples)
            program: Program = made.current_callable
            return program
        except (ImportError, AttributeError, TypeError):
            # Another torch has its inner parts elsewhere: the same code behind the public door.
            return _public(graph)


def keep_copies(module: torch.fx.GraphModule) -> None:
    """Has a table that the function spreads by a copy, such as a group's mean over its channels,
    spread once. Inductor would look it up for every value, unless somebody asks for its strides."""
    aten = torch.ops.aten
    for node in module.graph.nodes:
        if node.target is not aten.clone.default:
            continue
        (source,) = node.all_input_nodes
        if source.target is aten.expand.default:
            value: Tensor = node.meta["val"]
            with module.graph.inserting_after(node):
                kept = module.graph.call_function(aten.as_strided.default)
            node.replace_all_uses_with(kept)
            kept.args = (node, list(value.shape), list(value.stride()))
            kept.meta["val"] = value
    module.recompile()


def _public(graph: torch.fx.GraphModule) -> Program:
    """By torch.compile, at the first call. The graph is this one program's: its guards always hold,
    and if they did not, an error would say so."""
    whole = torch.compile(graph, fullgraph=True, dynamic=False)

    def program(given: list[Tensor]) -> Sequence[Any]:
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=8):
            found: Sequence[Any] = whole(*given)
            return found

    return program
