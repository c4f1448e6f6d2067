"""Handles Ctrl-C: the first one ends the command, later ones are only counted.

Otherwise a second Ctrl-C, while checkpoints are written or the interpreter exits, would cause a traceback or another exit
code than "interrupted". Code that waits in the meantime can ask whether Ctrl-C was repeated.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptCounter:
    """Counts the interrupts of a command."""

    def __init__(self) -> None:
        self.count = 0

    def is_repeated(self) -> bool:
        """Whether there was more than one."""
        return self.count > 1


@contextmanager
def single_interrupt(*signals: signal.Signals) -> Iterator[InterruptCounter]:
    """Raise `KeyboardInterrupt` at the first of these signals (by default SIGINT), and only count later ones.

    After an interrupt, the signals stay ignored after the block too.
    """
    interrupts = InterruptCounter()

    def stop(_: int, __: FrameType | None) -> None:
        interrupts.count += 1
        if interrupts.count == 1:
            raise KeyboardInterrupt

    previous_handlers = {number: signal.signal(number, stop) for number in signals or (signal.SIGINT,)}
    try:
        yield interrupts
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, signal.SIG_IGN if interrupts.count else handler)
