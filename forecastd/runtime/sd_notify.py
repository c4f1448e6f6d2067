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

_MAX_STATUS_CHARACTERS = (
    500  # characters, of up to 4 bytes; a manager drops a message that is longer than its 4096 byte buffer
)
_log = logging.getLogger(__name__)


class SystemdNotifier:
    """Tells the service manager at `address` (`NOTIFY_SOCKET`) how this process does; silent where there is none.

    `address`: a path, or `@name` for a socket in Linux's abstract namespace. Its methods may be called from any thread.
    """

    def __init__(self, address: str | None) -> None:
        self._address = _kernel_address(address) if address else None
        self._pending: dict[str, str] = {}
        self._lock = threading.Lock()
        if address and self._address is None:
            _log.warning("NOTIFY_SOCKET is neither a path nor an abstract name: the service manager is told nothing.")

    def ready(self, status: str) -> None:
        """The start, or a reload, is done."""
        self._notify({"READY": "1", "STATUS": status})

    def status(self, text: str) -> None:
        """The line that `systemctl status` shows."""
        self._notify({"STATUS": text})

    def watchdog(self) -> None:
        """A sign of progress. Without one for the whole watchdog time the manager restarts the process."""
        self._notify({"WATCHDOG": "1"})

    def reloading(self, monotonic_usec: int) -> None:
        """A reload begins; `ready` ends it. `monotonic_usec`: the monotonic clock now, in microseconds."""
        self._notify({"RELOADING": "1", "MONOTONIC_USEC": str(monotonic_usec)})

    def stopping(self, status: str) -> None:
        """The shutdown has begun."""
        self._notify({"STOPPING": "1", "STATUS": status})

    def _notify(self, assignments: dict[str, str]) -> None:
        if self._address is None:
            return
        with self._lock:
            unsent = {name: value for name, value in self._pending.items() if name not in assignments}
            pending = (
                unsent | assignments
            )  # in the order of the last mention: of READY and RELOADING, the later one counts
            lines = [f"{name}={_to_single_line(value)}" for name, value in pending.items()]
            self._pending = {} if _send(self._address, "\n".join(lines).encode("utf-8", "replace")) else pending


def watchdog_interval(watchdog_usec: int | None, watchdog_pid: int | None, own_pid: int) -> float | None:
    """How often to ping, in seconds: half of what the manager waits. None: it expects no pings of this process.

    `watchdog_usec`, `watchdog_pid`: what the manager has set; without a pid it means whoever reads it.
    """
    if watchdog_usec is None or watchdog_pid not in {None, own_pid}:
        return None
    return watchdog_usec / 2 / 1_000_000


def _kernel_address(address: str) -> bytes | None:
    """The address as the kernel has it: an abstract name begins with a NUL byte. None: of a kind not known here."""
    if address.startswith("@"):
        return b"\0" + os.fsencode(address[1:])
    return os.fsencode(address) if address.startswith("/") else None


def _to_single_line(value: str) -> str:
    """A newline would begin another assignment, and a manager ignores a whole message that holds a NUL byte."""
    text = "".join(character if character.isprintable() else " " for character in value[:_MAX_STATUS_CHARACTERS])
    return " ".join(text.split())


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
