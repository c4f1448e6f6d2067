"""The handler that file and console share: it hands finished lines to a sink that never raises.

A sink that has something to tell puts it into its `notices`. They are logged after the handler's lock is released: they go to
the other sink too, and two handlers that logged while they hold their locks could wait for each other for ever.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import deque
from typing import Protocol

log = logging.getLogger(__name__)

Notice = tuple[str, tuple[object, ...]]


class LogSink(Protocol):
    """Where lines go."""

    notices: deque[Notice]

    def write(self, text: str, /) -> object:
        """Take one record, its newline included. Never raises, never waits for long."""

    def close(self) -> None:
        """Let go of what is open."""


class SinkHandler(logging.StreamHandler[LogSink]):
    """Formats records for a sink."""

    def __init__(self, sink: LogSink, formatter: logging.Formatter, level: int) -> None:
        super().__init__(sink)
        self.setLevel(level)
        self.setFormatter(formatter)

    def handle(self, record: logging.LogRecord) -> bool:
        """Write the record, then log what the sink has to tell."""
        handled = super().handle(record)
        while self.stream.notices:
            with contextlib.suppress(IndexError):  # another thread told it
                message, arguments = self.stream.notices.popleft()
                log.warning(message, *arguments)
        return handled

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; one whose arguments are nested too deeply to be shown is told, and does not raise."""
        try:
            super().emit(record)
        except RecursionError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class's name
        """A record that cannot be formatted: say which, without its arguments, instead of printing to stderr."""
        error_type = sys.exc_info()[0]
        arguments = (
            error_type.__name__ if error_type else "no exception",
            str(record.msg) if isinstance(record.msg, str) else "",
        )
        message = "This line cannot be formatted (%s): %r"
        location = (record.pathname, record.lineno)
        replacement = logging.LogRecord(
            record.name, record.levelno, *location, message, arguments, None, record.funcName
        )
        self.stream.write(self.format(replacement) + self.terminator)

    def close(self) -> None:
        """Close the sink too."""
        with self.lock or contextlib.nullcontext():
            self.stream.close()
        super().close()
