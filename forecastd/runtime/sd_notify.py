"""Notify the service manager with the sd_notify protocol: ready, watchdog, reloading, stopping, and a status line.

A message is a datagram, sent without waiting. If the manager's queue is full, the message is kept and sent before the
next one, so READY cannot be lost while watchdog pings follow.

Invariant: nothing here raises; the daemon works without a service manager.

Protocol: sd_notify(3), https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html.
"""

from __future__ import annotations

import logging
import os
import socket
import threading

_MAX_STATUS_CHARACTERS = 500  # of up to 4 bytes each; a manager drops messages longer than its 4096-byte buffer
_log = logging.getLogger(__name__)


class SystemdNotifier:
    """Reports the state of this process to the service manager at `address` (`NOTIFY_SOCKET`), if there is one.

    `address`: a path, or `@name` for a socket in Linux's abstract namespace. The methods are thread-safe.
    """

    def __init__(self, address: str | None) -> None:
        self._address = _kernel_address(address) if address else None
        self._pending: dict[str, str] = {}
        self._lock = threading.Lock()
        if address and self._address is None:
            _log.warning(
                "Ignored NOTIFY_SOCKET: it is not a path or an abstract name. The service manager gets no messages."
            )

    def ready(self, status: str) -> None:
        """Report that the start or a reload is complete."""
        self._notify({"READY": "1", "STATUS": status})

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        self._notify({"STATUS": text})

    def watchdog(self) -> None:
        """Ping the watchdog. Without a ping for the watchdog time, the manager restarts the process."""
        self._notify({"WATCHDOG": "1"})

    def reloading(self, monotonic_usec: int) -> None:
        """Report that a reload starts; `ready` ends it. `monotonic_usec`: monotonic time now, in microseconds."""
        self._notify({"RELOADING": "1", "MONOTONIC_USEC": str(monotonic_usec)})

    def stopping(self, status: str) -> None:
        """Report that the shutdown has started."""
        self._notify({"STOPPING": "1", "STATUS": status})

    def _notify(self, assignments: dict[str, str]) -> None:
        if self._address is None:
            return
        with self._lock:
            unsent = {name: value for name, value in self._pending.items() if name not in assignments}
            pending = unsent | assignments  # ordered by last assignment: of READY and RELOADING, the later one wins
            lines = [f"{name}={_to_single_line(value)}" for name, value in pending.items()]
            self._pending = {} if _send(self._address, "\n".join(lines).encode("utf-8", "replace")) else pending


def watchdog_interval(watchdog_usec: int | None, watchdog_pid: int | None, own_pid: int) -> float | None:
    """Seconds between watchdog pings: half of the manager's timeout. None: it expects no pings from this process.

    `watchdog_usec`, `watchdog_pid`: the values that the manager set; without a pid they apply to any process.
    """
    if watchdog_usec is None or watchdog_pid not in {None, own_pid}:
        return None
    return watchdog_usec / 2 / 1_000_000


def _kernel_address(address: str) -> bytes | None:
    """The address as the kernel expects it: an abstract name starts with a NUL byte. None: an unsupported kind."""
    if address.startswith("@"):
        return b"\0" + os.fsencode(address[1:])
    return os.fsencode(address) if address.startswith("/") else None


def _to_single_line(value: str) -> str:
    """Remove newlines, which would start another assignment, and NUL bytes, which make a manager ignore the message."""
    text = "".join(character if character.isprintable() else " " for character in value[:_MAX_STATUS_CHARACTERS])
    return " ".join(text.split())


def _send(address: bytes, message: bytes) -> bool:
    """Send without waiting; return whether the manager received the message."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.sendto(message, address)
    except OSError as error:
        _log.debug("Cannot notify the service manager: %s.", error.strerror or error)
        return False
    return True
