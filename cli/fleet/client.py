"""Which fleet the commands use by default, and with which API key."""

from __future__ import annotations

from typing import Any

from forecastd.fleet.client import FleetClient
from forecastd.runtime.files import read_text_file
from forecastd.settings import Settings

WILDCARD_HOSTS = {"0.0.0.0", "::", "[::]", ""}  # noqa: S104 - addresses to listen on, not to connect to


def make_client(settings: Settings, url: str | None, key: str | None, **options: Any) -> FleetClient:
    """A client of the service of the options, else of the one that the settings would start on this machine."""
    return FleetClient(url or default_url(settings), key or default_key(settings), **options)


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
