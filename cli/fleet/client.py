"""The HTTP client of the commands that inspect a running fleet.

Invariant: the server may be any program. Every request has a limit on its total time and on the size of the response,
and a response that is not a fleet's is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from forecastd.errors import ExitCode, ForecastdError, NeedsHuman, RetryLater
from forecastd.fleet.documents import parse_document
from forecastd.logs import hide
from forecastd.runtime.files import read_text_file
from forecastd.runtime.http import HttpRequestFailed, fetch_url, host_and_port, split_http_url
from forecastd.settings import Settings

T = TypeVar("T")
REQUEST_SECONDS = 10.0  # for a whole request and its response
WILDCARD_HOSTS = {"0.0.0.0", "::", "[::]", ""}  # noqa: S104 - addresses to listen on, not to connect to


class FleetNotRunning(ForecastdError):
    """No fleet is running at this address."""

    exit_code = ExitCode.NOTHING_TO_DO


class FleetAccessDenied(NeedsHuman):
    """The fleet rejects the API key, or needs one."""


class FleetClient:
    """A client of a running fleet at a URL such as `http://127.0.0.1:8080`."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """Raises NeedsHuman when `url` is not an HTTP URL."""
        if split_http_url(url) is None:
            raise NeedsHuman(f"{url!r} is not a fleet URL. Pass one such as --url http://127.0.0.1:8080.")
        hide(key or "")
        self.name = host_and_port(url)
        self._url = url.rstrip("/")
        self._headers = {"X-API-Key": key} if key else {}

    def get(self, path: str, **params: str | int) -> dict[str, Any]:
        """The JSON object at a path.

        Raises:
            FleetNotRunning: the connection was refused.
            RetryLater: no response in time, or a temporary error.
            FleetAccessDenied: the API key was rejected.
            NeedsHuman: the server is not a fleet.
        """
        try:
            response = fetch_url(
                self._url + path, {name: str(value) for name, value in params.items()}, self._headers, REQUEST_SECONDS
            )
        except HttpRequestFailed as error:
            if not error.connect_error:
                raise
            raise FleetNotRunning(
                f"No fleet is running at {self.name} ({error.connect_error}). "
                "Start it with `forecastd fleet serve`, or pass its --url."
            ) from None
        document = _parse_object(response.body)
        if response.status == 200 and document is not None:
            return document
        reason = " ".join(str(document[name]) for name in ("error", "fix") if name in document) if document else ""
        if response.status in {401, 403}:
            fix = "Pass a valid key with --api-key, or set FLEET_API_KEYS."
            raise FleetAccessDenied(f"{self.name} refused the request ({response.status}). {reason or fix}")
        if response.status in {408, 429} or response.status >= 500:
            raise RetryLater(f"{self.name} is not available now ({response.status}). {reason}".rstrip())
        kind = "" if document is not None else " without JSON"
        raise self.not_a_fleet(f"{path} returned {response.status}{kind}. {reason}")

    def fetch(self, kind: type[T], path: str, **params: str | int) -> T:
        """The document at a path. Raises as `get` does, and NeedsHuman when it is not of this kind."""
        return self.parse(kind, path, self.get(path, **params))

    def parse(self, kind: type[T], path: str, document: Mapping[str, Any]) -> T:
        """A document that was read from a path. Raises NeedsHuman when it is not of this kind."""
        try:
            return parse_document(kind, document)
        except ValueError as error:
            raise self.not_a_fleet(f"{path}: {error}.") from None

    def not_a_fleet(self, problem: str) -> NeedsHuman:
        """The error for a server that is not a fleet, or is one of an incompatible version."""
        return NeedsHuman(f"{self.name} is not a fleet of a known version: {problem.strip()} Check --url.")


def make_client(settings: Settings, url: str | None, key: str | None) -> FleetClient:
    """A client of the service of the options, else of the one that the settings would start on this machine."""
    return FleetClient(url or default_url(settings), key or default_key(settings))


def default_url(settings: Settings) -> str:
    """The URL of the service that the settings would start on this machine."""
    host = "127.0.0.1" if settings.fleet.host in WILDCARD_HOSTS else settings.fleet.host
    address = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{address}:{settings.fleet.port}"


def default_key(settings: Settings) -> str | None:
    """The first key of FLEET_API_KEYS, else of FLEET_API_KEYS_FILE."""
    keys: list[str] = []
    if settings.fleet.api_keys is not None:
        keys += settings.fleet.api_keys.get_secret_value().split(",")
    if settings.fleet.api_keys_file is not None:
        text = read_text_file(settings.fleet.api_keys_file, "The API key file", "Or pass --api-key.")
        keys += [line for line in text.splitlines() if not line.strip().startswith("#")]
    return next((key.strip() for key in keys if key.strip()), None)


def _parse_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object in a body; None when it is not one."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
