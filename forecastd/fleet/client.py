"""The HTTP client of a fleet, for the commands that show one and for the simulator that feeds one.

Invariant: the server may be any program. Every request has a limit on its total time and on the size of the response,
and a response that is not a fleet's is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from forecastd.errors import ExitCode, NeedsHuman, RetryLater
from forecastd.fleet.documents import parse_document
from forecastd.logs import hide
from forecastd.runtime.closeable import Closeable
from forecastd.runtime.http import HttpClient, HttpRequestFailed, host_and_port, split_http_url

T = TypeVar("T")
REQUEST_SECONDS = 10.0  # for a whole request and its response


class FleetUnavailable(RetryLater):
    """The fleet is not available now.

    `retry_after`: the seconds that it asks to wait. `maybe_accepted`: whether rows may have been accepted anyway.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, maybe_accepted: bool = False) -> None:
        super().__init__(message)
        self.retry_after, self.maybe_accepted = retry_after, maybe_accepted


class FleetNotRunning(FleetUnavailable):
    """No fleet is running at this address."""

    exit_code = ExitCode.NOTHING_TO_DO


class FleetAccessDenied(NeedsHuman):
    """The fleet rejects the API key, or needs one."""


class BodyTooLarge(NeedsHuman):
    """The body is larger than the fleet accepts."""


class FleetClient(Closeable):
    """A client of a running fleet at a URL such as `http://127.0.0.1:8080`. Every method may raise:

    FleetNotRunning: the connection was refused.
    FleetUnavailable: no response in time, or a temporary error.
    FleetAccessDenied: the API key was rejected.
    NeedsHuman: the server is not a fleet.
    """

    def __init__(
        self, url: str, key: str | None = None, *, seconds: float | None = None, keep_alive: bool = False
    ) -> None:
        """`seconds`: for a whole request and its response. Raises NeedsHuman when `url` is not an HTTP URL."""
        if split_http_url(url) is None:
            without_user = url.rpartition("@")[2]
            raise NeedsHuman(f"{without_user!r} is not a fleet URL. Pass one such as --url http://127.0.0.1:8080.")
        hide(key or "")
        self.name, self._seconds = host_and_port(url), seconds or REQUEST_SECONDS
        headers = {"X-API-Key": key} if key else {}
        self._client = HttpClient(url.rstrip("/"), headers=headers, socket_timeout=self._seconds, keep_alive=keep_alive)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def get(self, path: str, **params: str | int) -> dict[str, Any]:
        """The JSON object at a path."""
        return self._request("GET", path, params={name: str(value) for name, value in params.items()})

    def fetch(self, kind: type[T], path: str, **params: str | int) -> T:
        """The document of this kind at a path."""
        return self.parse(kind, path, self.get(path, **params))

    def parse(self, kind: type[T], path: str, document: Mapping[str, Any]) -> T:
        """A document that was read from a path."""
        try:
            return parse_document(kind, document)
        except ValueError as error:
            raise self.not_a_fleet(f"{path}: {error}.") from None

    def feed(self, body: bytes, content_type: str) -> dict[str, Any]:
        """Send rows and return the response. Raises BodyTooLarge where the fleet accepts no body of this size."""
        return self._request("POST", "/feed", body=body, headers={"Content-Type": content_type})

    def not_a_fleet(self, problem: str) -> NeedsHuman:
        """The error for a server that is not a fleet, or is one of an incompatible version."""
        return NeedsHuman(f"{self.name} is not a fleet of a known version: {problem.strip()} Check --url.")

    def _request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, deadline=self._seconds, **options)
        except HttpRequestFailed as error:
            if not error.connect_error:
                raise FleetUnavailable(str(error), maybe_accepted=True) from None
            raise FleetNotRunning(
                f"No fleet is running at {self.name} ({error.connect_error}). "
                "Start it with `forecastd fleet serve`, or pass its --url."
            ) from None
        status, document = response.status, _parse_object(response.body)
        if status == 200 and document is not None:
            return document
        reason = " ".join(str(document[name]) for name in ("error", "fix") if name in document) if document else ""
        if status in {401, 403}:
            fix = "Pass a valid key with --api-key, or set FLEET_API_KEYS."
            raise FleetAccessDenied(f"{self.name} refused the request ({status}). {reason or fix}")
        if status == 413:
            raise BodyTooLarge(reason)
        if status in {408, 429} or status >= 500:
            wait = response.headers.get("retry-after", "")
            raise FleetUnavailable(
                f"{self.name} is not available now ({status}). {reason}".rstrip(),
                retry_after=float(wait) if wait.isdigit() else None,  # the other form, a date, is ignored
                maybe_accepted=status >= 500 and status != 503,
            )
        kind = "" if document is not None else " without JSON"
        raise self.not_a_fleet(f"{path} returned {status}{kind}. {reason}")


def _parse_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object in a body; None when it is not one."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
