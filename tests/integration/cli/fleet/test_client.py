"""Asking a running fleet: where it is looked for, with which key, and what is said of an answer that is none."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer

from cli.fleet.client import FleetAccessDenied, FleetClient, FleetNotRunning, make_client
from cli.fleet.schemas import StatusView, fetch
from forecastd.errors import ForecastdError, NeedsHuman, RetryLater
from forecastd.settings import Settings

STATUS: dict[str, Any] = {
    "version": "1",
    "now": "x",
    "step_seconds": 5,
    "tick": {},
    "servers": {},
    "more": "than known",
}
KEY = "0123456789abcdef-first"


@pytest.mark.parametrize(("answer", "kind", "told"), [
    ((200, "<html>"), NeedsHuman, "is no fleet that this program knows: /status answered with 200 that is not JSON."),
    ((200, "[]"), NeedsHuman, "is no fleet"),
    ((200, "{}"), NeedsHuman, "in what /status tells, version makes no sense"),
    ((200, '{"version": "1", "now": "x", "step_seconds": "often", "tick": {}, "servers": {}}'), NeedsHuman, "step_seconds"),
    ((200, "[" * 100_000), NeedsHuman, "is no fleet"),
    ((200, b"\xff"), NeedsHuman, "is no fleet"),
    ((404, '{"detail": "Not Found"}'), NeedsHuman, "/status answered with 404"),
    ((302, ""), NeedsHuman, "/status answered with 302"),
    ((401, '{"error": "No API key was given.", "fix": "Send one."}'), FleetAccessDenied, "(401). No API key was given. Send one."),
    ((403, ""), FleetAccessDenied, "Pass a key that it knows with --api-key"),
    ((429, '{"error": "Too many.", "fix": "Wait."}'), RetryLater, "cannot answer now (429). Too many. Wait."),
    ((503, ""), RetryLater, "cannot answer now (503)."),
])  # fmt: skip
def test_invalid_response_names_problem(
    httpserver: HTTPServer, answer: tuple[int, str | bytes], kind: type[ForecastdError], message: str
) -> None:
    httpserver.expect_request("/status").respond_with_data(answer[1], answer[0])
    with pytest.raises(kind) as caught:
        fetch(FleetClient(httpserver.url_for("")), StatusView, "/status")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_unknown_fields_are_ignored(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/status").respond_with_json(STATUS)
    assert fetch(FleetClient(httpserver.url_for("/")), StatusView, "/status").step_seconds == 5


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_silent_server_differs_from_no_server(silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.fleet.client.REQUEST_SECONDS", 0.2)
    with pytest.raises(RetryLater, match="did not answer in full"):
        FleetClient(silent_server).get("/status")


def test_no_listener_is_not_running() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(FleetNotRunning, match="No fleet is running at") as caught:
            FleetClient(url).get("/status")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://x", "http://", "http://x:99999999", "http://[::1"])
def test_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(NeedsHuman, match="is no address of a fleet"):
        FleetClient(url)


@pytest.mark.parametrize(("host", "name"), [
    ("127.0.0.1", "127.0.0.1:8231"), ("0.0.0.0", "127.0.0.1:8231"), ("::", "127.0.0.1:8231"),  # noqa: S104
    ("::1", "[::1]:8231"), ("[::1]", "[::1]:8231"), ("fleet.example.org", "fleet.example.org:8231"),
])  # fmt: skip
def test_default_url_follows_settings(host: str, name: str) -> None:
    settings = Settings(fleet_host=host, fleet_port=8231)
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
    for given, key in cases:
        assert make_client(Settings(**given), url, key).get("/status") == STATUS
