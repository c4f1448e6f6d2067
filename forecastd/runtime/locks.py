"""Locks between processes, which the kernel releases when their process ends, even after `kill -9`."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket
from pathlib import Path
from threading import Event

from forecastd.clock import Clock
from forecastd.errors import NeedsHuman, RetryLater

RETRY_SECONDS = 0.1  # between two attempts to take a lock


class FileLock:
    """A lock on a file, which the kernel releases when the process ends. Use as a context manager.

    It is a file and not an abstract socket as in `WalletLock`: two containers that share a directory see the same file.
    """

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


class WalletLock:
    """The right to sign with one wallet on one chain, on this host, whatever the state directory. Use as a context manager.

    It is a name in the kernel's abstract socket space: it exists as long as its process and leaves no file behind.
    """

    def __init__(self, chain_id: str, wallet: str, clock: Clock, *, timeout_seconds: float = 5.0) -> None:
        """Take the lock, waiting up to `timeout_seconds` for another process to release it.

        Raises:
            RetryLater: another process on this host uses this wallet.
        """
        name = hashlib.sha256(f"{chain_id} {wallet}".encode()).hexdigest()[:32]
        deadline = clock.monotonic() + timeout_seconds
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        pause_event = Event()
        while True:
            try:
                self._socket.bind(f"\0forecastd-{name}")
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return
            if clock.monotonic() >= deadline:
                self._socket.close()
                raise RetryLater(
                    f"Another forecastd process on this host uses {wallet} on {chain_id}. Stop it first: only one process "
                    "may use a wallet."
                )
            pause_event.wait(RETRY_SECONDS)

    def close(self) -> None:
        """Release the lock."""
        self._socket.close()

    def __enter__(self) -> WalletLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
