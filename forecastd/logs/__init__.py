"""Logging: a rotating file that tells everything, a console that tells what matters, and no secret in either.

Nothing here may stop a submission: a file that cannot be written and a console that nobody reads cost lines, are told once,
and are written again when that is possible. Secrets are taken out of the finished text, tracebacks included, so anything that
reads one says `hide` before it uses it. What is hidden stays so for the life of the process, through every `configure`.
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
from forecastd.logs.formats import JsonFormatter, LineFormatter, TextFormatter
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
    """Log to the console from the level `console` on, and everything to the file `name` in `directory`, rotating.

    `verbose` makes the console tell DEBUG, and tracebacks. `times` puts the time (UTC) before each line of the console;
    `json` makes every line, there and in the file, a JSON object. `stream` stands in for stderr. Called again, this replaces
    what was set up before. Never raises over a directory that cannot be written: that is told, and tried again later.
    """
    hide(*secrets)
    _replace_handlers(_console_handler(console_level, verbose=verbose, timestamps=timestamps, json=json, stream=stream))
    file = RotatingFile(
        directory / file_name, max_bytes=max_bytes, backup_count=backup_count, clock=clock or SystemClock()
    )
    formatter: LineFormatter = (
        JsonFormatter(_redactor, tracebacks=True) if json else TextFormatter(_redactor, tracebacks=True, locations=True)
    )
    logging.getLogger().addHandler(SinkHandler(file, formatter, logging.DEBUG))
    log.debug("Logging to %s.", file.path)


def configure_console(*, verbose: bool, warnings: bool = True, secrets: Iterable[str] = (), json: bool = False) -> None:
    """Log WARNING to stderr (only ERROR without `warnings`), or DEBUG and tracebacks when `verbose`; no file."""
    hide(*secrets)
    level = logging.WARNING if warnings else logging.ERROR
    _replace_handlers(_console_handler(level, verbose=verbose, timestamps=False, json=json, stream=None))


def hide(*secrets: str) -> None:
    """Take these secrets, in every spelling, out of all that is logged from now on. Empty ones are passed over."""
    _redactor.hide(secrets)


def redacted(text: str) -> str:
    """`text` without the secrets, for what reaches people by another way than logging."""
    return _redactor.redact(text)


def reopen() -> None:
    """Open the log file anew with the next line, as SIGHUP asks for. Not to be called inside a signal handler."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, SinkHandler) and isinstance(handler.stream, RotatingFile):
            with handler.lock or contextlib.nullcontext():
                handler.stream.reopen()


def _console_handler(level: int, *, verbose: bool, timestamps: bool, json: bool, stream: TextIO | None) -> SinkHandler:
    open_standard_descriptors()
    formatter: LineFormatter = (
        JsonFormatter(_redactor, tracebacks=verbose)
        if json
        else TextFormatter(_redactor, tracebacks=verbose, timestamps=timestamps)
    )
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
