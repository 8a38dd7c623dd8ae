from __future__ import annotations

import msgspec
import pytest

from sbnbench.errors import InvalidParameter
from sbnbench.model import (
    Block,
    Contender,
    ErrorOptions,
    LatencyOptions,
    Normalizer,
    Param,
    Workload,
)


def block(**changes: object) -> Block:
    base = Block(
        Workload("synthetic", 2, 3, (4, 4)),
        (Contender("bn", "aten"),),
        Contender("bn", "aten"),
        ("latency",),
        ("fwd",),
        LatencyOptions(),
        ErrorOptions(),
    )
    return msgspec.structs.replace(base, **changes)


def test_block_id_is_its_content() -> None:
    assert block().id == block().id
    assert block().id != block(directions=("bwd",)).id
    assert block().id != block(latency=LatencyOptions(seconds=9)).id
    restored = msgspec.json.decode(msgspec.json.encode(block()), type=Block)
    assert restored == block()
    assert restored.id == block().id


def test_contender_is_written_as_people_write_it() -> None:
    contender = Contender("fs", "triton", (("ratio", 0.0625), ("position", "shared")))
    assert contender.id == "fs[ratio=1/16,position=shared]@triton"
    assert Contender("bn", "aten").id == "bn@aten"


RATIO = Param("ratio", "ratio", 0.0625, "share of values")


@pytest.mark.parametrize(("given", "value"), [("1/16", 0.0625), (0.25, 0.25), ("1", 1.0)])
def test_ratio_is_read(given: object, value: float) -> None:
    assert RATIO.check(given, "fs") == value


@pytest.mark.parametrize("given", [0, 2, -0.5, "1/0", "x", True, None])
def test_bad_ratio_names_owner_and_parameter(given: object) -> None:
    with pytest.raises(InvalidParameter, match=r"fs: parameter ratio"):
        RATIO.check(given, "fs")


def test_other_kinds_of_parameter() -> None:
    groups = Param("groups", "int", 32, "groups", low=1)
    assert groups.check("16", "gn") == 16
    for bad in (0, 1.5, "many"):
        with pytest.raises(InvalidParameter, match="groups"):
            groups.check(bad, "gn")
    mode = Param("backward", "choice", "exact", "mode", choices=("exact", "sampled"))
    with pytest.raises(InvalidParameter, match="exact, sampled"):
        mode.check("exakt", "bs")
    flag = Param("affine", "bool", True, "γ and b")
    assert flag.check("false", "bn") is False
    with pytest.raises(InvalidParameter):
        flag.check("yes", "bn")


def test_unknown_parameter_names_the_known_ones() -> None:
    normalizer = Normalizer("fs", "", "", "", {}, (RATIO,))
    assert normalizer.resolve({}) == {"ratio": 0.0625}
    with pytest.raises(InvalidParameter, match="it has ratio"):
        normalizer.resolve({"ration": 1})
