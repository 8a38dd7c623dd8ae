"""Two versions of the user's project side by side: the working tree and a revision of it.

Both are installed, without their dependencies, into temporary folders of their own; a worker sees
one of them first on its path. The harness itself, `sbnbench`, is the running one on both sides:
what is compared are contenders, not the way they are measured.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sbnbench
from sbnbench.errors import UsageError

HARNESS = "sbnbench"
_TAIL = 3


@contextmanager
def side_by_side(revision: str, folder: Path) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Environments for workers of the working tree and of `revision`.

    `folder` lies in the user's git repository. The checkout is a git worktree in a temporary
    folder, removed afterwards. UsageError where the revision does not exist or does not install.
    """
    top = Path(
        _git(folder, "rev-parse", "--show-toplevel", wrong=f"{folder} is in no git checkout")
    )
    commit = _git(
        top,
        *("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"),
        wrong=f"--against {revision}: no such revision in {top}",
    )
    with tempfile.TemporaryDirectory(prefix="sbnbench-gate-") as name:
        base = Path(name)
        checkout = base / "checkout"
        _git(top, "worktree", "add", "--quiet", "--detach", str(checkout), commit,
             wrong=f"--against {revision}: cannot be checked out")  # fmt: skip
        try:
            new = _installed(top, base / "new", "the working tree")
            old = _installed(checkout, base / "old", f"revision {revision}")
            yield new, old
        finally:
            subprocess.run(
                ["git", "-C", str(top), "worktree", "remove", "--force", str(checkout)],
                capture_output=True,
            )


def _installed(project: Path, site: Path, what: str) -> dict[str, str]:
    """Install a project into `site`; the environment in which it is found first."""
    if not (project / "pyproject.toml").exists() and not (project / "setup.py").exists():
        raise UsageError(f"{what} has no pyproject.toml: there is nothing to install")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps",
           "--disable-pip-version-check", "--target", str(site), str(project)]  # fmt: skip
    # The build backend of the running environment if it has it, else one of pip's own.
    for isolation in (["--no-build-isolation"], []):
        done = subprocess.run([*pip, *isolation], capture_output=True, text=True)
        if done.returncode == 0:
            break
    else:
        words = "\n".join(done.stderr.strip().splitlines()[-_TAIL:])
        raise UsageError(f"{what} does not install:\n{words}")
    if (site / HARNESS).exists():  # sbnbench gated by itself
        shutil.rmtree(site / HARNESS)
        running = Path(sbnbench.__file__).resolve().parent
        (site / HARNESS).symlink_to(running, target_is_directory=True)
    before = os.environ.get("PYTHONPATH")
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(site), before])),
        "PYTHONSAFEPATH": "1",  # the folder that the gate is called in must not come first
    }


def _git(folder: Path, *arguments: str, wrong: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True
        )
    except OSError as error:
        raise UsageError(f"git is needed for --against: {error}") from error
    if done.returncode:
        raise UsageError(f"{wrong}{f': {done.stderr.strip()}' if done.stderr.strip() else ''}")
    return done.stdout.strip()
