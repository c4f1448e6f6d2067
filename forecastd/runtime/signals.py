"""Signals: a handler only queues the signal and wakes the main loop, which acts on it.

Invariant: a handler takes no lock, not even an Event's, because it runs between two instructions of the main thread,
which may hold any lock. The loop therefore waits on a socket that the interpreter writes to.
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

from forecastd.errors import ExitCode

HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
INTERRUPT_MESSAGE = (
    b"Interrupted again: exiting now. Signed submissions are in the ledger; the next start resumes them.\n"
)


class SignalQueue:
    """Signals that have arrived and are not handled yet. Create and use it in the main thread, inside `handled`."""

    def __init__(self, interrupt_message: bytes = INTERRUPT_MESSAGE) -> None:
        """`interrupt_message`: written to stderr when a second SIGINT ends the process immediately."""
        self._queue: deque[int] = deque(maxlen=64)
        self._interrupt_message = interrupt_message
        self._interrupted = False
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    @contextlib.contextmanager
    def handled(self) -> Iterator[SignalQueue]:
        """Install the handlers while the block runs. SIGPIPE is ignored: a broken pipe is an error of the write."""
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
                os._exit(ExitCode.INTERRUPTED)
            self._interrupted = True
        self._queue.append(number)

    def wait(self, seconds: float) -> list[int]:
        """Return the signals that have arrived. Waits up to `seconds` when there are none."""
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
        """Make `wait` return now. Thread-safe."""
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")
