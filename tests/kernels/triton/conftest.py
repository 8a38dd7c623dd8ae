"""Tests that run kernels need Triton's interpreter, which is chosen before triton is imported:
they are collected only in the processes that test_in_the_interpreter.py starts."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
