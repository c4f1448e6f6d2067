"""The other side of a pseudo-terminal."""

from __future__ import annotations

import os
import select

TIMEOUT_SECONDS = 60.0  # long, for a busy machine


class TerminalReader:
    """Reads what a program prints on a terminal. `output` has everything so far."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.output = b""

    def read_until(self, text: bytes | None) -> None:
        """Read until `text` appears in new output, or, with None, until the program has closed the terminal."""
        start = len(self.output)
        while text is None or text not in self.output[start:]:
            ready, _, _ = select.select([self._descriptor], [], [], TIMEOUT_SECONDS)
            assert ready, self.output[-2000:]
            try:
                data = os.read(self._descriptor, 65_536)
            except OSError:  # EIO: no process has the terminal open
                data = b""
            if not data:
                assert text is None, self.output[-2000:]
                return
            self.output += data
