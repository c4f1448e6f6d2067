"""What is logged of requests that are refused: one line for each kind of refusal and minute, however many there are.

Whoever is refused chooses how often, and must not be able to fill a disk with it.
"""

from __future__ import annotations

import logging
import threading

from forecastd.clock import Clock

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 60.0  # seconds


class RefusalLog:
    """Tells of refusals. Any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last_logged: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}

    def record(self, kind: str, text: str) -> None:
        """A request was refused. `kind` is one of a fixed few; `text` says what and from where."""
        with self._lock:
            now = self._clock.monotonic()
            if now - self._last_logged.get(kind, -INTERVAL_SECONDS) < INTERVAL_SECONDS:
                self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
                return
            self._last_logged[kind] = now
            suppressed = self._suppressed.pop(kind, 0)
        suffix = f" ({suppressed} more of this kind since the last line)" if suppressed else ""
        log.warning("%s%s", text, suffix, extra={"action": "refused"})
