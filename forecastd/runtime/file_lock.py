"""A lock on a file, which the kernel releases when the process ends.

It is a file and not an abstract socket as in `WalletLock`: two containers that share a directory see the same file.
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
    """Held from creation until `close`. Use as a context manager."""

    def __init__(self, path: Path, clock: Clock, *, timeout: float = 5.0) -> None:
        """Lock the file at `path`, creating it if needed; wait up to `timeout` seconds for another process to release
        it.

        Raises:
            RetryLater: another process has the lock.
            NeedsHuman: the file cannot be created.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise NeedsHuman(
                f"Cannot create {path}: {error.strerror}. Set STATE_DIR to a writable directory."
            ) from error
        end = clock.monotonic() + timeout
        pause = Event()
        while not self._try_lock():
            if clock.monotonic() >= end:
                os.close(self._descriptor)
                raise RetryLater(
                    f"Another forecastd fleet uses {path.parent}. Stop it first, or set another STATE_DIR for this one."
                )
            pause.wait(RETRY_SECONDS)

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
