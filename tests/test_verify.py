"""Verification must let right contenders through and stop wrong ones: each planted bug is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sbnbench import inputs, verify
from sbnbench.bench import Bench, new_state
from sbnbench.errors import NotApplicable, VerificationFailed
from sbnbench.inputs import virtual_rows
from sbnbench.model import Workload
from sbnbench.registry import build, parse_contender

WORKLOAD = Workload("synthetic", 6, 5, (7, 6))


def bench(text: str, workload: Workload = WORKLOAD) -> Bench:
    contender = parse_contender(text)
    made = inputs.make(workload, virtual_rows(contender))
    return Bench(contender, build(contender), made, new_state(made.weight, 0))


def wrapped(found: Bench, forward: Callable[..., Any] | None, backward: Any = None) -> Bench:
    """The bench with another forward or backward around its own."""

    class Wrapped:
        def __init__(self, op: Any) -> None:
            self.op = op

        def forward(self, *given: Any) -> Any:
            return forward(self.op, *given) if forward else self.op.forward(*given)

        def backward(self, *given: Any) -> Any:
            return backward(self.op, *given) if backward else self.op.backward(*given)

    found.op = Wrapped(found.op)
    return found


ALL = [
    "bn@aten",
    "bn@eager",
    "ns@eager",
    "bs@eager",
    "bs[backward=exact]@eager",
    "bs[backward=detached]@eager",
    "fs@eager",
    "fs[backward=exact]@eager",
    "vdn@eager",
    "bs+vdn@eager",
    "fs+vdn@eager",
    "gn[groups=5]@aten",
    "gn[groups=1]@eager",
    "ln@aten",
    "in@aten",
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("form", ["contiguous", "channels_last"])
@pytest.mark.parametrize("text", ALL)
def test_what_is_right_passes(text: str, form: str, dtype: str) -> None:
    found = bench(text, Workload("synthetic", 6, 5, (7, 6), dtype, form))
    with torch.no_grad():
        errors = verify.check(found, found.inputs, 0)
    assert {"y", "dx", "dweight", "dbias"} <= errors.keys()


@pytest.mark.parametrize("spatial", [(), (9,), (4, 3, 5)], ids=["N,C", "N,C,L", "N,C,D,H,W"])
def test_other_shapes(spatial: tuple[int, ...]) -> None:
    found = bench("bn@aten", Workload("synthetic", 8, 3, spatial))
    with torch.no_grad():
        verify.check(found, found.inputs, 0)


def bug_no_op(op: Any, x: Tensor, w: Tensor, b: Tensor, s: Any) -> Any:
    return x, op.forward(x, w, b, s)[1]


def bug_no_bias(op: Any, x: Tensor, w: Tensor, b: Tensor, s: Any) -> Any:
    return op.forward(x, w, torch.zeros_like(b), s)


def bug_no_weight(op: Any, x: Tensor, w: Tensor, b: Tensor, s: Any) -> Any:
    return op.forward(x, torch.ones_like(w), b, s)


def bug_wrong_eps(op: Any, x: Tensor, w: Tensor, b: Tensor, s: Any) -> Any:
    # a little more than ε belongs under the root, in proportion: 0.1 %
    return op.forward(x * 0.999 + 0.001 * x.mean(), w, b, s)


def bug_one_channel(op: Any, x: Tensor, w: Tensor, b: Tensor, s: Any) -> Any:
    y, saved = op.forward(x, w, b, s)
    y[:, 3] *= 1.01
    return y, saved


def bug_unwritten(op: Any, x: Tensor, w: Tensor, b: Tensor, s: Any) -> Any:
    y, saved = op.forward(x, w, b, s)
    holes = torch.empty_like(y)
    holes[:-1] = y[:-1]
    return holes, saved


def bug_no_bessel(op: Any, x: Tensor, w: Tensor, b: Tensor, s: Any) -> Any:
    y, saved = op.forward(x, w, b, s)
    n = x.numel() // x.shape[1]
    s.running_var.sub_(0.9).mul_((n - 1) / n).add_(0.9)
    return y, saved


def bug_dtype(op: Any, x: Tensor, w: Tensor, b: Tensor, s: Any) -> Any:
    y, saved = op.forward(x, w, b, s)
    return y.double(), saved


def bug_shape(op: Any, x: Tensor, w: Tensor, b: Tensor, s: Any) -> Any:
    y, saved = op.forward(x, w, b, s)
    return y[:-1], saved


@pytest.mark.parametrize(
    "bug",
    [
        bug_no_op,
        bug_no_bias,
        bug_no_weight,
        bug_wrong_eps,
        bug_one_channel,
        bug_unwritten,
        bug_no_bessel,
        bug_dtype,
        bug_shape,
    ],
)
def test_a_wrong_forward_is_stopped(bug: Any) -> None:
    found = wrapped(bench("bn@aten"), bug)
    with torch.no_grad(), pytest.raises(VerificationFailed):
        verify.check(found, found.inputs, 0)


def grad_detached(op: Any, dy: Tensor, saved: Any) -> Any:
    op.op.mode = "detached"
    return op.backward(dy, saved)


def grad_zero(op: Any, dy: Tensor, saved: Any) -> Any:
    _, dw, db = op.backward(dy, saved)
    return torch.zeros_like(dy), dw, db


def grad_no_weight(op: Any, dy: Tensor, saved: Any) -> Any:
    dx, _, db = op.backward(dy, saved)
    return dx, None, db


def grad_swapped(op: Any, dy: Tensor, saved: Any) -> Any:
    dx, dw, db = op.backward(dy, saved)
    return dx, db, dw


def grad_through(op: Any, dy: Tensor, saved: Any) -> Any:
    _, dw, db = op.backward(dy, saved)
    return dy, dw, db


@pytest.mark.parametrize("bug", [grad_zero, grad_no_weight, grad_swapped, grad_through])
@pytest.mark.parametrize("text", ["bn@aten", "fs@eager", "gn[groups=5]@aten"])
def test_a_wrong_backward_is_stopped(text: str, bug: Any) -> None:
    found = wrapped(bench(text), None, bug)
    with torch.no_grad(), pytest.raises(VerificationFailed):
        verify.check(found, found.inputs, 0)


def test_one_backward_mode_is_not_taken_for_another() -> None:
    found = bench("fs[backward=exact]@eager")
    found.op = build(parse_contender("fs[backward=sampled]@eager"))
    with torch.no_grad(), pytest.raises(VerificationFailed, match="dx"):
        verify.check(found, found.inputs, 0)


def test_another_draw_of_positions_is_noticed() -> None:
    found = bench("fs@eager")
    moved = wrapped(found, lambda op, x, w, b, s: op.forward(x, w, b, _at_step(s, 5)))
    with torch.no_grad(), pytest.raises(VerificationFailed):
        verify.check(moved, moved.inputs, 0)


def _at_step(state: Any, step: int) -> Any:
    state.step = step
    return state


def repeating(after: int) -> Any:
    """A bench whose op, after so many calls, gives its last answer whatever it is asked."""
    kept: list[Any] = []

    def stale(op: Any, *given: Any) -> Any:
        if len(kept) < after:
            kept.append(op.forward(*given))
        return kept[-1]

    return wrapped(bench("bn@aten"), stale)


def test_a_first_answer_kept_for_ever_is_caught_before_timing() -> None:
    found = repeating(after=1)
    with torch.no_grad():
        verify.Repeat(found, 0)
        with pytest.raises(VerificationFailed):
            verify.check(found, found.inputs, 0)


@pytest.mark.parametrize("calls", [0, 3])
def test_a_buffer_kept_while_timing_is_caught_after_it(calls: int) -> None:
    found = repeating(after=2 + calls)
    with torch.no_grad():
        repeat = verify.Repeat(found, 0)
        verify.check(found, found.inputs, 0)
        for _ in range(calls):
            found.call("fwd")()
        with pytest.raises(VerificationFailed, match="another y"):
            repeat.check()


@pytest.mark.parametrize("text", ["bn@eager", "fs@eager", "ns@eager", "brn@eager", "online@eager"])
def test_timing_changes_nothing_of_what_is_right(text: str) -> None:
    found = bench(text)
    with torch.no_grad():
        repeat = verify.Repeat(found, 0)
        for _ in range(5):
            found.call("fwd_bwd")()
        repeat.check()


def test_an_ill_conditioned_channel_is_not_blamed_and_excuses_no_other() -> None:
    found = bench("bn@eager")
    found.inputs.x[:, 2] = 1e4 + 0.01 * torch.randn_like(found.inputs.x[:, 2])
    with torch.no_grad():
        verify.check(found, found.inputs, 0)
        broken = wrapped(found, bug_one_channel)
        with pytest.raises(VerificationFailed):
            verify.check(broken, broken.inputs, 0)


def test_a_sample_of_two_values_is_judged_by_what_rounding_does_to_it() -> None:
    """1×1 patches of two rows: now and then both values of a channel are nearly the same."""
    tiny = Workload("synthetic", 2, 512, (4, 4))
    text = "fs[backward=sampled]@eager"
    right = bench(text, tiny)
    wanted = verify.reference(right.contender, right.inputs, 3)
    found = verify.results(right, right.inputs, 3)
    assert max(verify.distance(found[n], wanted[n]) for n in verify.NAMES) > 1e-4
    verify.check(right, right.inputs, 3)
    wrong = wrapped(bench(text, tiny), None, grad_swapped)
    with pytest.raises(VerificationFailed):
        verify.check(wrong, wrong.inputs, 3)


@pytest.mark.parametrize(("far", "blamed"), [(1e-6, False), (1e-2, True)])
def test_what_rounding_puts_across_a_threshold_is_no_error(far: float, blamed: bool) -> None:
    """frn's gradient jumps where z = γρx + b is 0: there rounding may take either side."""
    found = bench("frn@eager", Workload("synthetic", 4, 8, (9, 9)))
    made, at = found.inputs, (1, 2, 3, 4)
    gamma, b, plane = made.weight[2], made.bias[2], made.x[1, 2]
    for _ in range(100):  # ρ depends on what is being set
        plane[3, 4] = -b / (gamma * plane.square().mean().add(1e-6).rsqrt())

    def other_side(op: Any, x: Tensor, *others: Any) -> Any:
        up = x.clone()
        up[at] += far * gamma.sign() * x[at].abs()
        y, saved = op.forward(up, *others)
        assert y[at] > 0
        return y, saved

    wrong = wrapped(found, other_side)
    with torch.no_grad():
        assert verify.reference(found.contender, made, 0)["y"][at] == 0  # type: ignore[index]
    if blamed:
        with pytest.raises(VerificationFailed):
            verify.check(wrong, made, 0)
    else:
        assert (
            verify.distance(
                verify.results(wrong, made, 0)["dx"],
                verify.reference(found.contender, made, 0)["dx"],
            )
            > verify.TOLERANCE[torch.float32]
        )
        verify.check(wrong, made, 0)


def test_every_value_is_moved_up_and_down() -> None:
    moves = torch.stack(
        [m.expand(6, 5, 7, 6) for m in verify.roundings(bench("bn@eager").inputs, 0)]
    )
    assert (moves.amax(0) > 0).all()
    assert (moves.amin(0) < 0).all()
    assert (moves[2, 0] * moves[2, 1] < 0).all()  # neighbouring rows apart


def test_what_does_not_apply_says_so() -> None:
    found = bench("gn[groups=4]@aten")
    with torch.no_grad(), pytest.raises(NotApplicable, match="groups"):
        found.op.forward(
            found.inputs.x,
            found.inputs.weight,
            found.inputs.bias,
            new_state(found.inputs.weight, 0),
        )
