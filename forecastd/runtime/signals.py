"""Signals: a handler only puts the signal down and wakes the main loop; what is to be done is done there.

A handler runs between two instructions of the main thread, which may be holding any lock, so it must take none: not an
Event's either. The loop therefore waits on a socket that the interpreter writes to.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections import deque
from collections.abc import Iterator
from types import FrameType

HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
SECOND_INTERRUPT_EXIT_CODE = 130  # the exit code of a second SIGINT
INTERRUPT_MESSAGE = b"Interrupted again: ending at once. What is signed is on record, the next start goes on with it.\n"


class SignalQueue:
    """The signals that arrived. Made and used in the main thread, between `caught`."""

    def __init__(self, interrupt_message: bytes = INTERRUPT_MESSAGE) -> None:
        """`last_words`: what is said when a second SIGINT ends the process at once."""
        self._queue: deque[int] = deque(maxlen=64)
        self._interrupt_message = interrupt_message
        self._interrupted = False
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    @contextlib.contextmanager
    def handled(self) -> Iterator[SignalQueue]:
        """Handle the signals while the block runs. SIGPIPE is ignored: a broken pipe is an error of its write."""
        previous_handlers = {number: signal.signal(number, self._enqueue) for number in HANDLED_SIGNALS}
        previous_handlers[signal.SIGPIPE] = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        previous_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        try:
            yield self
        finally:
            signal.set_wakeup_fd(previous_wakeup)
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)
            self._reader.close()
            self._writer.close()

    def _enqueue(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                os.write(2, self._interrupt_message)
                os._exit(SECOND_INTERRUPT_EXIT_CODE)
            self._interrupted = True
        self._queue.append(number)

    def wait(self, seconds: float) -> list[int]:
        """The signals that have arrived, at once when there are any, else after `seconds` at the most."""
        if not self._queue:
            select.select([self._reader], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(64):
                pass
        numbers = []
        while self._queue:
            numbers.append(self._queue.popleft())
        return numbers

    def wake(self) -> None:
        """Have `wait` end now. Any thread."""
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")
