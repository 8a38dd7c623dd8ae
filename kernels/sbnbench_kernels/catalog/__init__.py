"""Every built-in normalizer, as lazy registrations. No torch here."""

from __future__ import annotations

from sbnbench.model import Normalizer
from sbnbench_kernels.catalog import beyond, grouped, peers, sampled

NORMALIZERS: tuple[Normalizer, ...] = (
    sampled.NORMALIZERS + grouped.NORMALIZERS + peers.NORMALIZERS + beyond.NORMALIZERS
)
