from __future__ import annotations

import pytest

from sbnbench.errors import UsageError
from sbnbench.keywords import match, names
from sbnbench.model import Contender


@pytest.mark.parametrize(
    ("expression", "text", "wanted"),
    [
        ("", "anything", True),
        ("fs", "fs@eager", True),
        ("not fs", "fs@eager", False),
        ("fs and not shared", "fs[position=shared]", False),
        ("a or b and c", "a", True),
        ("(a or b) and c", "a", False),
        ("batch=4 and bn@aten", "real:x batch=4 float32 bn@aten", True),
    ],
)
def test_expression(expression: str, text: str, wanted: bool) -> None:
    assert match(expression, text) is wanted


@pytest.mark.parametrize("expression", ["and", "(fs", "fs)", "not", "fs or", "fs gn"])
def test_bad_expression(expression: str) -> None:
    with pytest.raises(UsageError, match="-k"):
        match(expression, "fs")


def test_names() -> None:
    contender = Contender("fs", "eager", (("ratio", 0.25),))
    for pattern in ("fs", "fs[ratio=1/4]", "fs[ratio=1/4]@eager", "@eager", "f*", "*@eager"):
        assert names(pattern, contender), pattern
    for pattern in ("f", "fs@eager", "@aten", "bs*"):
        assert not names(pattern, contender), pattern
