"""The log file: appended to and rotated by size, by one process or by several at the same time.

The handlers of the standard library neither share a file between processes nor continue with a full disk: their buffered
stream leaves a partial line. This module relies on the following:

- A record is one `write` to a descriptor opened with O_APPEND, which Linux appends completely and atomically.
- A shared lock on the file is held during a write, an exclusive lock during a rotation or a repair. Neither waits:
  without the exclusive lock, writing continues in the current file.
- Before each write, the open file must still be the one at the path. It is not after another process or logrotate
  renamed or removed it; then the path is opened again. Truncation in place (logrotate's copytruncate) needs no action.
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
from forecastd.runtime.formatting import format_count
from forecastd.runtime.locks import try_lock

RETRY_SECONDS = 30.0
_MODE = 0o640
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_MAX_ATTEMPTS = 100  # how often the file may be replaced while one line is written


class RotatingFile:
    """Appends lines to `path`; renames it to `path.1`, that to `path.2`, ... before a line would exceed `max_bytes`.

    A line that cannot be written is dropped with a notice, and so are all lines of the next `retry_seconds`.
    """

    def __init__(
        self, path: Path, *, max_bytes: int, backup_count: int, clock: Clock, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        """`backup_count`: number of older files to keep, at least 1."""
        self.notices: deque[Notice] = deque()
        self.path = path
        self._max_bytes, self._backup_count = max_bytes, backup_count
        self._clock, self._retry_seconds = clock, retry_seconds
        self._descriptor: int | None = None
        self._file: os.stat_result | None = None  # which the descriptor was opened for
        self._next_write = self._next_rotation = float("-inf")
        self._dropped_lines = 0
        self._rotation_failed = False

    def write(self, text: str) -> None:
        """Append one record; it counts as dropped when that fails."""
        if self._clock.monotonic() < self._next_write:
            self._dropped_lines += 1
            return
        try:
            self._append(text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            self.close()
            if not self._dropped_lines:
                message = "Cannot write the log %s (%s); continuing without it, next attempt in %g s."
                self.notices.append((message, (self.path, error.strerror or error, self._retry_seconds)))
            self._dropped_lines += 1
            self._next_write = self._clock.monotonic() + self._retry_seconds
            return
        if self._dropped_lines:
            message = "Writing the log %s again; it lacks %s before this one."
            self.notices.append((message, (self.path, format_count(self._dropped_lines, "line"))))
            self._dropped_lines = 0

    def reopen(self) -> None:
        """Close the file and open it again with the next line, even when the last write failed."""
        self.close()
        self._next_write = self._next_rotation = float("-inf")

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None and self._is_ours(descriptor):
            os.close(descriptor)

    def _append(self, line: bytes) -> None:
        for _ in range(_MAX_ATTEMPTS):
            descriptor = self._open() if self._descriptor is None else self._descriptor
            with _lock(descriptor, shared=True):
                if self._is_current(descriptor) and not self._rotate_if_full(descriptor, len(line)):
                    _write_line(descriptor, line)
                    return
            self.close()
        raise OSError(errno.EAGAIN, "the file is replaced again and again")

    def _open(self) -> int:
        """Open a regular file or a device such as /dev/null; a named pipe would fill up."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, _FLAGS, _MODE)
        file = os.fstat(descriptor)
        if stat.S_ISREG(file.st_mode):
            _end_last_line(descriptor)
        elif not stat.S_ISCHR(file.st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a regular file")
        self._descriptor, self._file = descriptor, file
        return descriptor

    def _is_ours(self, descriptor: int) -> bool:
        """Whether the descriptor is still that of our file. It is not when other code closed it and got its number."""
        try:
            return self._file is not None and os.path.samestat(os.fstat(descriptor), self._file)
        except OSError:
            return False

    def _is_current(self, descriptor: int) -> bool:
        """Whether the descriptor is that of our file, and our file is still at the path."""
        try:
            return self._is_ours(descriptor) and os.path.samestat(self.path.stat(), os.fstat(descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # the directory is unreadable; the open file is still usable

    def _rotate_if_full(self, descriptor: int, size: int) -> bool:
        """Rotate the file if it cannot take `size` more bytes. True: the path may now be another file."""
        file = os.fstat(descriptor)
        is_full = stat.S_ISREG(file.st_mode) and file.st_size > 0 and file.st_size + size > self._max_bytes
        if not is_full or self._clock.monotonic() < self._next_rotation:
            return False
        with _lock(descriptor) as locked:
            if not locked:
                return False  # another process rotates or writes right now; the next line tries again
            if not self._is_current(descriptor):
                return True
            try:
                _rotate(Path(os.path.realpath(self.path)), self._backup_count)
            except OSError as error:
                self._next_rotation = self._clock.monotonic() + self._retry_seconds
                if not self._rotation_failed:
                    message = "Cannot rotate the log %s (%s); it grows beyond %g MB."
                    self.notices.append((message, (self.path, error.strerror, self._max_bytes / 1e6)))
                self._rotation_failed = True
                return False
        self._rotation_failed = False
        return True


@contextlib.contextmanager
def _lock(descriptor: int, *, shared: bool = False) -> Iterator[bool]:
    """Try to lock the open file without waiting; yields whether that worked. Releases an outer lock on the file."""
    try:
        locked = try_lock(descriptor, shared=shared)
    except OSError:
        locked = True  # a file system without locks: a single process does not need one
    try:
        yield locked
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def _write_line(descriptor: int, line: bytes) -> None:
    """Write the whole line, or raise OSError and leave no part of it in the file."""
    written = os.write(descriptor, line)
    try:
        while written < len(line):
            written += os.write(descriptor, line[written:])
    except OSError:
        with contextlib.suppress(OSError), _lock(descriptor) as locked:
            end = os.lseek(descriptor, 0, os.SEEK_CUR)
            if locked and os.fstat(descriptor).st_size == end:  # else another process wrote after it
                os.ftruncate(descriptor, end - written)
        raise


def _end_last_line(descriptor: int) -> None:
    """End a partial last line that a crash left. Under the exclusive lock, no other process is writing a line."""
    with _lock(descriptor) as locked:
        size = os.fstat(descriptor).st_size
        if locked and size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.write(descriptor, b"\n")


def _rotate(path: Path, backup_count: int) -> None:
    """Rename `path` to `path.1` and move the older files up. A gap in the numbers, left by a crash, is filled first."""
    names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, backup_count + 1))]
    free_index = next((index for index, name in enumerate(names) if index and not name.exists()), backup_count)
    for index in range(free_index, 0, -1):
        names[index - 1].replace(names[index])
