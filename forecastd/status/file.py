"""The status file STATE_DIR/daemon.json: written atomically by the daemon, read by anyone without a lock.

Invariant: no failure here reaches the daemon's cycles. A reader takes the file's process as alive only if its pid
still has the same process identity.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forecastd.errors import ForecastdError, NeedsHuman
from forecastd.runtime.files import read_text_file, write_atomic
from forecastd.status.model import VERSION, DaemonStatus

log = logging.getLogger(__name__)

# Fields that were renamed after version 1, by the old name of the field that holds the object ("" for the document).
_FIELDS_SINCE_1: dict[str, dict[str, str]] = {
    "": {
        "started": "started_at",
        "written": "written_at",
        "up": "uptime",
        "birth": "process_identity",
        "every": "write_interval",
        "trouble": "attention",
        "log": "log_file",
    },
    "topics": {
        "lags": "submission_lag",
        "oldest_unserved": "oldest_unserved_nonce",
        "watched_from": "watch_start_height",
    },
    "lags": {"largest": "max"},
    "last_outcomes": {"at": "ended_at"},
    "last_submitted": {"at": "submitted_at"},
    "window": {"changes_in_blocks": "blocks_until_change", "changes_in_seconds": "seconds_until_change"},
    "endpoints": {"streak": "consecutive_failures"},
    "streams": {"last_at": "last_event_at"},
    "models": {"since": "in_use_since", "most_age": "max_age"},
    "supervision": {"hand_overs": "failovers", "slow_but_fine": "recovered_stalls"},
    "watchdog": {"fed_at": "last_ping_at", "limit": "timeout"},
}

STATUS_FILE_NAME = "daemon.json"
_FIX = "Delete it; the daemon recreates it."


@dataclass(frozen=True)
class StoredStatus:
    """A status as it was read. `alive`: whether its process is running; None when unknown (another container)."""

    status: DaemonStatus
    alive: bool | None


class StatusFile:
    """The daemon's side: writes the status."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / STATUS_FILE_NAME
        self._process_identity = process_identity(os.getpid())
        self._failing = False

    def write(self, status: DaemonStatus) -> None:
        """Write `status` with this process's identity. Never raises; a failure is logged once."""
        try:
            write_atomic(self.path, replace(status, process_identity=self._process_identity).to_json())
        except ForecastdError as error:
            if not self._failing:
                log.warning("`forecastd status` is out of date: %s", error, extra={"action": "status_file"})
            self._failing = True
        else:
            if self._failing:
                log.info("`forecastd status` is up to date again", extra={"action": "status_file"})
            self._failing = False


def read_status(state_dir: Path) -> StoredStatus | None:
    """The last status of the daemon with this state directory; None when none ever ran.

    Raises:
        NeedsHuman: the file cannot be read, is invalid, or was written by a later release.
    """
    path = state_dir / STATUS_FILE_NAME
    try:
        text = read_text_file(path, "The daemon's own file", "Run this as the daemon's user.")
    except NeedsHuman as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    version = _document_version(text)
    if version not in {None, 1, VERSION}:
        raise NeedsHuman(
            f"Another release of the daemon wrote {path}: the file has version {version}, not {VERSION}. "
            "Use that release's `forecastd status`, or restart the daemon with this release."
        )
    try:
        status = DaemonStatus.from_json(_upgrade_from_1(text) if version == 1 else text)
    except (ValueError, RecursionError) as error:
        raise NeedsHuman(f"{path} is invalid: {error}. {_FIX}") from None
    return StoredStatus(status, _is_alive(status))


def process_identity(pid: int) -> str | None:
    """`BOOT/NAMESPACE/START`, which tells the process from a later one with the same pid; None if it is not running.

    START is field 22 of /proc/PID/stat, in clock ticks since the boot (proc(5)). A zombie counts as not running.
    """
    try:
        # The name may contain any character and ends at the last parenthesis; field 3 is the first one after it.
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
    """The id of this boot, and the pid namespace of this process."""
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


def _upgrade_from_1(text: str) -> str:
    """A document of version 1 with the field names of this release."""
    return json.dumps({**_rename_fields(json.loads(text), ""), "version": VERSION})


def _rename_fields(value: Any, parent: str) -> Any:
    """`value` with new field names in all objects; `parent` is the old name of the field that holds it."""
    if isinstance(value, list):
        return [_rename_fields(item, parent) for item in value]
    if not isinstance(value, dict):
        return value
    names = _FIELDS_SINCE_1.get(parent, {})
    return {
        names.get(name, name): _rename_fields(item, "lags" if parent == "stages" else name)
        for name, item in value.items()
    }
