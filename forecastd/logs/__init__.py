"""Logging: a rotating file with every record, a console with the important ones, and no secret in either.

Invariant: logging never stops a submission. A file that cannot be written or a console that no one reads loses lines;
the loss is reported once, and writing resumes when it is possible again. Secrets are removed from the finished text,
tracebacks included, so code that reads a secret calls `hide` before it uses it. A hidden secret stays hidden for the
life of the process, across every `configure`.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from forecastd.clock import Clock, SystemClock
from forecastd.logs.console import ConsoleStream, open_standard_descriptors
from forecastd.logs.file import RotatingFile
from forecastd.logs.formats import LineFormatter
from forecastd.logs.handler import SinkHandler
from forecastd.logs.hooks import install_hooks
from forecastd.logs.redaction import Redactor

__all__ = ["FILE_NAME", "configure", "configure_console", "hide", "install_hooks", "redacted", "reopen"]

FILE_NAME = "submission.log"
MAX_FILE_BYTES = 50_000_000
BACKUP_COUNT = 5
_NOISY_LIBRARIES = ("urllib3", "hpack", "asyncio", "grpc", "ccxt", "websockets", "h2")

log = logging.getLogger(__name__)
_redactor = Redactor()


def configure(
    directory: Path,
    *,
    verbose: bool,
    secrets: Iterable[str] = (),
    json: bool = False,
    console_level: int = logging.WARNING,
    timestamps: bool = False,
    stream: TextIO | None = None,
    max_bytes: int = MAX_FILE_BYTES,
    backup_count: int = BACKUP_COUNT,
    clock: Clock | None = None,
    file_name: str = FILE_NAME,
) -> None:
    """Log records of at least `console_level` to the console, and every record to the rotating file `file_name`.

    `verbose`: the console shows DEBUG records and tracebacks. `timestamps`: each console line starts with the UTC
    time. `json`: every line of console and file is a JSON object. `stream`: used instead of stderr. `max_bytes`: size
    of a file before it is rotated. A second call replaces the earlier configuration. Never raises when `directory`
    cannot be written: the failure is logged and the file is retried later.
    """
    hide(*secrets)
    _replace_handlers(_console_handler(console_level, verbose=verbose, timestamps=timestamps, json=json, stream=stream))
    file = RotatingFile(
        directory / file_name, max_bytes=max_bytes, backup_count=backup_count, clock=clock or SystemClock()
    )
    formatter = LineFormatter(_redactor, tracebacks=True, json=json, timestamps=True, locations=True)
    logging.getLogger().addHandler(SinkHandler(file, formatter, logging.DEBUG))
    log.debug("Logging to %s.", file.path)


def configure_console(*, verbose: bool, warnings: bool = True, secrets: Iterable[str] = (), json: bool = False) -> None:
    """Log to stderr only: WARNING and above; without `warnings` only ERROR; with `verbose` DEBUG and tracebacks."""
    hide(*secrets)
    level = logging.WARNING if warnings else logging.ERROR
    _replace_handlers(_console_handler(level, verbose=verbose, timestamps=False, json=json, stream=None))


def hide(*secrets: str) -> None:
    """Remove these secrets, in every spelling, from everything logged from now on. Empty strings are ignored."""
    _redactor.hide(secrets)


def redacted(text: str) -> str:
    """`text` without the hidden secrets, for output that does not go through logging."""
    return _redactor.redact(text)


def reopen() -> None:
    """Reopen the log file with the next line, as SIGHUP requests. Do not call it inside a signal handler."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, SinkHandler) and isinstance(handler.stream, RotatingFile):
            with handler.lock or contextlib.nullcontext():
                handler.stream.reopen()


def _console_handler(level: int, *, verbose: bool, timestamps: bool, json: bool, stream: TextIO | None) -> SinkHandler:
    open_standard_descriptors()
    formatter = LineFormatter(_redactor, tracebacks=verbose, json=json, timestamps=timestamps)
    return SinkHandler(ConsoleStream(stream or sys.stderr), formatter, logging.DEBUG if verbose else level)


def _replace_handlers(console: SinkHandler) -> None:
    root = logging.getLogger()
    root.setLevel(logging.DEBUG)
    for handler in list(root.handlers):
        root.removeHandler(handler)
        if isinstance(handler, SinkHandler):
            handler.close()
    root.addHandler(console)
    for name in _NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
