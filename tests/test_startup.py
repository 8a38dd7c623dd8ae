"""What must be quick is quick, and does not import torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LIMIT = 0.35
"""Seconds a user waits for `--help` and `list`."""

COMMANDS = (["--help"], ["list"], ["run", "--help"], ["list", "normalizers", "--json"])


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_quick_commands_do_not_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from sbnbench import cli\n"
        f"sys.argv = ['sbnbench', *{arguments}]\n"
        "try: cli.main()\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = [m for m in ('torch', 'scipy', 'matplotlib', 'numpy') if m in sys.modules]\n"
        "print('HEAVY', heavy, 'CODE', code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "HEAVY [] CODE 0", done.stdout + done.stderr


@pytest.mark.parametrize("arguments", COMMANDS[:2], ids=" ".join)
def test_quick_commands_are_quick(arguments: list[str]) -> None:
    def once() -> float:
        # processor time: the command waits for nothing, and the machine may be busy with others
        before = os.times()
        subprocess.run(
            [sys.executable, "-m", "sbnbench", *arguments], stdout=subprocess.DEVNULL, check=True
        )
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4])

    assert min(once() for _ in range(5)) <= LIMIT
