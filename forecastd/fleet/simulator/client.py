"""The HTTP client of a simulation, as any agent would be: the service's clock from GET /status, rows by POST /feed.

A temporary failure (429, 503, no listener) is `FleetUnavailable`, with the seconds that the service asks to wait; a
failure that only a person can fix is `NeedsHuman`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forecastd.clock import from_iso
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.logs import hide
from forecastd.runtime.http import HttpClient, HttpRequestFailed, host_and_port, split_http_url

DEADLINE_SECONDS = 30.0  # for a request and its response
MAX_RESPONSE_BYTES = 4 << 20


class FleetUnavailable(RetryLater):
    """The fleet is not available now."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None, maybe_accepted: bool = False) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds  # requested by the service
        self.maybe_accepted = maybe_accepted  # whether the rows may have been accepted anyway


class BodyTooLarge(Exception):
    """The body is larger than the service accepts."""


@dataclass(frozen=True)
class ServiceTime:
    """The service's clock at the time of the request.

    `now` in unix seconds, `step` in seconds per tick, and its `speed`.
    """

    now: float
    step: int
    speed: float


class FeedClient:
    """A client of one fleet. `key`: its API key, None where it needs none."""

    def __init__(self, url: str, key: str | None = None) -> None:
        if split_http_url(url) is None:
            raise NeedsHuman(
                f"{host_and_port(url) or url!r} is not a fleet URL. Pass one such as http://127.0.0.1:8080."
            )
        hide(key or "")
        self.name = host_and_port(url)
        self._client = HttpClient(
            url.rstrip("/"), headers={} if key is None else {"X-API-Key": key}, max_bytes=MAX_RESPONSE_BYTES,
            socket_timeout=DEADLINE_SECONDS, keep_alive=True,
        )  # fmt: skip

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def get_time(self) -> ServiceTime:
        """The service's clock.

        Raises:
            FleetUnavailable: it does not respond now.
            NeedsHuman: the service is not a fleet, or it rejects the key.
        """
        document = self._request("GET", "/status")
        try:
            step, tick, now = int(document["step_seconds"]), document["tick"], from_iso(document["now"])
            if tick["newest"] >= 0:  # precise to the millisecond, unlike `now`
                now = (tick["newest"] + 1) * step + float(tick["age_seconds"])
            return ServiceTime(now, step, float(document.get("speed", 1.0)))
        except (KeyError, TypeError, ValueError):
            raise NeedsHuman(f"{self.name} responds, but not as a fleet. Check the address.") from None

    def send(self, body: bytes, content_type: str) -> dict[str, Any]:
        """Send rows and return the response of the service.

        Raises:
            BodyTooLarge: the service accepts no body of this size.
            FleetUnavailable, NeedsHuman: as `get_time`.
        """
        return self._request("POST", "/feed", body, {"Content-Type": content_type})

    def _request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, headers=headers, body=body, deadline=DEADLINE_SECONDS)
        except HttpRequestFailed as error:
            if error.connect_error:
                raise FleetUnavailable(f"{self.name} is not running ({error.connect_error}).") from None
            raise FleetUnavailable(str(error), maybe_accepted=True) from None
        status = response.status
        try:
            document = json.loads(response.body)
        except ValueError:
            document = None
        if status == 200 and isinstance(document, dict):
            return document
        problem = document if isinstance(document, dict) else {}
        reason = " ".join(str(problem[name]) for name in ("error", "fix") if name in problem)
        if status == 413:
            raise BodyTooLarge(reason)
        if status in {408, 429} or status >= 500:
            raise FleetUnavailable(
                f"{self.name} returned {status}. {reason}".rstrip(),
                retry_after_seconds=_parse_retry_after(response.headers.get("retry-after")),
                maybe_accepted=status >= 500 and status != 503,
            )
        if status in {401, 403}:
            raise NeedsHuman(f"{self.name} returned {status}. {reason or 'Pass its API key.'}")
        raise NeedsHuman(f"{self.name} returned {status}. {reason or 'It is not a fleet: check the address.'}")


def _parse_retry_after(text: str | None) -> float | None:
    """A Retry-After in seconds; None for the other form, a date: our own pauses apply then."""
    return float(text) if text is not None and text.isdigit() else None
