"""Formats of a log record: a line of text, or one JSON object per line.

Invariant: all text of a record passes `Redactor.redact` before it is cleaned, shortened or indented. A record starts
exactly one line: continuation lines are indented, and characters that could move the cursor are escaped.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime

from forecastd.logs.redaction import Redactor

MAX_CHARACTERS = 200_000  # of a message or a traceback; longer text loses its middle
_INDENT = "  "
# Control characters except newline and tab; line and paragraph separators; bidirectional marks; lone surrogates.
_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufff9-\ufffb]"
)


class LineFormatter(logging.Formatter):
    """A record as text for people, or as one ASCII JSON object.

    Text has the level and the message, with `timestamps` also the time, with `locations` also process, function and line
    number. JSON always has all fields. Without `tracebacks`, an exception is summarized in one line.
    """

    def __init__(
        self,
        redactor: Redactor,
        *,
        tracebacks: bool,
        json: bool = False,
        timestamps: bool = False,
        locations: bool = False,
    ) -> None:
        super().__init__()
        self._redactor = redactor
        self._tracebacks, self._json, self._timestamps, self._locations = tracebacks, json, timestamps, locations

    def format(self, record: logging.LogRecord) -> str:
        """The record; as text, all lines but the first are indented."""
        message, traceback = self._message(record), self._traceback(record)
        if self._json:
            fields: dict[str, object] = {
                "time": format_timestamp(record),
                "level": record.levelname,
                "logger": self._clean(record.name),
                "function": self._clean(record.funcName or ""),
                "line": record.lineno,
                "process": record.process,
                "message": message,
            }
            return json.dumps(fields | {"traceback": traceback} if traceback else fields)
        head = f"{record.levelname}: "
        if self._timestamps:
            head = f"{format_timestamp(record)} {record.levelname:<8} "
        if self._locations:
            location = f"{record.process} {record.name}:{record.funcName}:{record.lineno}"
            head += f"{self._clean(location)} ".replace("\n", " ")
        text = "\n".join(part for part in (message, traceback) if part)
        return head + text.replace("\n", f"\n{_INDENT}")

    def _message(self, record: logging.LogRecord) -> str:
        """The message, followed by a summary of the exception when tracebacks are off."""
        message = self._clean(record.getMessage())
        error = record.exc_info[1] if record.exc_info else None
        if error is None or self._tracebacks:
            return message
        summary = self._clean(f"{type(error).__name__}: {error}".removesuffix(": "))
        return f"{message} ({summary.partition(chr(10))[0]})"

    def _traceback(self, record: logging.LogRecord) -> str:
        """The traceback with its causes, and the stack if the record has one; empty when there is neither."""
        if not self._tracebacks or not (record.exc_info or record.exc_text or record.stack_info):
            return ""
        parts = [record.exc_text or "", record.stack_info or ""]
        if record.exc_info and record.exc_info[1] is not None:
            parts[0] = self.formatException(record.exc_info)
        return self._clean("\n".join(part for part in parts if part))

    def _clean(self, text: str) -> str:
        length, half = len(text), MAX_CHARACTERS // 2
        if length > 2 * MAX_CHARACTERS:
            text = text[:MAX_CHARACTERS] + text[-MAX_CHARACTERS:]  # the code below removes the joint
        text = self._redactor.redact(text).replace("\r\n", "\n").rstrip()
        if len(text) > MAX_CHARACTERS:
            text = f"{text[:half]}\n[{length - 2 * half} characters left out]\n{text[-half:]}"
        return _UNSAFE.sub(lambda match: ascii(match[0])[1:-1], text)


def format_timestamp(record: logging.LogRecord) -> str:
    """The record's time, as `2019-10-17T09:00:00.123Z`."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
