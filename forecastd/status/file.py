"""The file in which a daemon tells of itself: STATE_DIR/daemon.json, written whole, read by anybody without a lock.

The one thing to know before changing it: nothing that goes wrong here may reach the daemon's cycles. A reader believes the
file's process to be alive only when its number and its birth are still the same.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

from forecastd.errors import ForecastdError, NeedsHuman
from forecastd.runtime.files import write_atomic
from forecastd.runtime.text_file import read_text_file
from forecastd.status.model import VERSION, DaemonStatus

log = logging.getLogger(__name__)

STATUS_FILE_NAME = "daemon.json"
_FIX = "It is the daemon's own and is written anew when one runs: delete it."


@dataclass(frozen=True)
class StoredStatus:
    """A pulse as it was read. `alive`: its process runs; None when that cannot be told from here (another container)."""

    status: DaemonStatus
    alive: bool | None


class StatusFile:
    """The daemon's side: put a pulse into the file, now and then."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / STATUS_FILE_NAME
        self._process_identity = process_identity(os.getpid())
        self._failing = False

    def write(self, status: DaemonStatus) -> None:
        """Put `pulse` there, with this process's birth. Never fails; that it cannot be written is told once."""
        try:
            write_atomic(self.path, replace(status, process_identity=self._process_identity).to_json())
        except ForecastdError as error:
            if not self._failing:
                log.warning("`forecastd status` shows what was, not what is: %s", error, extra={"action": "pulse"})
            self._failing = True
        else:
            if self._failing:
                log.info("`forecastd status` is up to date again", extra={"action": "pulse"})
            self._failing = False


def read_status(state_dir: Path) -> StoredStatus | None:
    """What a daemon with this state directory told last; None when none ever ran.

    Raises:
        NeedsHuman: the file cannot be read, or was not written by this release's daemon.
    """
    path = state_dir / STATUS_FILE_NAME
    try:
        text = read_text_file(path, "The daemon's own file", "Run this as the daemon's user.")
    except NeedsHuman as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    version = _document_version(text)
    if version not in {None, VERSION}:
        raise NeedsHuman(
            f"The daemon that wrote {path} is of another release: its file has version {version}, not {VERSION}. "
            "Use that release's `forecastd status`, or restart the daemon with this one."
        )
    try:
        status = DaemonStatus.from_json(text)
    except ValueError as error:
        raise NeedsHuman(f"{path} makes no sense: {error}. {_FIX}") from None
    return StoredStatus(status, _is_alive(status))


def process_identity(pid: int) -> str | None:
    """What tells this process from a later one of the same number, None when there is none: boot, namespace, start.

    The start is field 22 of /proc/PID/stat, in clock ticks since the boot (proc(5)). A process that has ended and was not
    waited for yet counts as gone.
    """
    try:
        # The name, which may hold anything, ends with the last parenthesis; field 3 is the first after it.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    if len(fields) < 20 or fields[0] in {b"Z", b"X"}:
        return None
    return f"{_boot_and_namespace()}/{fields[19].decode('ascii')}"


def _is_alive(status: DaemonStatus) -> bool | None:
    if status.state == "ended":
        return False
    boot, _, _ = _boot_and_namespace().partition("/")
    if status.process_identity is None or not status.process_identity.startswith(f"{_boot_and_namespace()}/"):
        return None if status.process_identity is not None and status.process_identity.startswith(f"{boot}/") else False
    return process_identity(status.pid) == status.process_identity


def _boot_and_namespace() -> str:
    """This boot, and the namespace in which process numbers mean what they say here."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # hidden in some containers
        boot = "boot"
    return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 - Path.stat is the same call


def _document_version(text: str) -> int | None:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    version = document.get("version") if isinstance(document, dict) else None
    return version if isinstance(version, int) else None
