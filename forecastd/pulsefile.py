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
from forecastd.pulse import VERSION, Pulse
from forecastd.textfile import read_text_file
from forecastd.wholefile import write_whole

log = logging.getLogger(__name__)

NAME = "daemon.json"
_FIX = "It is the daemon's own and is written anew when one runs: delete it."


@dataclass(frozen=True)
class Seen:
    """A pulse as it was read. `alive`: its process runs; None when that cannot be told from here (another container)."""

    pulse: Pulse
    alive: bool | None


class PulseFile:
    """The daemon's side: put a pulse into the file, now and then."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / NAME
        self._birth = birth_of(os.getpid())
        self._failing = False

    def write(self, pulse: Pulse) -> None:
        """Put `pulse` there, with this process's birth. Never fails; that it cannot be written is told once."""
        try:
            write_whole(self.path, replace(pulse, birth=self._birth).as_text())
        except ForecastdError as error:
            if not self._failing:
                log.warning("`forecastd status` shows what was, not what is: %s", error, extra={"action": "pulse"})
            self._failing = True
        else:
            if self._failing:
                log.info("`forecastd status` is up to date again", extra={"action": "pulse"})
            self._failing = False


def read_pulse(state_dir: Path) -> Seen | None:
    """What a daemon with this state directory told last; None when none ever ran.

    Raises:
        NeedsHuman: the file cannot be read, or was not written by this release's daemon.
    """
    path = state_dir / NAME
    try:
        text = read_text_file(path, "The daemon's own file", "Run this as the daemon's user.")
    except NeedsHuman as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    version = _version(text)
    if version not in {None, VERSION}:
        raise NeedsHuman(
            f"The daemon that wrote {path} is of another release: its file has version {version}, not {VERSION}. "
            "Use that release's `forecastd status`, or restart the daemon with this one."
        )
    try:
        pulse = Pulse.from_json(text)
    except ValueError as error:
        raise NeedsHuman(f"{path} makes no sense: {error}. {_FIX}") from None
    return Seen(pulse, _alive(pulse))


def birth_of(pid: int) -> str | None:
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
    return f"{_here()}/{fields[19].decode('ascii')}"


def _alive(pulse: Pulse) -> bool | None:
    if pulse.state == "ended":
        return False
    boot, _, _ = _here().partition("/")
    if pulse.birth is None or not pulse.birth.startswith(f"{_here()}/"):
        return None if pulse.birth is not None and pulse.birth.startswith(f"{boot}/") else False
    return birth_of(pulse.pid) == pulse.birth


def _here() -> str:
    """This boot, and the namespace in which process numbers mean what they say here."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # hidden in some containers
        boot = "boot"
    return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 - Path.stat is the same call


def _version(text: str) -> int | None:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    version = document.get("version") if isinstance(document, dict) else None
    return version if isinstance(version, int) else None
