from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import pytest

from sbnbench.errors import SuiteError, Unavailable, UsageError
from sbnbench.model import DTYPES, FORMATS, Plan
from sbnbench.plan import BLOCK_AXES, CHOICES, Filters, axis_values, make_plan, read_suite
from sbnbench.suites import suites

SUITE = """
title = "T"
contenders = ["bn@aten", "fs@eager", "bs[ratio=1/2]@eager"]
[axes]
input = ["synthetic:8x4x4"]
batch = [1, 2]
"""


def plan(tmp_path: Path, text: str = SUITE, **filters: object) -> Plan:
    path = tmp_path / "suite.toml"
    path.write_text(text)
    quick = bool(filters.get("quick"))
    return make_plan(read_suite(path, quick), Filters(**filters), "suite")  # type: ignore[arg-type]


def test_blocks_are_the_product_of_workload_axes(tmp_path: Path) -> None:
    made = plan(tmp_path, axes={"dtype": "float32,bfloat16"})
    found = {(b.workload.batch, b.workload.dtype) for b in made.blocks}
    assert found == {(n, d) for n in (1, 2) for d in ("float32", "bfloat16")}
    assert all(b.directions == ("fwd", "bwd", "fwd_bwd") for b in made.blocks)


def test_a_parameter_axis_multiplies_what_has_it_and_does_not_fix_it(tmp_path: Path) -> None:
    made = plan(tmp_path, axes={"ratio": "1/4,1/8"})
    assert [c.id for c in made.blocks[0].contenders] == [
        "bn@aten",
        "fs[ratio=1/4]@eager",
        "fs[ratio=1/8]@eager",
        "bs[ratio=1/2]@eager",
    ]


def test_order_is_random_but_seeded(tmp_path: Path) -> None:
    axes = {"batch": "[pow2]1:512"}
    orders = [
        [b.workload.batch for b in plan(tmp_path, axes=axes, seed=s).blocks] for s in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == [2**k for k in range(10)]


def test_planning_leaves_the_users_random_state_alone(tmp_path: Path) -> None:
    random.seed(3)
    before = random.getstate()
    plan(tmp_path)
    assert random.getstate() == before


def test_filters(tmp_path: Path) -> None:
    assert [c.id for c in plan(tmp_path, only=("fs",)).blocks[0].contenders] == ["fs@eager"]
    assert [c.id for c in plan(tmp_path, skip=("@eager",)).blocks[0].contenders] == ["bn@aten"]
    kept = plan(tmp_path, keyword="batch=2 and not bs").blocks
    assert [(b.workload.batch, len(b.contenders)) for b in kept] == [(2, 2)]
    assert plan(tmp_path, directions=("bwd",)).blocks[0].directions == ("bwd",)


def test_quick_lays_over(tmp_path: Path) -> None:
    text = SUITE + "\n[latency]\nprecision = 0.1\n[quick.latency]\nseconds = 0.1\n"
    assert plan(tmp_path, text).blocks[0].latency.seconds != 0.1
    quick = plan(tmp_path, text, quick=True).blocks[0].latency
    assert (quick.seconds, quick.precision) == (0.1, 0.1)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [("1,2,4", [1, 2, 4]), ("[pow2]2:9", [2, 4, 8]), ([4, 4, 2], [4, 2]), ("[1, 3]", [1, 3])],
)
def test_axis_values(values: object, wanted: list[int]) -> None:
    assert axis_values("batch", values, "here") == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("batch = [1, 2]", "batch = [-1]"), "axis batch: -1 is no batch size"),
        (("batch = [1, 2]", "batch = [1.5]"), "no batch size"),
        (("batch = [1, 2]", "batch = []"), "axis batch is empty"),
        (("batch = [1, 2]", ""), "lacks 'batch'"),
        (("[axes]", "[axis]"), "unknown key 'axis'; did you mean axes"),
        (("title", "titel"), "unknown key 'titel'; did you mean title"),
        (('"T"', "3"), "title"),
        (("contenders = [", "contenders = "), "not TOML"),
        (("fs@eager", "sf@eager"), "unknown normalizer 'sf'"),
        (("fs@eager", "fs@eagre"), "unknown backend 'eagre'; did you mean eager"),
        (("fs@eager", "fs[ratio=0]@eager"), "ratio lies in"),
        (("fs@eager", "fs[ratio=2]@eager"), "ratio lies in"),
        (("fs@eager", "fs[ratio=1/4@eager"), "bracket is not closed"),
        (("synthetic:8x4x4", "synthetic:8x"), "is no input"),
        (("synthetic:8x4x4", "real:_blocks.3._bn7"), "unknown layer"),
    ],
)
def test_bad_suites_name_the_place(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in SUITE
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        plan(tmp_path, SUITE.replace(*change))


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"axes": {"bacth": "1"}}, "unknown axis 'bacth'; did you mean batch"),
        ({"axes": {"dtype": "float31"}}, "unknown dtype 'float31'"),
        ({"axes": {"device": "gpu"}}, "unknown device 'gpu'"),
        ({"only": ("gm",)}, "unknown contender 'gm'"),
        ({"directions": ("forward",)}, "unknown direction 'forward'"),
        ({"keyword": "nothing"}, "nothing is left"),
    ],
)
def test_bad_filters(tmp_path: Path, filters: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(tmp_path, **filters)


def test_a_misspelt_key_in_a_table_is_named_with_its_table(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"\[latency\].*'secnods'; did you mean seconds"):
        plan(tmp_path, SUITE + "[latency]\nsecnods = 3\n")


def test_every_suite_that_ships_can_be_planned() -> None:
    for name, path in suites().items():
        if name == "gpu-acceptance":  # needs a GPU, which this machine may lack
            continue
        for quick in (False, True):
            made = make_plan(read_suite(path, quick), Filters(quick=quick), name)
            assert made.blocks


def test_clock_and_cache_come_from_the_suite_or_the_command_line(tmp_path: Path) -> None:
    text = SUITE + '[latency]\ncache = "cold"\n'
    (one, *_) = plan(tmp_path, text).blocks
    assert (one.latency.clock, one.latency.cache) == ("auto", "cold")
    (two, *_) = plan(tmp_path, text, latency={"clock": "perf_counter", "cache": "hot"}).blocks
    assert (two.latency.clock, two.latency.cache) == ("perf_counter", "hot")
    assert one.id != two.id


def test_caches_are_an_axis_too(tmp_path: Path) -> None:
    blocks = plan(tmp_path, axes={"cache": "hot,cold", "batch": "2"}).blocks
    assert sorted(b.latency.timing for b in blocks) == ["", "cold"]
    assert len({b.workload for b in blocks}) == 1
    with pytest.raises(UsageError, match="unknown cache 'warm'"):
        plan(tmp_path, axes={"cache": "warm"})


def test_the_documented_suite_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "suites.md").read_text(encoding="utf-8")
    text = page.partition("```toml\n")[2].partition("```")[0]
    assert len(plan(tmp_path, text).blocks) == 16
    assert len(plan(tmp_path, text, quick=True).blocks) == 8
    for axis in BLOCK_AXES:
        assert f"| `{axis}` |" in page
    for values in (DTYPES, FORMATS, *CHOICES.values()):
        assert all(f"`{value}`" in page for value in values)


def test_several_tables_of_axes_follow_each_other(tmp_path: Path) -> None:
    second = '[[axes]]\ninput = ["synthetic:8x4x4"]\nbatch = [1, 5]\ncache = ["cold"]\n'
    blocks = plan(tmp_path, SUITE.replace("[axes]", "[[axes]]") + second).blocks
    found = sorted((b.workload.batch, b.latency.cache) for b in blocks)
    assert found == [(1, "cold"), (1, "hot"), (2, "hot"), (5, "cold")]
    again = '[[axes]]\ninput = ["synthetic:8x4x4"]\nbatch = [1]\n'
    assert len(plan(tmp_path, SUITE.replace("[axes]", "[[axes]]") + again).blocks) == 2


def test_acceptance_looks_at_micro_batches_in_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sbnbench.plan.gpus", lambda: ([{"index": 0}], ""))
    suite = read_suite(suites()["gpu-acceptance"])
    blocks = make_plan(suite, Filters(), "gpu-acceptance").blocks
    found = {(b.workload.batch, b.latency.clock, b.latency.cache) for b in blocks}
    ways = {(2, f"cuda-{c}", cache) for c in ("events", "graph") for cache in ("hot", "cold")}
    assert found == {(256, "auto", "hot"), *ways}
    assert {(b.workload.dtype, b.workload.format) for b in blocks} == set(
        product(("bfloat16", "float32"), ("contiguous", "channels_last"))
    )
    quick = make_plan(read_suite(suites()["gpu-acceptance"], quick=True), Filters(), "quick")
    assert len(quick.blocks) == 1


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ('[latency]\nclock = "cuda-events"', {}, "suite: clock cuda-events times an NVIDIA GPU"),
        ("", {"clock": "cuda-graph"}, "--clock cuda-graph times an NVIDIA GPU; none is available"),
    ],
)
def test_a_clock_that_is_not_there(
    tmp_path: Path, text: str, given: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sbnbench.plan.gpus", lambda: ([], "no driver"))
    with pytest.raises(Unavailable, match=message):
        plan(tmp_path, SUITE + text, latency=given)


def test_a_gpu_clock_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sbnbench.plan.gpus", lambda: ([{"index": 0}], ""))
    made = plan(tmp_path, latency={"clock": "cuda-graph"}, axes={"device": "cuda"})
    assert made.blocks[0].latency.clock == "cuda-graph"
    with pytest.raises(Unavailable, match="choose one with --device cuda"):
        plan(tmp_path, latency={"clock": "cuda-graph"})


def test_the_micro_batch_suite_covers_what_it_promises() -> None:
    made = make_plan(read_suite(suites()["micro-batch"]), Filters(), "micro-batch")
    assert {b.workload.batch for b in made.blocks} == {1, 2, 4, 8, 16, 32}
    assert len({b.workload.source for b in made.blocks}) >= 2
    assert all(b.workload.source.startswith("real:") for b in made.blocks)
    for block in made.blocks:
        assert len(block.contenders) >= 10
        assert block.directions == ("fwd", "bwd", "fwd_bwd")
