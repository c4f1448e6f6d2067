"""Logging: one rotating file that tells everything, a console that tells what matters, and no secret in either.

Redaction works on the finished text, tracebacks included, so a secret inside an exception is caught too. A log that
cannot be written never stops a submission: the file is left out and the console says so.
"""

from __future__ import annotations

import logging
import logging.handlers
import sys
import time
from collections.abc import Iterable
from pathlib import Path

FILE_BYTES = 50_000_000
FILE_COUNT = 5
_FILE_FORMAT = "%(asctime)sZ %(levelname)-7s %(name)s:%(funcName)s:%(lineno)d %(message)s"


class RedactingFormatter(logging.Formatter):
    """Formats in UTC and replaces every known secret in the finished text."""

    converter = staticmethod(time.gmtime)

    def __init__(self, pattern: str, secrets: Iterable[str]) -> None:
        super().__init__(pattern, datefmt="%Y-%m-%dT%H:%M:%S")
        self._secrets = tuple(secret for secret in secrets if secret)

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record), self._secrets)


class FileHandler(logging.handlers.RotatingFileHandler):
    """Rotates by size. When the disk does not take a line it says so once on the console and is silent from then on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class's name
        root = logging.getLogger()
        root.removeHandler(self)
        root.warning("Cannot write the log %s (%s); going on without it.", self.baseFilename, sys.exc_info()[1])


def redact(text: str, secrets: Iterable[str]) -> str:
    """`text` with every secret replaced by asterisks."""
    for secret in secrets:
        text = text.replace(secret, "*****")
    return text


def configure_console(*, verbose: bool, warnings: bool = True, secrets: Iterable[str] = ()) -> None:
    """Log WARNING to stderr (only ERROR without `warnings`), or DEBUG when `verbose`."""
    hidden = tuple(secrets)
    root = logging.getLogger()
    root.setLevel(logging.DEBUG)
    for handler in list(root.handlers):
        root.removeHandler(handler)
    console = logging.StreamHandler(sys.stderr)
    usual = logging.WARNING if warnings else logging.ERROR
    console.setLevel(logging.DEBUG if verbose else usual)
    console.setFormatter(RedactingFormatter("%(levelname)s: %(message)s", hidden))
    root.addHandler(console)
    for chatty in ("urllib3", "hpack", "asyncio", "grpc", "ccxt", "websockets", "h2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def configure(directory: Path, *, verbose: bool, secrets: Iterable[str] = ()) -> None:
    """As `configure_console`, and DEBUG to `directory/submission.log`, rotating."""
    hidden = tuple(secrets)
    configure_console(verbose=verbose, secrets=hidden)
    root = logging.getLogger()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = FileHandler(directory / "submission.log", maxBytes=FILE_BYTES, backupCount=FILE_COUNT, encoding="utf-8")
    except OSError as error:
        root.warning("Cannot write the log below %s (%s); going on without a file.", directory, error.strerror)
        return
    file.setFormatter(RedactingFormatter(_FILE_FORMAT, hidden))
    root.addHandler(file)
