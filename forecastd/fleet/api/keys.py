"""API keys.

Invariant: only digests are stored, and a key is compared with all of them, so that the response time reveals neither
a key nor its position in the list.
"""

from __future__ import annotations

import hashlib
import hmac
import stat
from collections.abc import Iterable
from pathlib import Path

from forecastd.errors import NeedsHuman
from forecastd.logs import hide
from forecastd.runtime.files import read_text_file
from forecastd.runtime.http import is_loopback
from forecastd.settings import Settings

MIN_KEY_LENGTH, MAX_KEY_LENGTH = 16, 256  # characters of a key
CREDENTIAL_NAME = "fleet-api-keys"  # the systemd credential
KEY_HINT = "Create one with: openssl rand -hex 32"


class ApiKeys:
    """The valid keys. Falsy when none is set: then no key is needed."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = tuple(dict.fromkeys(_digest(key) for key in keys))

    def __len__(self) -> int:
        return len(self._digests)

    def match(self, key: str) -> int | None:
        """The number of the matching key; None when the key is invalid."""
        digest, matching = _digest(key), None
        for number, candidate in enumerate(self._digests):
            if hmac.compare_digest(candidate, digest):
                matching = number
        return matching


def load_keys(settings: Settings) -> ApiKeys:
    """The keys of `FLEET_API_KEYS`, `FLEET_API_KEYS_FILE` and the systemd credential `fleet-api-keys`, merged.

    Raises:
        NeedsHuman: a file is unreadable or readable by others, or a key is invalid. The message contains no key.
    """
    keys: list[str] = []
    if settings.fleet.api_keys is not None:
        text = settings.fleet.api_keys.get_secret_value()
        keys += _check_keys([part.strip() for part in text.split(",") if part.strip()], "FLEET_API_KEYS")
    if settings.fleet.api_keys_file is not None:
        keys += _read_keys(settings.fleet.api_keys_file, private=True)
    directory = settings.systemd.credentials_directory
    if directory is not None and (directory / CREDENTIAL_NAME).exists():
        keys += _read_keys(directory / CREDENTIAL_NAME, private=False)  # only this service can read it
    return ApiKeys(keys)


def require_keys(keys: ApiKeys, host: str) -> None:
    """Raises NeedsHuman when other machines could use the API without a key."""
    if keys or is_loopback(host):
        return
    raise NeedsHuman(
        f"FLEET_HOST is {host}, which other machines can reach, and no API key is set. Put a key into a file "
        f"(chmod 600) and set FLEET_API_KEYS_FILE to it, or set FLEET_API_KEYS, or listen on 127.0.0.1. {KEY_HINT}"
    )


def _read_keys(path: Path, *, private: bool) -> list[str]:
    text = read_text_file(path, "The API key file", "Write one key per line, mode 0600.")
    mode = stat.S_IMODE(path.stat().st_mode)
    if private and mode & 0o177:
        raise NeedsHuman(f"{path} has mode {mode:04o}, so other users can read the API keys. Run: chmod 600 {path}")
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise NeedsHuman(f"{path} contains no API key. Write one per line. {KEY_HINT}")
    return _check_keys(keys, f"The file {path}")


def _check_keys(keys: list[str], source: str) -> list[str]:
    hide(*keys)
    for number, key in enumerate(keys, start=1):
        if not (
            MIN_KEY_LENGTH <= len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable() and " " not in key
        ):
            raise NeedsHuman(
                f"{source}: key {number} is invalid. Use {MIN_KEY_LENGTH} to {MAX_KEY_LENGTH} printable ASCII "
                f"characters without spaces. {KEY_HINT}"
            )
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
