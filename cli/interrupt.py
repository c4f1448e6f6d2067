"""Ctrl-C once: the first one ends the command, those after it are for nothing.

A user who presses it again while checkpoints are put away, or while the interpreter ends, would otherwise get a traceback
or another exit code than the one that says "interrupted".
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Raise `KeyboardInterrupt` at the first Ctrl-C; ignore it from then on, after the block too."""
    interrupted = False

    def stop(_: int, __: FrameType | None) -> None:
        nonlocal interrupted
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if not interrupted:  # a library may have put this handler back
            interrupted = True
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN if interrupted else before)
