"""The console: a text stream that never blocks long on its reader.

Invariant: a stopped terminal, a full pipe or a closed descriptor loses lines and never stops the worker. The stream's
file is reopened or its descriptor duplicated, so that only our writes are non-blocking: O_NONBLOCK on the original
would also affect the user's shell. No other process can close our own descriptor and reuse its number for another file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
from collections import deque
from typing import TextIO

from forecastd.clock import TimeBudget
from forecastd.logs.handler import Notice
from forecastd.runtime.formatting import format_count

WRITE_TIMEOUT_SECONDS = 0.2  # for a slow reader; 0 after it was too slow, until it reads again
CLOSE_TIMEOUT_SECONDS = 1.0  # when the program exits
_MAX_BUFFER_BYTES = 1 << 22  # unwritten bytes that are kept for a slow reader
_CHUNK_BYTES = 4096  # PIPE_BUF: a pipe accepts it completely or not at all


class ConsoleStream:
    """Writes lines to `stream`; None for a process without a console."""

    def __init__(self, stream: TextIO | None) -> None:
        self.notices: deque[Notice] = deque()
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._descriptor, self._is_socket = _duplicate_descriptor(stream)
        self._pending = bytearray()
        self._blocked = False
        self._broken = False
        self._mid_line = False
        self._dropped_lines = 0

    def write(self, text: str) -> None:
        """Write one record, or as much as possible; the rest is written before the next record."""
        try:
            if self._descriptor is not None:
                line = text.encode(self._encoding, "backslashreplace")
                if len(self._pending) + len(line) > _MAX_BUFFER_BYTES:
                    self._dropped_lines += 1
                else:
                    self._pending += line
                self._flush_buffer(0.0 if self._blocked else WRITE_TIMEOUT_SECONDS)
            elif self._stream is not None:
                self._stream.write(text)
                self._stream.flush()
        except (OSError, ValueError) as error:
            self._pending[:] = b"\n" if self._mid_line else b""
            if not self._broken:
                reason = error.strerror if isinstance(error, OSError) else error
                self.notices.append(("Cannot write to the console (%s); continuing without it.", (reason,)))
            self._broken = True
        else:
            self._broken = False

    def close(self) -> None:
        """Try once more to write the pending bytes, then close the descriptor. Later writes are ignored."""
        descriptor = self._descriptor
        with contextlib.suppress(OSError):
            self._flush_buffer(CLOSE_TIMEOUT_SECONDS)
        self._descriptor = self._stream = None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _flush_buffer(self, timeout: float) -> None:
        """Write the pending bytes; wait at most `timeout` seconds in total."""
        deadline = TimeBudget(timeout)
        while self._pending:
            try:
                written = self._send(bytes(self._pending[:_CHUNK_BYTES]))
            except BlockingIOError:
                self._blocked = True
                if not self._wait_writable(deadline):
                    return
                continue
            self._mid_line = self._pending[written - 1] != ord("\n")
            del self._pending[:written]
        self._blocked = False
        if self._dropped_lines:
            message = "The console lacks %s: its reader was too slow."
            self.notices.append((message, (format_count(self._dropped_lines, "line"),)))
            self._dropped_lines = 0

    def _wait_writable(self, deadline: TimeBudget) -> bool:
        """Wait until the descriptor is writable; False on timeout."""
        try:
            seconds_left = deadline.remaining() or 0.0
        except TimeoutError:
            return False
        poll = select.poll()
        poll.register(self._descriptor or 0, select.POLLOUT)
        return bool(poll.poll(seconds_left * 1000))

    def _send(self, chunk: bytes) -> int:
        if self._descriptor is None:
            return len(chunk)
        if not self._is_socket:
            return os.write(self._descriptor, chunk)
        with socket.socket(fileno=os.dup(self._descriptor)) as channel:
            return channel.send(chunk, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _duplicate_descriptor(stream: TextIO | None) -> tuple[int | None, bool]:
    """Our own descriptor of the stream's file, and whether it is a socket; None when the stream has no file."""
    try:
        if stream is None:
            return None, False
        original = stream.fileno()
        mode = os.fstat(original).st_mode
    except (OSError, ValueError, AttributeError):
        return None, False
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        # This fails for another user's terminal, for example; then the descriptor is shared and a full one may block.
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            return os.open(f"/proc/self/fd/{original}", flags), False
    return os.dup(original), stat.S_ISSOCK(mode)


def open_standard_descriptors() -> None:
    """Open /dev/null for each closed standard descriptor, so that no file of ours becomes standard error."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError as error:
            if error.errno == errno.EBADF and os.open(os.devnull, os.O_RDWR) == number:
                os.set_inheritable(number, True)
