"""One worker a wallet on a host, whatever their state directories are.

A lease is a name in the kernel's abstract socket space: it is there as long as its process lives and gone with it, also
after `kill -9`, and leaves no file behind.
"""

from __future__ import annotations

import errno
import hashlib
import socket
from threading import Event

from forecastd.clock import Clock
from forecastd.errors import RetryLater

RETRY_SECONDS = 0.1


class WalletLock:
    """The right to sign with one wallet on one chain. Use as a context manager: leaving gives it back."""

    def __init__(self, chain_id: str, wallet: str, clock: Clock, *, timeout_seconds: float = 5.0) -> None:
        """Take the lease, waiting up to `wait` seconds for another process to give it back.

        Raises:
            RetryLater: another process on this host works with this wallet.
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
                    f"Another forecastd on this host works with {wallet} on {chain_id}. One process a wallet; "
                    "stop the other first."
                )
            pause_event.wait(RETRY_SECONDS)

    def close(self) -> None:
        """Give the lease back."""
        self._socket.close()

    def __enter__(self) -> WalletLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
