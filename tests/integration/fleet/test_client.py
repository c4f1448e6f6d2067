"""The fleet client: invalid addresses and responses."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from pytest_httpserver import HTTPServer

from forecastd.errors import ForecastdError, NeedsHuman, RetryLater
from forecastd.fleet.client import FleetAccessDenied, FleetClient, FleetNotRunning
from forecastd.fleet.documents import StatusResponse

STATUS: dict[str, Any] = {
    "version": "1",
    "now": "x",
    "step_seconds": 5,
    "tick": {},
    "servers": {},
    "more": "than known",
}


@pytest.mark.parametrize(("answer", "kind", "message"), [
    ((200, "<html>"), NeedsHuman, "is not a fleet of a known version: /status returned 200 without JSON."),
    ((200, "[]"), NeedsHuman, "is not a fleet"),
    ((200, "{}"), NeedsHuman, "/status: version is invalid"),
    ((200, '{"version": "1", "now": "x", "step_seconds": "often", "tick": {}, "servers": {}}'), NeedsHuman, "step_seconds"),
    ((200, "[" * 100_000), NeedsHuman, "is not a fleet"),
    ((200, b"\xff"), NeedsHuman, "is not a fleet"),
    ((404, '{"detail": "Not Found"}'), NeedsHuman, "/status returned 404"),
    ((302, ""), NeedsHuman, "/status returned 302"),
    ((401, '{"error": "No API key.", "fix": "Send one."}'), FleetAccessDenied, "(401). No API key. Send one."),
    ((403, ""), FleetAccessDenied, "Pass a valid key with --api-key"),
    ((429, '{"error": "Too many.", "fix": "Wait."}'), RetryLater, "is not available now (429). Too many. Wait."),
    ((503, ""), RetryLater, "is not available now (503)."),
])  # fmt: skip
def test_invalid_response_names_problem(
    httpserver: HTTPServer, answer: tuple[int, str | bytes], kind: type[ForecastdError], message: str
) -> None:
    httpserver.expect_request("/status").respond_with_data(answer[1], answer[0])
    with pytest.raises(kind) as caught:
        FleetClient(httpserver.url_for("")).fetch(StatusResponse, "/status")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_unknown_fields_are_ignored(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/status").respond_with_json(STATUS)
    assert FleetClient(httpserver.url_for("/")).fetch(StatusResponse, "/status").step_seconds == 5


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_silent_server_differs_from_no_server(silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forecastd.fleet.client.REQUEST_SECONDS", 0.2)
    with pytest.raises(RetryLater, match="did not answer in full"):
        FleetClient(silent_server).get("/status")


def test_no_listener_is_not_running(unused_url: str) -> None:
    with pytest.raises(FleetNotRunning, match="No fleet is running at") as caught:
        FleetClient(unused_url).get("/status")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://x", "http://", "http://x:99999999", "http://[::1"])
def test_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(NeedsHuman, match="is not a fleet URL"):
        FleetClient(url)
