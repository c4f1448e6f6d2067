"""Speaks to a fleet over HTTP, as any agent would: its clock from GET /status, rows by POST /feed.

An answer that may be another one in a moment (429, 503, nobody there) is `RetryLater`, with the seconds that the service asks
to wait; what only a person can mend is `NeedsHuman`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from forecastd.clock import from_iso
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.logs import hide
from forecastd.runtime.http import host_and_port, is_loopback

if TYPE_CHECKING:
    import requests

TIMEOUT_SECONDS = (3.05, 30.0)  # seconds to connect, and for one read
MAX_RESPONSE_BYTES = 4 << 20  # bytes of an answer


class FleetUnavailable(RetryLater):
    """The fleet does not take it now."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None, maybe_accepted: bool = False) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds  # that the service asks for
        self.maybe_accepted = maybe_accepted  # whether it may have been taken all the same


class BodyTooLarge(Exception):
    """The body is larger than the service takes."""


@dataclass(frozen=True)
class ServiceTime:
    """The service's own clock when it was asked: unix seconds, seconds a tick, and how fast it runs."""

    now: float
    step: int
    speed: float


class FeedClient:
    """One fleet. `key`: its API key, None where it asks for none."""

    def __init__(self, url: str, key: str | None = None) -> None:
        import requests

        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise NeedsHuman(
                f"{host_and_port(url) or url!r} is no address of a fleet: pass one such as http://127.0.0.1:8080."
            )
        hide(key or "")
        self._url, self.name = url.rstrip("/"), host_and_port(url)
        self._session = requests.Session()
        self._session.trust_env = not is_loopback(parts.hostname)  # a proxy does not know this machine's own ports
        self._session.auth = lambda request: request  # or a user's .netrc would be asked
        if key is not None:
            self._session.headers["X-API-Key"] = key

    def close(self) -> None:
        """Let go of the connection."""
        self._session.close()

    def get_time(self) -> ServiceTime:
        """The service's clock.

        Raises:
            Wait: it does not answer now.
            NeedsHuman: no fleet is there, or it does not take the key.
        """
        document = self._request("GET", "/status")
        try:
            step, tick, now = int(document["step_seconds"]), document["tick"], from_iso(document["now"])
            if tick["newest"] >= 0:  # to the millisecond, which `now` is not
                now = (tick["newest"] + 1) * step + float(tick["age_seconds"])
            return ServiceTime(now, step, float(document.get("speed", 1.0)))
        except (KeyError, TypeError, ValueError):
            raise NeedsHuman(f"{self.name} answers, but not as a fleet does. Is the address right?") from None

    def send(self, body: bytes, content_type: str) -> dict[str, Any]:
        """What became of the rows: the service's own answer.

        Raises:
            TooLarge: it takes no body of this size.
            Wait, NeedsHuman: as `time`.
        """
        return self._request("POST", "/feed", body, {"Content-Type": content_type})

    def _request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        import requests
        import urllib3

        try:
            with self._session.request(
                method, self._url + path, data=body, headers=dict(headers or {}), timeout=TIMEOUT_SECONDS, allow_redirects=False,
                stream=True,
            ) as response:  # fmt: skip
                text = response.raw.read(MAX_RESPONSE_BYTES, decode_content=True)
                return self._parse_response(response, text)
        except requests.ConnectionError as error:
            refused = "NewConnectionError" in repr(error)
            problem = "is not there: nobody listens" if refused else "broke the connection off"
            raise FleetUnavailable(f"{self.name} {problem}.", maybe_accepted=not refused) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise FleetUnavailable(
                f"{self.name} did not answer ({type(error).__name__}).", maybe_accepted=True
            ) from None

    def _parse_response(self, response: requests.Response, text: bytes) -> dict[str, Any]:
        status = response.status_code
        try:
            document = json.loads(text)
        except ValueError:
            document = None
        if status == 200 and isinstance(document, dict):
            return document
        reason = (
            " ".join(str(document[name]) for name in ("error", "fix") if name in document)
            if isinstance(document, dict)
            else ""
        )
        if status == 413:
            raise BodyTooLarge(reason)
        if status in {408, 429} or status >= 500:
            raise FleetUnavailable(
                f"{self.name} says {status}. {reason}".rstrip(),
                retry_after_seconds=_parse_retry_after(response.headers.get("Retry-After")),
                maybe_accepted=status >= 500 and status != 503,
            )
        if status in {401, 403}:
            raise NeedsHuman(f"{self.name} says {status}. {reason or 'Pass its API key.'}")
        raise NeedsHuman(f"{self.name} says {status}. {reason or 'No fleet is there: look at the address.'}")


def _parse_retry_after(text: str | None) -> float | None:
    """A Retry-After in seconds; the other form, a date, is left to our own pauses."""
    return float(text) if text is not None and text.isdigit() else None
