"""The log file: appended to, rolled over by size, by one process or by several at once.

concurrent-log-handler was looked at first. It waits without limit for its lock on every line, so one stopped process stops
all others; its buffered stream leaves half a line on a full disk; it opens a named pipe and waits; and each line that fails
prints the record, secrets included, to stderr. Hence this small one. What it stands on:

- A record is one `write` to a descriptor opened with O_APPEND, which Linux does whole and at the end of the file.
- A shared lock on the file itself is held around it, an exclusive one around a roll-over and a repair, and neither is ever
  waited for: who gets no exclusive lock goes on in the file as it is.
- Before each write, the open file must still be the one at the path. It is not after another process, or logrotate, renamed
  or removed it; then it is opened anew. Emptied in place (logrotate's copytruncate) it needs nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from forecastd.clock import Clock
from forecastd.logs.handler import Notice

RETRY_SECONDS = 30.0
_MODE = 0o640
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_ATTEMPTS = 100  # how often the file may be replaced under one line
_Identity = tuple[int, int]


class RotatingFile:
    """Appends lines to `path`; renames it to `path.1`, that to `path.2`, ... before a line would take it past `max_bytes`.

    When a line cannot be written it is left out, a notice says why, and the next `retry` seconds' lines are left out too.
    """

    def __init__(self, path: Path, *, max_bytes: int, backups: int, clock: Clock, retry: float = RETRY_SECONDS) -> None:
        """`backups`: how many older files are kept, at least 1."""
        self.notices: deque[Notice] = deque()
        self.path = path
        self._max_bytes, self._backups = max_bytes, backups
        self._clock, self._retry = clock, retry
        self._descriptor: int | None = None
        self._identity: _Identity = (-1, -1)
        self._silent_until = self._whole_until = float("-inf")
        self._lost = 0
        self._grows = False

    def write(self, text: str) -> None:
        """Append one record; it is counted as lost when that fails."""
        if self._clock.monotonic() < self._silent_until:
            self._lost += 1
            return
        try:
            self._append(text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            self._give_up(error)
            return
        if self._lost:
            told = "Writing the log %s again; the %d lines before this one are missing in it."
            self.notices.append((told, (self.path, self._lost)))
            self._lost = 0

    def reopen(self) -> None:
        """Close the file and open it again with the next line, at once, even when it could not be written before."""
        self.close()
        self._silent_until = self._whole_until = float("-inf")

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None and _identity(descriptor) == self._identity:
            os.close(descriptor)  # not when it was closed by another, and its number is now somebody else's

    def _give_up(self, error: OSError) -> None:
        self.close()
        if not self._lost:
            told = "Cannot write the log %s (%s); going on without it, and trying again every %g s."
            self.notices.append((told, (self.path, error.strerror or error, self._retry)))
        self._lost += 1
        self._silent_until = self._clock.monotonic() + self._retry

    def _append(self, line: bytes) -> None:
        for _ in range(_ATTEMPTS):
            descriptor = self._descriptor if self._descriptor is not None else self._open()
            with _lock(descriptor, fcntl.LOCK_SH):
                if self._is_current(descriptor) and not self._rolled_over(descriptor, len(line)):
                    _write_whole(descriptor, line)
                    return
            self.close()
        raise OSError(errno.EAGAIN, "it is replaced again and again")

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, _FLAGS, _MODE)
        try:
            _make_ready(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor, self._identity = descriptor, _identity(descriptor)
        return descriptor

    def _is_current(self, descriptor: int) -> bool:
        """Whether the descriptor is still ours, and still the file at the path."""
        if _identity(descriptor) != self._identity:
            return False
        try:
            there = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # the directory cannot be looked into; the file that is open is as good as ever
        return (there.st_dev, there.st_ino) == self._identity

    def _rolled_over(self, descriptor: int, more: int) -> bool:
        """Roll the file over when `more` bytes are too many for it. True: it is another file now, look again."""
        if not self._is_full(descriptor, more) or self._clock.monotonic() < self._whole_until:
            return False
        with _lock(descriptor, fcntl.LOCK_EX) as locked:
            if not locked:
                return False  # another process is at it, or writes at this moment: the next line will see
            if not self._is_current(descriptor):
                return True
            try:
                _shift(Path(os.path.realpath(self.path)), self._backups)
            except OSError as error:
                self._whole_until = self._clock.monotonic() + self._retry
                if not self._grows:
                    told = "Cannot roll the log %s over (%s); it grows past %g MB."
                    self.notices.append((told, (self.path, error.strerror, self._max_bytes / 1e6)))
                self._grows = True
                return False
        self._grows = False
        return True

    def _is_full(self, descriptor: int, more: int) -> bool:
        info = os.fstat(descriptor)
        return stat.S_ISREG(info.st_mode) and info.st_size > 0 and info.st_size + more > self._max_bytes


@contextlib.contextmanager
def _lock(descriptor: int, how: int) -> Iterator[bool]:
    """Hold a lock on the open file, if it can be had at once; says whether. It ends an outer lock on the same file."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        held = True
    except BlockingIOError:
        held = False
    except OSError:
        held = True  # a file system without locks: one process alone is well without, and there should be one
    try:
        yield held
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def _identity(descriptor: int) -> _Identity:
    try:
        info = os.fstat(descriptor)
    except OSError:
        return (-1, -1)
    return info.st_dev, info.st_ino


def _write_whole(descriptor: int, line: bytes) -> None:
    """Write the line whole or, raising OSError, leave nothing of it behind."""
    written = os.write(descriptor, line)
    try:
        while written < len(line):
            written += os.write(descriptor, line[written:])
    except OSError:
        _cut_off(descriptor, written)
        raise


def _cut_off(descriptor: int, count: int) -> None:
    """Take back the last `count` bytes, unless another process has written after them; `_end_last_line` helps then."""
    with contextlib.suppress(OSError), _lock(descriptor, fcntl.LOCK_EX) as locked:
        end = os.lseek(descriptor, 0, os.SEEK_CUR)
        if locked and os.fstat(descriptor).st_size == end:
            os.ftruncate(descriptor, end - count)


def _make_ready(descriptor: int) -> None:
    """Refuse what is neither a file nor a device such as /dev/null: a named pipe would fill up."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        _end_last_line(descriptor)
    elif not stat.S_ISCHR(mode):
        raise OSError(errno.EINVAL, "it is no regular file")


def _end_last_line(descriptor: int) -> None:
    """Begin on a line of our own where a crash has left half a line. With the lock, no half line is one being written."""
    with _lock(descriptor, fcntl.LOCK_EX) as locked:
        size = os.fstat(descriptor).st_size
        if locked and size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.write(descriptor, b"\n")


def _shift(path: Path, backups: int) -> None:
    """Rename `path` to `path.1`, and what is there out of its way. A gap, left by a crash in here, is filled first."""
    names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, backups + 1))]
    free = next((place for place, name in enumerate(names) if place and not name.exists()), backups)
    for place in range(free, 0, -1):
        names[place - 1].replace(names[place])
