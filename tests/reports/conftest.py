"""A made-up run of realistic shape: two layers, six batch sizes, twelve contenders."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sbnbench.model import (
    DIRECTIONS,
    Block,
    Contender,
    ErrorOptions,
    Estimate,
    LatencyOptions,
    Plan,
    Record,
    Workload,
)

BATCHES = (1, 2, 4, 8, 16, 32)
LAYERS = (("real:_blocks.3._bn1", 144, (28, 28)), ("real:_blocks.9._bn1", 672, (14, 14)))
BASELINE = Contender("bn", "aten")
RATIO = (("ratio", 1 / 16),)
CONTENDERS = (
    BASELINE,
    Contender("bn", "eager"),
    Contender("bn", "inductor"),
    Contender("fs", "eager", RATIO),
    Contender("fs", "inductor", RATIO),
    Contender("fs", "inductor", (("ratio", 1 / 4), ("backward", "sampled"))),
    Contender("bs", "inductor", (("ratio", 1 / 8),)),
    Contender("ns", "eager", RATIO),
    Contender("vdn", "inductor", (("num_virtual", 1),)),
    Contender("gn", "aten", (("groups", 32),)),
    Contender("brn", "eager"),
    Contender("ghost", "eager", (("size", 4),)),
)
SPEED = dict(zip(CONTENDERS, (1, 0.42, 1.02, 0.61, 1.38, 1.17, 1.31, 0.2, 0.9, 0.97, 0.33, 0.5),
                 strict=True))  # fmt: skip
SMALL = ("bn@aten", "bn@eager", "fs[ratio=1/16]@inductor", "gn[groups=32]@aten", "brn@eager")
SHARE = {"bn": 1.0, "fs": 1 / 16, "bs": 1 / 8, "ns": 1 / 16, "vdn": 0.02, "brn": 1.0, "ghost": 0.3}


@dataclass
class Run:
    plan: Plan
    environment: dict[str, Any]
    records: list[Record]
    path: Path | None = None
    problems: list[str] = field(default_factory=list)


def make_run(
    contenders: tuple[Contender, ...] = CONTENDERS,
    batches: tuple[int, ...] = BATCHES,
    seed: int = 1,
) -> Run:
    draw = random.Random(seed)
    blocks = tuple(
        Block(
            Workload(source, batch, channels, spatial, seed=7),
            contenders,
            BASELINE,
            ("latency", "error"),
            DIRECTIONS,
            LatencyOptions(),
            ErrorOptions(),
        )
        for batch in batches
        for source, channels, spatial in LAYERS
    )
    records = [r for b in blocks for c in contenders for r in _records(b, c, draw)]
    plan = Plan("micro-batch", "Norms at micro-batch sizes", "Two layers of EfficientNet-Lite0, "
                "batch 1 to 32, forward, backward and both.", 7, blocks)  # fmt: skip
    return Run(plan, ENVIRONMENT, records, Path("runs/2025-06-12-micro-batch"), [])


def _records(block: Block, contender: Contender, draw: random.Random) -> list[Record]:
    common: dict[str, Any] = {
        "block": block.id,
        "contender": contender.id,
        "workload": block.workload,
        "baseline": block.baseline.id,
    }
    status, reason = _failure(block.workload, contender)
    if status != "ok":
        return [
            *(Record(measure="latency", direction=d, status=status, reason=reason, **common)
              for d in DIRECTIONS),
            Record(measure="error", status=status, reason=reason, **common),
        ]  # fmt: skip
    records = [_latency(block.workload, contender, d, draw, common) for d in DIRECTIONS]
    if contender.normalizer in SHARE:
        records.append(_error(block.workload, contender, draw, common))
    else:
        records.append(
            Record(measure="error", status="not-applicable",
                   reason=f"{contender.normalizer} does not estimate batch statistics", **common)
        )  # fmt: skip
    return records


def _failure(workload: Workload, contender: Contender) -> tuple[Any, str]:
    match contender.normalizer:
        case "gn" if workload.channels == 144:
            return "not-applicable", "144 channels are not divisible into 32 groups"
        case "ghost" if workload.batch < 4:
            return "not-applicable", f"batch {workload.batch} is smaller than one sub-batch of 4"
        case "brn" if workload.channels == 672 and workload.batch >= 16:
            return (
                "failed-verification",
                "dx differs from float64 by 3.1e-2 of its RMS (limit 1e-5)",
            )
        case "ns" if workload.batch == 32:
            return "timeout", "no result within 120 s"
        case "vdn" if workload.batch == 1 and workload.channels == 672:
            return "error", "RuntimeError: Inductor failed at <lambda>: 'NoneType' & 'Tensor'"
    return "ok", ""


def _latency(w: Workload, c: Contender, direction: Any, draw: random.Random,
             common: dict[str, Any]) -> Record:  # fmt: skip
    elements = math.prod(w.shape)
    base = {"fwd": 0.9, "bwd": 1.5, "fwd_bwd": 2.4}[direction] * (12e-6 + elements * 0.35e-9)
    small = 1 / (1 + math.log2(w.batch))  # launch overhead eats the gain at small batches
    log_ratio = math.log(SPEED[c]) * (1 - 0.7 * small) - 0.15 * small * (c.backend != "aten")
    log_ratio += {"fwd": 0.05, "bwd": -0.06, "fwd_bwd": 0}[direction] * (c is not BASELINE)
    half = abs(draw.gauss(0.012, 0.015)) + 0.004
    value = math.exp(log_ratio + draw.gauss(0, half / 2))
    notes = [] if half < 0.02 else [f"precision 1 % not reached: ±{100 * half:.2g} %"]
    if c.normalizer == "bs" and w.batch < 8:
        notes.append("degenerate: ratio 1/8 of this batch is one whole sample")
    ratio = Estimate(value, value * math.exp(-half), value * math.exp(half))
    pairs = [[base / value * draw.lognormvariate(0, 0.05) for _ in range(6)] for _ in range(3)]
    return Record(
        measure="latency",
        direction=direction,
        status="ok",
        estimates={
            "time": Estimate(base / value, base / value * 0.98, base / value * 1.03, "s"),
            "ratio": ratio,
            "baseline_time": Estimate(base, base * 0.98, base * 1.03, "s"),
        },
        samples={"time": pairs, "baseline": [[base] * 6 for _ in range(3)]},
        facts={
            "loops": [8, 8, 8],
            "verification": {"y": 2.1e-6, "dx": 3.4e-6},
            **({"sampled_share": SHARE[c.normalizer]} if c.normalizer in SHARE else {}),
        },
        notes=tuple(notes),
        **common,
    )


def _error(w: Workload, c: Contender, draw: random.Random, common: dict[str, Any]) -> Record:
    estimates = {}
    own = SHARE[c.normalizer]
    if c.normalizer == "fs" and len(c.params) > 1:
        own = 1 / 4
    n = w.batch * math.prod(w.spatial)
    batch = 0.0 if own == 1 else 2.5 * math.sqrt((1 / own - 1) / n) * draw.uniform(0.9, 1.1)
    population = math.hypot(batch, 1.1 / math.sqrt(w.batch) * draw.uniform(0.97, 1.03))
    for against, size in (("batch", batch), ("population", population)):
        for moment, factor in (("mean", 0.6), ("var", 1.4)):
            for quantile, spread in (("median", 0.67), ("p95", 2.0)):
                value = size * factor * spread
                estimates[f"{moment}_{against}_{quantile}"] = Estimate(
                    value, value * 0.94, value * 1.06
                )
    return Record(measure="error", status="ok", estimates=estimates, **common)


ENVIRONMENT: dict[str, Any] = {
    "date": "2025-06-12T10:21:07+00:00",
    "command": "sbnbench run --suite micro-batch -a 'batch=[pow2]1:32' --seed 7",
    "machine": {
        "system": "Linux 6.8.0",
        "architecture": "x86_64",
        "cpu": "AMD EPYC 7B13",
        "cores": 2,
        "usable_cores": 2,
        "memory_bytes": 16777216000,
        "load_average": [0.31, 0.4, 0.52],
    },
    "gpus": [{"index": 0, "name": "NVIDIA L4", "memory_bytes": 24152899584, "driver": "570.1"}],
    "versions": {"python": "3.11.9", "sbnbench": "0.1.0", "torch": "2.13.0", "triton": "3.7.1"},
    "commit": "171e3b8d0f1a+changes",
    "threads": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": None},
}


@pytest.fixture(scope="session")
def run() -> Run:
    return make_run()


@pytest.fixture(scope="session")
def small() -> Run:
    """Five contenders at two batch sizes, quick to draw."""
    chosen = tuple(c for c in CONTENDERS if c.id in SMALL)
    return make_run(chosen, (4, 16))
