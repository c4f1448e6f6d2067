"""Locks between processes, which the kernel releases when their process ends, even after `kill -9`."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Event

from forecastd.clock import Clock
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.runtime.closeable import Closeable

RETRY_SECONDS = 0.1  # between two attempts to take a lock


class FileLock(Closeable):
    """A lock on a file.

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
        if not _wait_for(lambda: try_lock(self._descriptor), clock, timeout):
            self.close()
            raise RetryLater(
                f"Another forecastd fleet uses {path.parent}. Stop it first, or set another STATE_DIR for this one."
            )

    def close(self) -> None:
        os.close(self._descriptor)


class WalletLock(Closeable):
    """The right to sign with one wallet on one chain, on this host, whatever the state directory.

    It is a name in the kernel's abstract socket space: it exists as long as its process and leaves no file behind.
    """

    def __init__(self, chain_id: str, wallet: str, clock: Clock, *, timeout: float = 5.0) -> None:
        """Take the lock, waiting up to `timeout` seconds for another process to release it.

        Raises:
            RetryLater: another process on this host uses this wallet.
        """
        self._name = f"\0forecastd-{hashlib.sha256(f'{chain_id} {wallet}'.encode()).hexdigest()[:32]}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if not _wait_for(self._try_bind, clock, timeout):
            self.close()
            raise RetryLater(
                f"Another forecastd process on this host uses {wallet} on {chain_id}. Stop it first: only one process may "
                "use a wallet."
            )

    def _try_bind(self) -> bool:
        try:
            self._socket.bind(self._name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        return True

    def close(self) -> None:
        self._socket.close()


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file without waiting, for as long as it is open; return whether that worked."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for(take: Callable[[], bool], clock: Clock, timeout: float) -> bool:
    """Call `take` until it returns true or `timeout` seconds have passed; return whether it did."""
    end, pause = clock.monotonic() + timeout, Event()
    while not take():
        if clock.monotonic() >= end:
            return False
        pause.wait(RETRY_SECONDS)
    return True
