"""A standard output whose failures do not stop the program.

Invariant: a closed pipe or a full disk must not decide whether a submission is sent. The first failure is stored, and later
output is discarded. If stdout is not a terminal, trailing blanks are removed. Characters that the encoding lacks are escaped.
"""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO


class SafeOutput:
    """Replaces a text stream. `broken` is the error that ended it, None while it works."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._line = ""
        self.broken: OSError | None = None

    def write(self, text: str) -> int:
        """Write, or do nothing if the stream is broken."""
        if self._stream.isatty():
            self._write_safely(text)
            return len(text)
        *lines, self._line = (self._line + text).split("\n")
        if lines:
            self._write_safely("".join(f"{line.rstrip()}\n" for line in lines))
        return len(text)

    def flush(self) -> None:
        """Flush the complete lines."""
        self._write_safely("")

    def finish(self) -> None:
        """Write everything, an incomplete line too."""
        rest, self._line = self._line, ""
        self._write_safely(rest)

    def _write_safely(self, text: str) -> None:
        if self.broken is not None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            self.broken = error
            # The buffered text would fail again when the interpreter exits.
            null_device = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null_device, self._stream.fileno())
            os.close(null_device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def install_output() -> SafeOutput:
    """Replace `sys.stdout` by a `SafeOutput`, and escape characters that stdout and stderr cannot encode."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    output = SafeOutput(sys.stdout)
    sys.stdout = output
    return output
