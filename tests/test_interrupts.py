"""An interrupt that Python drops in a destructor still stops a run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import sbnbench as package
from sbnbench.interrupts import remembered
from sbnbench.model import Block, Record
from sbnbench.observer import Observer
from sbnbench.store import load


class Interrupted:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_in_a_destructor_is_remembered() -> None:
    with remembered() as stop_if_asked:
        stop_if_asked()
        del (made := {"one": Interrupted()})["one"]
        assert not made
        with pytest.raises(KeyboardInterrupt):
            stop_if_asked()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_outside_a_destructor_is_raised_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), remembered():
        os.kill(os.getpid(), signal.SIGINT)


def test_somebody_elses_handler_stays() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with remembered() as stop_if_asked:
            os.kill(os.getpid(), signal.SIGINT)
            stop_if_asked()
        assert heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


SUITE = """
title = "T"
contenders = ["bn@aten", "bn@eager"]
measures = ["error"]
[axes]
input = ["synthetic:4x4x4"]
batch = [2, 3, 4]
"""


class Swallowing(Observer):
    """Drops an interrupt at the end of the first block."""

    def block_done(self, block: Block, records: list[Record], seconds: float) -> None:
        Interrupted()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_stops_before_its_next_block(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SUITE)
    with pytest.raises(KeyboardInterrupt):
        package.run(str(tmp_path / "s.toml"), out=tmp_path / "out", observer=Swallowing())
    assert len(load(tmp_path / "out").missing()) == 2
