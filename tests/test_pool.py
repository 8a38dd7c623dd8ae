"""What the worker process is started with."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from sbnbench.pool import KEPT_MEMORY

SCRIPT = """
import resource, torch

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(2):
        y = torch.empty(1 << 24).fill_(1)  # 64 MB: 16384 pages
        dx = torch.empty(1 << 24).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

page_faults()
page_faults()
print(page_faults())
"""


def page_faults(**environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_large_outputs_find_memory_that_was_used_before() -> None:
    default, kept = page_faults(), page_faults(**KEPT_MEMORY)
    assert default > 30  # 128 where pages are huge
    assert kept < default / 10
