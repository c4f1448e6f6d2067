"""How many requests a client may send: a counter for each key, or for each address where no key is asked for.

The window slides (two counters, weighted), and its name holds the time, so a clock that is set back locks nobody out.
"""

from __future__ import annotations

import math
import secrets

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from forecastd.fleet.api.request_headers import client_bucket


class RateLimit:
    """So many requests a minute for each client; 0 is without limit. Memory is bounded however many clients there are."""

    def __init__(self, a_minute: int) -> None:
        self._item = RateLimitItemPerMinute(a_minute) if a_minute else None
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._salt = secrets.randbits(64)  # which addresses share a counter is not for a client to find out

    def client_key(self, key: int | None, address: str) -> str:
        """Who a request is counted for: its key's number, or its address."""
        return client_bucket(address, self._salt) if key is None else f"key-{key}"

    def retry_after(self, client: str) -> int:
        """Count a request. Gives 0 when it may go on, else after how many seconds it may be tried again."""
        if self._item is None or self._limiter.hit(self._item, client):
            return 0
        seconds = self._item.get_expiry() / max(1, self._item.amount)  # one more is free after about that
        return max(1, math.ceil(seconds))
