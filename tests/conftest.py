"""Fixtures for all tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from sbnbench import cli


class Finished(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def sbnbench(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Finished]:
    """Runs the command line in this process: exit code, output, errors."""

    def call(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["sbnbench", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return Finished(int(end.value.code or 0), captured.out, captured.err)

    return call
