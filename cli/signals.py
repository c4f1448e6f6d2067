"""Ctrl-C once: the first one ends the command, those after it interrupt nothing.

A user who presses it again while checkpoints are put away, or while the interpreter ends, would otherwise get a traceback
or another exit code than the one that says "interrupted". Who waits for something meanwhile can ask whether it was pressed
again.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptCounter:
    """How often the command was interrupted."""

    def __init__(self) -> None:
        self.count = 0

    def is_repeated(self) -> bool:
        """Whether it was more than once."""
        return self.count > 1


@contextmanager
def single_interrupt(*signals: signal.Signals) -> Iterator[InterruptCounter]:
    """Raise `KeyboardInterrupt` at the first of these signals (Ctrl-C alone by default), and only count those after it.

    Once one came, they are ignored after the block, too.
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
