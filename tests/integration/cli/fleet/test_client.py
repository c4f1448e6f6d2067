"""Which fleet the commands use, and with which API key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer

from cli.fleet.client import make_client
from forecastd.settings import load_settings

STATUS: dict[str, Any] = {"version": "1", "now": "x", "step_seconds": 5, "tick": {}, "servers": {}}
KEY = "0123456789abcdef-first"


@pytest.mark.parametrize(("host", "name"), [
    ("127.0.0.1", "127.0.0.1:8231"), ("0.0.0.0", "127.0.0.1:8231"), ("::", "127.0.0.1:8231"),  # noqa: S104
    ("::1", "[::1]:8231"), ("[::1]", "[::1]:8231"), ("fleet.example.org", "fleet.example.org:8231"),
])  # fmt: skip
def test_default_url_follows_settings(host: str, name: str) -> None:
    settings = load_settings(fleet_host=host, fleet_port=8231)
    assert make_client(settings, None, None).name == name
    assert make_client(settings, "https://user:secret@other/", None).name == "other"


def test_api_key_is_option_or_first_of_settings(httpserver: HTTPServer, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# the dashboard's\n\n{KEY}\nanother-key-of-them\n")
    httpserver.expect_request("/status", headers={"X-API-Key": KEY}).respond_with_json(STATUS)
    url = httpserver.url_for("")
    cases: list[tuple[dict[str, Any], str | None]] = [
        ({}, KEY), ({"fleet_api_keys": f" {KEY} ,other"}, None), ({"fleet_api_keys_file": file}, None),
        ({"fleet_api_keys": "other-key-of-somebody"}, KEY),
    ]  # fmt: skip
    for values, key in cases:
        assert make_client(load_settings(**values), url, key).get("/status") == STATUS
