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

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
AT_ONCE = 130  # the exit code of a second SIGINT
LAST_WORDS = b"Interrupted again: ending at once. What is signed is on record, the next start goes on with it.\n"


class Signals:
    """The signals that arrived. Made and used in the main thread, between `caught`."""

    def __init__(self, last_words: bytes = LAST_WORDS) -> None:
        """`last_words`: what is said when a second SIGINT ends the process at once."""
        self._arrived: deque[int] = deque(maxlen=64)
        self._last_words = last_words
        self._interrupted = False
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)

    @contextlib.contextmanager
    def caught(self) -> Iterator[Signals]:
        """Handle the signals while the block runs. SIGPIPE is ignored: a broken pipe is an error of its write."""
        before = {number: signal.signal(number, self._put_down) for number in HANDLED}
        before[signal.SIGPIPE] = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        wakeup = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        try:
            yield self
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._ours.close()
            self._theirs.close()

    def _put_down(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                os.write(2, self._last_words)
                os._exit(AT_ONCE)
            self._interrupted = True
        self._arrived.append(number)

    def wait(self, seconds: float) -> list[int]:
        """The signals that have arrived, at once when there are any, else after `seconds` at the most."""
        if not self._arrived:
            select.select([self._ours], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            while self._ours.recv(64):
                pass
        found = []
        while self._arrived:
            found.append(self._arrived.popleft())
        return found

    def wake(self) -> None:
        """Have `wait` end now. Any thread."""
        with contextlib.suppress(OSError):
            self._theirs.send(b"\0")
