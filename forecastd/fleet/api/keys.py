"""API keys: who may ask. Only digests are kept, and a given key is compared with all of them, so that neither a key nor its
place in the list can be learnt from how long an answer takes.
"""

from __future__ import annotations

import hashlib
import hmac
import stat
from collections.abc import Iterable
from pathlib import Path

from forecastd.errors import NeedsHuman
from forecastd.fleet.api.listen_address import is_loopback
from forecastd.logs import hide
from forecastd.runtime.text_file import read_text_file
from forecastd.settings import Settings

MIN_KEY_LENGTH, MAX_KEY_LENGTH = 16, 256  # characters of a key
CREDENTIAL_NAME = "fleet-api-keys"  # its name as a systemd credential
KEY_HINT = "Make one with: openssl rand -hex 32"


class ApiKeys:
    """The keys that are good. Falsy when none is set, which means that no key is asked for."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = tuple(dict.fromkeys(_digest(key) for key in keys))

    def __len__(self) -> int:
        return len(self._digests)

    def match(self, key: str) -> int | None:
        """The number of the key that this is, None when it is none of them."""
        digest, matching = _digest(key), None
        for number, candidate in enumerate(self._digests):
            if hmac.compare_digest(candidate, digest):
                matching = number
        return matching


def load_keys(settings: Settings) -> ApiKeys:
    """The keys of `FLEET_API_KEYS`, `FLEET_API_KEYS_FILE` and systemd's credential `fleet-api-keys`, all together.

    Raises:
        NeedsHuman: a file cannot be read or may be read by others, or a key is too short. No key is shown.
    """
    keys: list[str] = []
    if settings.fleet_api_keys is not None:
        text = settings.fleet_api_keys.get_secret_value()
        keys += _check_keys([part.strip() for part in text.split(",") if part.strip()], "FLEET_API_KEYS")
    if settings.fleet_api_keys_file is not None:
        keys += _read_keys(settings.fleet_api_keys_file, private=True)
    directory = settings.credentials_directory
    if directory is not None and (directory / CREDENTIAL_NAME).exists():
        keys += _read_keys(directory / CREDENTIAL_NAME, private=False)  # systemd shows it to this service alone
    return ApiKeys(keys)


def require_keys(keys: ApiKeys, host: str) -> None:
    """Raises NeedsHuman when the API would be open to others: it listens beyond this machine and asks for no key."""
    if keys or is_loopback(host):
        return
    raise NeedsHuman(
        f"FLEET_HOST is {host}, which others can reach, and no API key is set. Put a key into a file (chmod 600) and name "
        f"it in FLEET_API_KEYS_FILE, or set FLEET_API_KEYS, or listen on 127.0.0.1. {KEY_HINT}"
    )


def _read_keys(path: Path, *, private: bool) -> list[str]:
    text = read_text_file(path, "The file of API keys", "One key a line, mode 0600.")
    mode = stat.S_IMODE(path.stat().st_mode)
    if private and mode & 0o177:
        raise NeedsHuman(f"{path} has mode {mode:04o}, so others may read the API keys. Run: chmod 600 {path}")
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise NeedsHuman(f"{path} holds no API key. Write one a line. {KEY_HINT}")
    return _check_keys(keys, f"The file {path}")


def _check_keys(keys: list[str], source: str) -> list[str]:
    hide(*keys)
    for number, key in enumerate(keys, start=1):
        if not (
            MIN_KEY_LENGTH <= len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable() and " " not in key
        ):
            raise NeedsHuman(
                f"{source}: key {number} is no good: a key is {MIN_KEY_LENGTH} to {MAX_KEY_LENGTH} letters, digits and signs without "
                f"blanks. {KEY_HINT}"
            )
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
