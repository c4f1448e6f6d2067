"""What is logged of requests that are refused: one line for each kind of refusal and minute, however many there are.

Whoever is refused chooses how often, and must not be able to fill a disk with it.
"""

from __future__ import annotations

import logging
import threading

from forecastd.clock import Clock

log = logging.getLogger(__name__)

EVERY = 60.0  # seconds


class Remarks:
    """Tells of refusals. Any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._told: dict[str, float] = {}
        self._untold: dict[str, int] = {}

    def refused(self, kind: str, text: str) -> None:
        """A request was refused. `kind` is one of a fixed few; `text` says what and from where."""
        with self._lock:
            now = self._clock.monotonic()
            if now - self._told.get(kind, -EVERY) < EVERY:
                self._untold[kind] = self._untold.get(kind, 0) + 1
                return
            self._told[kind] = now
            more = self._untold.pop(kind, 0)
        before = f" ({more} more of this kind since the last line)" if more else ""
        log.warning("%s%s", text, before, extra={"action": "refused"})
