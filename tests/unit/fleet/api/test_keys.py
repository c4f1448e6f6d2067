"""API keys: their sources, invalid keys, and that no key is ever shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.errors import NeedsHuman
from forecastd.fleet.api.keys import ApiKeys, load_keys, require_keys
from forecastd.logs import redacted
from forecastd.runtime.http import is_loopback
from forecastd.settings import Settings, load_settings

FIRST_KEY, SECOND_KEY = "one-key-of-good-length", "two-key-of-good-length"
key = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=16, max_size=40)


def settings(**values: Any) -> Settings:
    return load_settings(**values)


@given(keys=st.lists(key, min_size=1, max_size=5, unique=True), other=key | st.text(max_size=40))
def test_api_key_matches_its_number_only(keys: list[str], other: str) -> None:
    api_keys = ApiKeys(keys)
    assert [api_keys.match(stored) for stored in keys] == list(range(len(keys)))
    assert api_keys.match(other) == (keys.index(other) if other in keys else None)
    assert ApiKeys().match(other) is None
    assert all(stored not in repr(vars(api_keys)) for stored in keys)


def test_keys_from_variable_file_and_credential_are_merged(tmp_path: Path) -> None:
    file, credential = tmp_path / "keys", tmp_path / "fleet-api-keys"
    file.write_text(f"# two lines of keys\n{SECOND_KEY}\n\n")
    file.chmod(0o600)
    credential.write_text("the-key-of-the-credential\n")
    loaded = load_keys(
        settings(fleet_api_keys=f" {FIRST_KEY} ,", fleet_api_keys_file=file, credentials_directory=tmp_path)
    )
    assert [loaded.match(path) for path in (FIRST_KEY, SECOND_KEY, "the-key-of-the-credential")] == [0, 1, 2]
    assert len(loaded) == 3
    assert not load_keys(settings())
    assert FIRST_KEY not in redacted(f"a line with {FIRST_KEY}")


@pytest.mark.parametrize("invalid", ["short", "a key with blanks in it", "x" * 257, "ключ-достаточной-длины"])
def test_invalid_key_is_refused_by_number_and_not_shown(invalid: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{FIRST_KEY}\n{invalid}\n")
    file.chmod(0o600)
    for values in ({"fleet_api_keys": f"{FIRST_KEY},{invalid}"}, {"fleet_api_keys_file": file}):
        with pytest.raises(NeedsHuman, match="key 2 is invalid") as caught:
            load_keys(settings(**values))
        assert invalid not in str(caught.value)
        assert FIRST_KEY not in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o700])
def test_key_file_readable_by_others_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "keys"
    file.write_text(FIRST_KEY)
    file.chmod(mode)
    with pytest.raises(NeedsHuman, match="chmod 600"):
        load_keys(settings(fleet_api_keys_file=file))


def test_key_file_empty_or_missing_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("# nothing\n")
    empty.chmod(0o600)
    with pytest.raises(NeedsHuman, match="no API key"):
        load_keys(settings(fleet_api_keys_file=empty))
    with pytest.raises(NeedsHuman, match="No such file"):
        load_keys(settings(fleet_api_keys_file=tmp_path / "missing"))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False),  # noqa: S104
     ("::", False), ("10.0.0.1", False), ("example.org", False), ("localhost.example.org", False), ("", False)],
)  # fmt: skip
def test_non_loopback_host_requires_key(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    require_keys(ApiKeys([FIRST_KEY]), host)
    if loopback:
        require_keys(ApiKeys(), host)
    else:
        with pytest.raises(NeedsHuman, match="FLEET_API_KEYS_FILE"):
            require_keys(ApiKeys(), host)
