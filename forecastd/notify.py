"""What the service manager is told, by the sd_notify protocol: ready, alive, reloading, stopping, and one line of status.

A message is a datagram, sent without waiting. One that the manager's full queue refuses is owed and goes out in front of the
next one, so a READY cannot be lost as long as watchdog pings follow. Nothing here ever raises: the manager is a convenience.

Protocol: sd_notify(3), https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html.
"""

from __future__ import annotations

import logging
import os
import socket
import threading

_LONGEST_STATUS = (
    500  # characters, of up to 4 bytes; a manager drops a message that is longer than its 4096 byte buffer
)
_log = logging.getLogger(__name__)


class Notifier:
    """Tells the service manager at `address` (`NOTIFY_SOCKET`) how this process does; silent where there is none.

    `address`: a path, or `@name` for a socket in Linux's abstract namespace. Its methods may be called from any thread.
    """

    def __init__(self, address: str | None) -> None:
        self._address = _raw(address) if address else None
        self._owed: dict[str, str] = {}
        self._lock = threading.Lock()
        if address and self._address is None:
            _log.warning("NOTIFY_SOCKET is neither a path nor an abstract name: the service manager is told nothing.")

    def ready(self, status: str) -> None:
        """The start, or a reload, is done."""
        self._tell({"READY": "1", "STATUS": status})

    def status(self, text: str) -> None:
        """The line that `systemctl status` shows."""
        self._tell({"STATUS": text})

    def watchdog(self) -> None:
        """A sign of progress. Without one for the whole watchdog time the manager restarts the process."""
        self._tell({"WATCHDOG": "1"})

    def reloading(self, monotonic_usec: int) -> None:
        """A reload begins; `ready` ends it. `monotonic_usec`: the monotonic clock now, in microseconds."""
        self._tell({"RELOADING": "1", "MONOTONIC_USEC": str(monotonic_usec)})

    def stopping(self, status: str) -> None:
        """The shutdown has begun."""
        self._tell({"STOPPING": "1", "STATUS": status})

    def _tell(self, assignments: dict[str, str]) -> None:
        if self._address is None:
            return
        with self._lock:
            kept = {name: value for name, value in self._owed.items() if name not in assignments}
            owed = kept | assignments  # in the order of the last mention: of READY and RELOADING, the later one counts
            lines = [f"{name}={_one_line(value)}" for name, value in owed.items()]
            self._owed = {} if _send(self._address, "\n".join(lines).encode("utf-8", "replace")) else owed


def watchdog_seconds(watchdog_usec: int | None, watchdog_pid: int | None, own_pid: int) -> float | None:
    """How often to ping, in seconds: half of what the manager waits. None: it expects no pings of this process.

    `watchdog_usec`, `watchdog_pid`: what the manager has set; without a pid it means whoever reads it.
    """
    if watchdog_usec is None or watchdog_pid not in {None, own_pid}:
        return None
    return watchdog_usec / 2 / 1_000_000


def _raw(address: str) -> bytes | None:
    """The address as the kernel has it: an abstract name begins with a NUL byte. None: of a kind not known here."""
    if address.startswith("@"):
        return b"\0" + os.fsencode(address[1:])
    return os.fsencode(address) if address.startswith("/") else None


def _one_line(value: str) -> str:
    """A newline would begin another assignment, and a manager ignores a whole message that holds a NUL byte."""
    plain = "".join(character if character.isprintable() else " " for character in value[:_LONGEST_STATUS])
    return " ".join(plain.split())


def _send(address: bytes, message: bytes) -> bool:
    """Whether the manager has it. Never waits for one that does not read."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.sendto(message, address)
    except OSError as error:
        _log.debug("The service manager could not be told: %s.", error.strerror or error)
        return False
    return True
