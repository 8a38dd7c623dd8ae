"""A population of activations that batches are drawn from, kept on disk.

One folder a population: `rows.npy`, (ROWS + VIRTUAL, C, *spatial) float16, the virtual rows last,
and `moments.npy`, (2, ROWS + VIRTUAL, C) float64, each row's mean and biased variance a channel.
With the moments beside it, full statistics of any batch cost a few additions (`statistics`).

A folder appears complete or not at all: it is written under another name and renamed. What a
power cut or a full disk left behind is found on opening, and built again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import platformdirs
import torch
from numpy.typing import NDArray
from torch import Tensor

from sbnbench.errors import Unavailable

ROWS = 256
"""Rows of a population: 256 crops of a 32×112×112 layer are 196 MiB."""
VIRTUAL = 16
"""Virtual rows beside it: the most that a normalizer can ask for."""

Indices = Sequence[int] | NDArray[np.int64]

_ABANDONED = 3600.0
"""Seconds after which an unfinished folder belongs to a process that was killed."""


def cache_folder() -> Path:
    """Where populations are kept: $SBNBENCH_CACHE, or the user's cache folder."""
    return Path(os.environ.get("SBNBENCH_CACHE") or platformdirs.user_cache_dir("sbnbench"))


def disk_bytes(channels: int, spatial: Sequence[int]) -> int:
    """Bytes that a population of this shape takes on disk."""
    return (ROWS + VIRTUAL) * channels * (2 * int(np.prod(spatial)) + 16)


class Population:
    """`ROWS` rows of activations and `VIRTUAL` virtual ones, read from disk as they are asked for.

    `mean` and `var` are μ and the biased σ² of all real rows, (C,) float64.
    """

    def __init__(self, rows: NDArray[np.float16], moments: NDArray[np.float64]) -> None:
        self._rows = rows
        self._moments = torch.from_numpy(moments)
        self.mean, self.var = self.statistics(range(ROWS))

    @property
    def shape(self) -> tuple[int, ...]:
        """(ROWS, C, *spatial)"""
        return (ROWS, *self._rows.shape[1:])

    def rows(self, indices: Indices) -> Tensor:
        """The real rows at `indices` (0 … ROWS−1, repeats allowed), float32 on the CPU."""
        return self._take(np.asarray(indices, dtype=np.int64), ROWS)

    def virtual(self, indices: Indices) -> Tensor:
        """The virtual rows at `indices` (0 … VIRTUAL−1), float32 on the CPU."""
        return self._take(np.asarray(indices, dtype=np.int64), VIRTUAL, start=ROWS)

    def statistics(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Full statistics of the batch made of these rows, (C,) float64.

        μ = mean of row means m_i; σ² = mean of row variances + biased variance of the m_i.
        """
        mean, var = self._moments[:, np.asarray(indices, dtype=np.int64)]
        return mean.mean(0), var.mean(0) + mean.var(0, correction=0)

    def _take(self, indices: NDArray[np.int64], count: int, start: int = 0) -> Tensor:
        if indices.size and not 0 <= indices.min() <= indices.max() < count:
            raise IndexError(f"rows lie in 0 … {count - 1}")
        return torch.from_numpy(self._rows[start + indices]).float()


def open_population(folder: Path, channels: int, spatial: Sequence[int]) -> Population | None:
    """The population in `folder`; None where there is none, or it is not what was written."""
    shape = (ROWS + VIRTUAL, channels, *spatial)
    try:
        rows = np.load(folder / "rows.npy", mmap_mode="r")
        moments = np.load(folder / "moments.npy")
    except (OSError, ValueError, EOFError):
        return None
    if (rows.shape, rows.dtype) != (shape, np.float16) or moments.shape != (2, *shape[:2]):
        return None
    # A file of the right size may still hold pages that were never written.
    spots = [0, ROWS // 3, ROWS - 1, ROWS + VIRTUAL - 1]
    if not np.allclose(row_moments(torch.from_numpy(rows[spots])), moments[:, spots], 1e-6, 1e-9):
        return None
    return Population(rows, moments)


class Writer:
    """Writes one population; a context manager that moves it to `folder` when all went well."""

    def __init__(self, folder: Path, channels: int, spatial: Sequence[int]) -> None:
        self.folder, self.channels, self.spatial = folder, channels, tuple(spatial)

    def __enter__(self) -> Writer:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(self.folder.parent)
        self._temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.folder.parent))
        shape = (ROWS + VIRTUAL, self.channels, *self.spatial)
        self._rows: Any = np.lib.format.open_memmap(
            self._temporary / "rows.npy", mode="w+", dtype=np.float16, shape=shape
        )
        self._moments = np.full((2, *shape[:2]), np.nan)
        return self

    def put(self, start: int, values: Tensor) -> None:
        """Rows `start` and following: (n, C, *spatial) on the CPU. Virtual rows start at ROWS."""
        half = values.to(torch.float16).contiguous()
        stop = start + len(half)
        self._rows[start:stop] = half.numpy()
        self._moments[:, start:stop] = row_moments(half)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._rows.flush()
                np.save(self._temporary / "moments.npy", self._moments)
                self._publish()
        finally:
            self._rows = None
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _publish(self) -> None:
        for _ in range(8):
            try:
                self._temporary.rename(self.folder)
                return
            except OSError:
                # Another process was first, which is as good, or left something broken.
                if open_population(self.folder, self.channels, self.spatial):
                    return
                broken = self._temporary.with_name(self._temporary.name + "-broken")
                with suppress(FileNotFoundError):
                    self.folder.rename(broken)
                shutil.rmtree(broken, ignore_errors=True)
        raise Unavailable(f"{self.folder} cannot be written; set SBNBENCH_CACHE to another folder")


def row_moments(half: Tensor) -> NDArray[np.float64]:
    """Mean and biased variance of each row and channel, (2, n, C)."""
    values = half.reshape(*half.shape[:2], -1).double()
    var, mean = torch.var_mean(values, 2, correction=0)
    return torch.stack((mean, var)).numpy()


def check_space(needed: int) -> None:
    """Unavailable where the disk of the cache folder has less than `needed` bytes free."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise Unavailable(f"cannot write {folder}: {error}; set SBNBENCH_CACHE") from error
    if free < needed:
        raise Unavailable(
            f"the activations need {needed / 2**20:.0f} MiB in {folder}, "
            f"{free / 2**20:.0f} MiB are free; set SBNBENCH_CACHE to another folder"
        )


def _sweep(folder: Path) -> None:
    for path in folder.glob(".writing-*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
