from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from sbnbench.errors import StoreError
from sbnbench.model import (
    Block,
    Contender,
    ErrorOptions,
    Estimate,
    LatencyOptions,
    Plan,
    Record,
    Workload,
)
from sbnbench.store import RECORDS, RunWriter, expected, load


def make_plan(batches: tuple[int, ...] = (1, 2)) -> Plan:
    contenders = (Contender("bn", "aten"), Contender("fs", "eager"))
    blocks = tuple(
        Block(
            Workload("synthetic", n, 3, (4, 4)),
            contenders,
            contenders[0],
            ("latency", "error"),
            ("fwd", "bwd"),
            LatencyOptions(),
            ErrorOptions(),
        )
        for n in batches
    )
    return Plan("t", "T", "", 0, blocks)


def records_of(block: Block) -> list[Record]:
    return [
        Record(
            block=key[0],
            contender=key[1],
            measure=key[2],
            status="ok",
            workload=block.workload,
            baseline="bn@aten",
            direction=key[3] or None,  # type: ignore[arg-type]
            estimates={"ratio": Estimate(1.5, 1.4, 1.6)},
            samples={"time": [[1.0, 2.0]]},
        )
        for key in sorted(expected(block))
    ]


def test_a_run_comes_back_as_written(tmp_path: Path) -> None:
    plan = make_plan()
    writer = RunWriter.create(tmp_path / "run", plan)
    writer.environment({"cpu": "x"})
    for block in plan.blocks:
        writer.append(records_of(block))
    run = load(tmp_path / "run")
    assert run.plan == plan
    assert run.environment == {"cpu": "x"}
    assert run.records == [r for b in plan.blocks for r in records_of(b)]
    assert run.missing() == []
    assert run.problems == []


def test_a_second_run_is_not_written_over_the_first(tmp_path: Path) -> None:
    RunWriter.create(tmp_path, make_plan())
    with pytest.raises(StoreError, match="already holds a run"):
        RunWriter.create(tmp_path, make_plan())


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_a_torn_block_is_named_and_dropped_on_resume(tmp_path: Path, cut: int) -> None:
    plan = make_plan()
    writer = RunWriter.create(tmp_path, plan)
    for block in plan.blocks:
        writer.append(records_of(block))
    data = (tmp_path / RECORDS).read_bytes()
    (tmp_path / RECORDS).write_bytes(data[:-cut])
    torn = load(tmp_path)
    assert len(torn.problems) == (1 if cut > 1 else 0)  # without the newline the line is whole
    if cut > 1:
        assert f"line {len(data.splitlines()) - (cut == 400)}" in torn.problems[0] or cut == 400
    writer, kept = RunWriter.resume(tmp_path)
    assert kept.missing() == ([plan.blocks[1]] if cut > 1 else [])
    for block in kept.missing():
        writer.append(records_of(block))
    again = load(tmp_path)
    assert sorted(r.key for r in again.records) == sorted(
        key for b in plan.blocks for key in expected(b)
    )
    assert again.problems == []


def test_an_edited_line_is_named_and_the_rest_used(tmp_path: Path) -> None:
    plan = make_plan((1,))
    writer = RunWriter.create(tmp_path, plan)
    writer.append(records_of(plan.blocks[0]))
    lines = (tmp_path / RECORDS).read_text().splitlines()
    lines[1] = lines[1].replace('"ok"', '"fine"')
    (tmp_path / RECORDS).write_text("\n".join(lines) + "\n")
    run = load(tmp_path)
    assert len(run.records) == len(lines) - 1
    assert len(run.problems) == 1
    assert "line 2" in run.problems[0]


def test_a_record_that_is_there_twice_is_named(tmp_path: Path) -> None:
    plan = make_plan((1,))
    writer = RunWriter.create(tmp_path, plan)
    writer.append(records_of(plan.blocks[0]))
    writer.append(records_of(plan.blocks[0])[:1])
    assert any("2 times" in p for p in load(tmp_path).problems)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run directory"):
        load(tmp_path)
    newer = msgspec.structs.replace(make_plan(), schema=99)
    RunWriter.create(tmp_path, newer)
    with pytest.raises(StoreError, match="schema 99"):
        load(tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(StoreError, match=r"plan\.json"):
        load(tmp_path)


def test_an_output_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write to"):
        RunWriter.create(tmp_path / "file" / "run", make_plan())
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_data_frame(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    plan = make_plan((1,))
    RunWriter.create(tmp_path, plan).append(records_of(plan.blocks[0]))
    frame = load(tmp_path).to_pandas()
    assert len(frame) == len(expected(plan.blocks[0]))
    assert set(frame["ratio_low"]) == {1.4}
