"""Hand-written Triton kernels, and ops made of them.

This package can be imported anywhere. `availability()` says whether it can run here; taking an
op from it without Triton raises `errors.Unavailable` with the reason and the remedy.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from sbnbench.errors import Unavailable

OPS = {
    "BatchNorm": "box_ops",
    "NaiveSampling": "box_ops",
    "BatchSampling": "box_ops",
    "FeatureSampling": "box_ops",
    "VirtualDataset": "box_ops",
    "BatchSamplingVirtual": "box_ops",
    "FeatureSamplingVirtual": "box_ops",
    "GroupNorm": "segment_ops",
    "LayerNorm": "segment_ops",
    "InstanceNorm": "segment_ops",
    "GhostBatchNorm": "segment_ops",
    "BatchRenorm": "channel_ops",
    "ExtendedBatchNorm": "channel_ops",
    "L1BatchNorm": "channel_ops",
    "RangeBatchNorm": "channel_ops",
    "SwitchableNorm": "mixed_ops",
    "BatchChannelNorm": "mixed_ops",
    "FilterResponseNorm": "activated_ops",
    "EvoNormS0": "activated_ops",
    "EvoNormB0": "activated_ops",
}
"""Each op and the module of this package that has it."""

MINIMUM_CAPABILITY = (8, 0)
"""bfloat16 loads and the arithmetic on them start with sm_80."""


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors. Read before triton is."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def missing() -> str | None:
    """Why Triton cannot be imported here, with the remedy; None where it can."""
    if not sys.platform.startswith("linux"):
        return f"Triton has no wheel for {sys.platform}; use the backend inductor or aten here"
    if find_spec("triton") is None:
        return "the package triton is not installed; `pip install 'triton>=3.6'`"
    return None


@cache
def availability() -> str | None:
    """Why this backend cannot run on this machine, with the remedy; None where it can."""
    if missing() or interpreted():
        return missing()
    import torch

    if not torch.cuda.is_available():
        return (
            "no CUDA device is visible to PyTorch; install a CUDA build of torch and a driver, or "
            "set TRITON_INTERPRET=1 to check (never to time) the kernels on the CPU"
        )
    return too_old(torch.cuda.current_device())


@cache
def too_old(device: int) -> str | None:
    """Why the CUDA device of this index is refused; None where it will do."""
    import torch

    have = torch.cuda.get_device_capability(device)
    if have >= MINIMUM_CAPABILITY:
        return None
    name = torch.cuda.get_device_name(device)
    return (
        f"{name} has compute capability {have[0]}.{have[1]}; the kernels need 8.0 (A100) or "
        "newer; use the backend aten on it"
    )


def __getattr__(name: str) -> Any:
    if name not in OPS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    reason = missing()
    if reason:
        raise Unavailable(f"backend triton: {reason}")
    return getattr(import_module(f"{__name__}.{OPS[name]}"), name)
