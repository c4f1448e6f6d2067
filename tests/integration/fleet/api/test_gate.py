"""Access control of the API: keys, host names, other sites, rate limits, sizes and timeouts."""

from __future__ import annotations

import contextlib
import json
import logging
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from forecastd.fleet.api import context, http_server, listener

START = 1_769_860_800.0
KEY, OTHER_KEY = "a-key-of-good-length", "another-key-of-good-length"
EMPTY_FEED = {"version": 1, "records": []}


def send_raw(port: int, *parts: bytes, wait: float = 60.0) -> bytes:
    """Send these bytes unchanged and read to the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        for part in parts:
            connection.sendall(part)
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
        return received


def first_response(port: int, *parts: bytes) -> tuple[int, dict[str, Any]]:
    """The first response on a connection that stays open."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        for part in parts:
            connection.sendall(part)
        stream = connection.makefile("rb")
        status, length = int(stream.readline().split()[1]), 0
        while (line := stream.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        return status, json.loads(stream.read(length))


def test_keys_are_required_except_for_health(serve: Any) -> None:
    fleet = serve(keys=(OTHER_KEY, KEY))
    client = fleet.client
    for path in ("/status", "/forecast", "/servers", "/metrics", "/openapi.json", "/docs", "/nothing"):
        response = client.get(path)
        assert response.status_code == 401, path
        assert set(response.json()) == {"error", "fix"}
    assert client.post("/feed", json=EMPTY_FEED).status_code == 401
    assert client.get("/healthz").status_code == 200
    for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {OTHER_KEY}"}, {"Authorization": f"bearer {KEY}"}):
        assert client.get("/status", headers=headers).status_code == 200
        assert client.post("/feed", json=EMPTY_FEED, headers=headers).status_code == 200
    invalid_headers = [
        ("X-API-Key", KEY[:-1]),
        ("X-API-Key", ""),
        ("Authorization", f"Basic {KEY}"),
        ("X-API-Key", "\xff" * 20),
    ]
    for headers in ({name: value} for name, value in invalid_headers):
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        assert client.get("/status", headers=encoded).status_code == 401
    assert client.get("/status?key=" + KEY).status_code == 401


def test_api_key_is_never_logged(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    fleet = serve(keys=(KEY,))
    fleet.client.get("/status", headers={"X-API-Key": KEY + "x"})
    fleet.client.get("/status", headers={"X-API-Key": KEY})
    assert KEY not in caplog.text


def test_without_keys_only_local_host_names_are_served(serve: Any) -> None:
    fleet = serve()
    for host in ("127.0.0.1", f"localhost:{fleet.port}", "[::1]:80", "LOCALHOST"):
        assert fleet.client.get("/status", headers={"Host": host}).status_code == 200, host
    for host in ("foreign.example", "127.0.0.1.foreign.example", "", "localhost.foreign.example:80", "["):
        response = fleet.client.get("/status", headers={"Host": host})
        assert response.status_code == 403, host
    assert (
        serve(keys=(KEY,)).client.get("/status", headers={"Host": "fleet.example", "X-API-Key": KEY}).status_code == 200
    )


def test_cross_site_post_is_refused(serve: Any) -> None:
    fleet = serve(fleet_cors_origins=("https://dash.example",))
    for path in ("/feed", "/admin/reload-model"):
        for origin in ("https://foreign.example", "null", "http://127.0.0.1:1"):
            assert fleet.client.post(path, json=EMPTY_FEED, headers={"Origin": origin}).status_code == 403
    for origin in (f"http://127.0.0.1:{fleet.port}", "https://dash.example"):
        assert fleet.client.post("/feed", json=EMPTY_FEED, headers={"Origin": origin}).status_code == 200


def test_cors_allows_only_configured_origins(serve: Any) -> None:
    request_headers = {"Origin": "https://dash.example"}
    assert "access-control-allow-origin" not in serve().client.get("/status", headers=request_headers).headers
    fleet = serve(keys=(KEY,), fleet_cors_origins=("https://dash.example",))
    response = fleet.client.get("/status", headers={**request_headers, "X-API-Key": KEY})
    assert response.headers["access-control-allow-origin"] == "https://dash.example"
    preflight = {
        **request_headers,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "X-API-Key",
    }
    assert fleet.client.options("/status", headers=preflight).status_code == 200
    foreign = fleet.client.get("/status", headers={"Origin": "https://foreign.example", "X-API-Key": KEY})
    assert "access-control-allow-origin" not in foreign.headers


def test_rate_limit_sends_retry_after(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    fleet = serve(fleet_rate_limit=10)
    responses = [fleet.client.get("/alerts") for _ in range(30)]
    refusals = [response for response in responses if response.status_code == 429]
    assert len(refusals) >= 10
    assert all(int(response.headers["Retry-After"]) >= 1 for response in refusals)
    assert all(set(response.json()) == {"error", "fix"} for response in refusals)
    assert all(response.status_code in {200, 429} for response in responses)
    assert fleet.client.get("/healthz").status_code == 200
    ours = [record for record in caplog.records if record.name.startswith("forecastd.")]
    assert sum("429" in record.getMessage() for record in ours) == 1


def test_rate_limit_is_per_key(serve: Any) -> None:
    fleet = serve(keys=(KEY, OTHER_KEY), fleet_rate_limit=10)
    while fleet.client.get("/alerts", headers={"X-API-Key": KEY}).status_code == 200:
        pass
    assert fleet.client.get("/alerts", headers={"X-API-Key": OTHER_KEY}).status_code == 200


def test_declared_large_body_is_refused_early(serve: Any) -> None:
    fleet = serve(fleet_max_body_mb=1)
    head = f"POST /feed HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1 << 30}\r\n\r\n".encode()
    status, document = first_response(fleet.port, head)
    assert (status, set(document)) == (413, {"error", "fix"})


def test_chunked_large_body_is_refused_at_limit(serve: Any) -> None:
    fleet = serve(fleet_max_body_mb=1)

    def endless() -> Iterator[bytes]:
        for _ in range(16):
            yield b" " * (1 << 20)

    response = fleet.client.post("/feed", content=endless())
    assert response.status_code == 413
    assert set(response.json()) == {"error", "fix"}
    assert fleet.client.get("/status").status_code == 200


def test_endless_refused_body_is_cut_off(serve: Any) -> None:
    fleet = serve(fleet_max_body_mb=1)
    head = f"POST /feed HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1 << 30}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", fleet.port), timeout=60) as connection:
        connection.sendall(head)
        with pytest.raises(ConnectionError):
            _send_forever(connection, fleet)


def _send_forever(connection: socket.socket, fleet: Any) -> None:
    for _ in range(1 << 10):
        connect_after_idle_time(fleet)
        connection.sendall(b" " * (1 << 20))


def connect_after_idle_time(fleet: Any) -> None:
    """Let the time of idle connections pass, and connect, so that they are closed."""
    fleet.clock.advance(listener.IDLE_SECONDS + 1)
    socket.create_connection(("127.0.0.1", fleet.port), timeout=60).close()


def test_total_body_memory_is_bounded(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "MAX_CONCURRENT_BODIES", 1)
    fleet = serve(fleet_max_body_mb=1)
    head = f"POST /feed HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1 << 20}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(socket.create_connection(("127.0.0.1", fleet.port), timeout=60)) for _ in range(2)]
        for connection in both:
            connection.sendall(head + b" " * (3 << 18))
        refusals = select.select(both, [], [], 60)[0][0]
        assert refusals.recv(65_536).startswith(b"HTTP/1.1 503 ")
        other = both[1 - both.index(refusals)]
        other.sendall(b" " * (1 << 18))
        assert other.recv(65_536).startswith(b"HTTP/1.1 400 ")  # received whole, and parsed
    assert fleet.feed(START, "web-01")["accepted"] == 1


def test_encoded_body_is_refused(serve: Any) -> None:
    response = serve().client.post("/feed", content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert response.status_code == 415


def test_slow_body_times_out(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "BODY_TIMEOUT_SECONDS", 0.2)
    fleet = serve()
    head = b"POST /feed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    response = send_raw(fleet.port, head)
    assert response.startswith(b"HTTP/1.1 408 ")
    assert set(json.loads(response.partition(b"\r\n\r\n")[2])) == {"error", "fix"}


@pytest.mark.parametrize("full_request", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"])
@pytest.mark.parametrize("partial_request", [b"", b"GET /status HTTP/1.1\r\nHost: loc"])
def test_idle_connection_is_closed(serve: Any, full_request: bytes, partial_request: bytes) -> None:
    fleet = serve()
    with socket.create_connection(("127.0.0.1", fleet.port), timeout=60) as connection:
        if full_request:
            connection.sendall(full_request)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 ")
        connection.sendall(partial_request)
        connection.settimeout(0.01)
        while not _is_closed(connection):
            connect_after_idle_time(fleet)


def _is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed the connection; reads what it has sent."""
    try:
        return connection.recv(65_536) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_connection_with_request_in_progress_stays(serve: Any) -> None:
    fleet = serve()
    head = b"POST /feed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 28\r\n\r\n"
    with socket.create_connection(("127.0.0.1", fleet.port), timeout=60) as connection:
        connection.sendall(head)
        fleet.until(lambda: any(entry.requests for entry in fleet.listener._connections.values()))
        for _ in range(3):
            connect_after_idle_time(fleet)
            first_response(fleet.port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.sendall(b'{"version": 1, "records": []')
        assert connection.recv(65_536).startswith(b"HTTP/1.1 400 ")  # received whole, and parsed


def test_stalled_reader_is_disconnected(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "READER_SECONDS", 0.2)
    fleet = serve()
    for number in range(40):
        fleet.feed(START, *[f"server-{number}-{index}" for index in range(50)])
    fleet.forecast_tick()
    with socket.create_connection(("127.0.0.1", fleet.port), timeout=60) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /forecast HTTP/1.1\r\nHost: localhost\r\n\r\n" * 8)
        connection.settimeout(60)
        fleet.until(lambda: not _is_open(connection))


def _is_open(connection: socket.socket) -> bool:
    """Whether the connection still accepts data; nothing is read."""
    try:
        connection.sendall(b"\r\n")
    except OSError:
        return False
    return True


def test_connection_count_is_bounded(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 3)
    fleet = serve()
    connections = [socket.create_connection(("127.0.0.1", fleet.port), timeout=60) for _ in range(3)]
    try:
        response = send_raw(fleet.port)
        assert response.startswith(b"HTTP/1.1 503 ")
        assert set(json.loads(response.partition(b"\r\n\r\n")[2])) == {"error", "fix"}
    finally:
        for connection in connections:
            connection.close()


INVALID_HTTP = [
    b"hello\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
    b"GET / HTTP/1.1\r\nA: ".ljust(http_server.HEADER_BYTES + 1, b"a"),  # an unread byte would reset the connection
]  # fmt: skip


def test_invalid_http_gets_400(serve: Any) -> None:
    fleet = serve()
    for request in INVALID_HTTP:
        response = send_raw(fleet.port, request)
        assert response.startswith(b"HTTP/1.1 400 "), request[:50]
    assert fleet.client.get("/status").status_code == 200
