"""The log handler of file and console: it passes finished lines to a sink that never raises.

Invariant: a sink reports its own problems in `notices`, which are logged after the handler's lock is released. They
go to the other sink too, so two handlers that logged while holding their locks could deadlock.
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
    """The destination of formatted lines."""

    notices: deque[Notice]

    def write(self, text: str, /) -> object:
        """Write one record, newline included. Never raises and never blocks for long."""

    def close(self) -> None:
        """Close the underlying file."""


class SinkHandler(logging.StreamHandler[LogSink]):
    """Formats records for a sink."""

    def __init__(self, sink: LogSink, formatter: logging.Formatter, level: int) -> None:
        super().__init__(sink)
        self.setLevel(level)
        self.setFormatter(formatter)

    def handle(self, record: logging.LogRecord) -> bool:
        """Write the record, then log the sink's notices."""
        handled = super().handle(record)
        while self.stream.notices:
            with contextlib.suppress(IndexError):  # another thread logged it
                message, arguments = self.stream.notices.popleft()
                log.warning(message, *arguments)
        return handled

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record. Arguments nested too deeply to format are reported instead of raising."""
        try:
            super().emit(record)
        except RecursionError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class's name
        """Log that a record could not be formatted, without its arguments, instead of printing to stderr."""
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
        """Close the handler and its sink."""
        with self.lock or contextlib.nullcontext():
            self.stream.close()
        super().close()
