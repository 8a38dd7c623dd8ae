"""Ctrl-C that is not lost.

Python raises KeyboardInterrupt wherever it happens to be. In a destructor, or in a callback of the
garbage collector, the exception is printed as ignored, and the program goes on as if nobody had
asked it to stop.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def remembered() -> Iterator[Callable[[], None]]:
    """Gives a check that raises KeyboardInterrupt if there was an interrupt since the beginning.

    Does nothing outside the main thread, or where somebody else handles interrupts.
    """
    seen: list[int] = []

    def check() -> None:
        if seen:
            raise KeyboardInterrupt

    def handler(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
