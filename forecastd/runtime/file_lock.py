"""The right of one process to write a fleet's state: a lock on a file beside it, gone with its process.

A lock and not a name in the kernel, as the wallets' lease is: two containers that share a directory see the same file.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from threading import Event

from forecastd.clock import Clock
from forecastd.errors import NeedsHuman, RetryLater

LOCK_NAME = "serve.lock"  # in the state directory of a fleet
RETRY_SECONDS = 0.1


class FileLock:
    """Held from when it is made until `close`. Use as a context manager."""

    def __init__(self, path: Path, clock: Clock, *, timeout: float = 5.0) -> None:
        """Take the lock on the file at `path`, made when absent, waiting up to `wait` seconds for another process to end.

        Raises:
            RetryLater: another process has it.
            NeedsHuman: the file cannot be made.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise NeedsHuman(f"{path} cannot be made: {error.strerror}. Set STATE_DIR to a writable place.") from error
        end = clock.monotonic() + timeout
        pause = Event()
        while not self._try_lock():
            if clock.monotonic() >= end:
                os.close(self._descriptor)
                raise RetryLater(
                    f"Another forecastd fleet works in {path.parent}. One at a time: stop the other first, or give this one "
                    "another STATE_DIR."
                )
            pause.wait(RETRY_SECONDS)

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Give it back."""
        os.close(self._descriptor)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
