"""No request makes the fleet fail: every response has a status that the API documents."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forecastd.fleet.contract import METRIC_NAMES

START = 1_769_860_800.0
PATHS = ["/status", "/servers", "/risk", "/alerts", "/healthz", "/forecast", "/forecast/a", "/history", "/metrics",
         "/openapi.json", "/docs", "/feed", "/admin/reload-model"]  # fmt: skip
PARAMETERS = [
    "servers",
    "metrics",
    "levels",
    "limit",
    "offset",
    "state",
    "profile",
    "top",
    "server",
    "start",
    "end",
    "format",
]
EXPECTED = {200, 304, 400, 403, 404, 405, 408, 413, 415, 422, 429}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
value = st.floats() | st.integers(-(10**20), 10**20) | st.none() | st.text(max_size=5) | st.booleans()
record = st.fixed_dictionaries(
    {},
    optional={
        "server": st.sampled_from(["a", "b"]) | anything,
        "time": st.floats(START - 1e4, START + 1e4) | st.just("2026-01-31T12:00:00Z") | anything,
        "profile": st.sampled_from(["web", "generic"]) | anything,
        "status": st.sampled_from(["ok", "down", "maintenance"]) | anything,
        "metrics": st.dictionaries(st.sampled_from(METRIC_NAMES) | st.text(max_size=5), value, max_size=5) | anything,
    },
)
feed = st.fixed_dictionaries(
    {"version": st.just(1) | anything, "records": st.lists(record | anything, max_size=6) | anything},
    optional={
        "units": st.dictionaries(st.sampled_from(METRIC_NAMES), st.sampled_from(["ratio", "x"]), max_size=3) | anything
    },
)


@pytest.fixture
def fed_fleet(serve: Any) -> Iterator[Any]:
    fleet = serve(fleet_rate_limit=0)
    fleet.feed(START, "a", "b")
    fleet.forecast_tick()
    yield fleet
    assert fleet.client.get("/healthz").json()["warnings"] == []


def assert_known_response(response: Any) -> None:
    assert response.status_code in EXPECTED, (response.status_code, response.text)
    if response.status_code >= 400:
        assert set(response.json()) == {"error", "fix"}


requests = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "X"]),
        "url": st.sampled_from(PATHS) | st.text(max_size=30).map(lambda text: f"/{quote(text)}"),
        "params": st.lists(st.tuples(st.sampled_from(PARAMETERS), st.text(max_size=12)), max_size=4),
        "headers": st.fixed_dictionaries(
            {"Content-Type": st.sampled_from(["application/json", "application/x-ndjson", "text/plain", "x"])}
        ),
        "content": st.binary(max_size=200) | feed.map(lambda document: json.dumps(document).encode()),
    }
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=requests)
def test_any_request_gets_known_status(fed_fleet: Any, request: dict[str, Any]) -> None:
    response = fed_fleet.client.request(**request)
    if request["method"] == "HEAD":
        assert response.status_code in EXPECTED
    else:
        assert_known_response(response)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=feed)
def test_any_feed_is_checked_row_by_row(fed_fleet: Any, body: Any) -> None:
    response = fed_fleet.client.post("/feed", content=json.dumps(body).encode())
    assert_known_response(response)
    if response.status_code == 200:
        document = response.json()
        assert document["accepted"] + document["refused"] + document["duplicates"] == len(body["records"])


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=300) | st.text(max_size=100).map(lambda text: f"GET /{text} HTTP/1.1\r\n\r\n".encode()))
def test_any_bytes_on_connection_leave_service_alive(fed_fleet: Any, body: bytes) -> None:
    with socket.create_connection(("127.0.0.1", fed_fleet.port), timeout=60) as connection:
        connection.sendall(body)
        connection.shutdown(socket.SHUT_WR)
    assert fed_fleet.client.get("/healthz").status_code == 200
