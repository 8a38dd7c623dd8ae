"""What `sbnbench doctor` shows, as plain data. No torch."""

from __future__ import annotations

from typing import Any

from sbnbench import environment
from sbnbench.registry import normalizers
from sbnbench.suites import suites


def collect() -> dict[str, Any]:
    """The machine, and for each backend, extra and plug-in what is missing."""
    return {
        "environment": environment.describe(),
        "backends": environment.backends(),
        "extras": environment.extras(),
        "plug-ins that did not load": {**normalizers().problems, **suites().problems},
    }
