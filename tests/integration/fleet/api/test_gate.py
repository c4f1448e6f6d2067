"""Who may ask the fleet what: keys, names, pages of other sites, too many requests, too much at once, too slowly."""

from __future__ import annotations

import contextlib
import json
import logging
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from forecastd.fleet.api import connection_timeouts, http_server, request_bodies

START = 1_769_860_800.0
KEY, OTHER = "a-key-of-good-length", "another-key-of-good-length"
OPEN = {"version": 1, "records": []}


def raw(port: int, *parts: bytes, wait: float = 60.0) -> bytes:
    """Send these bytes as they are and read to the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        for part in parts:
            connection.sendall(part)
        found = b""
        while piece := connection.recv(65_536):
            found += piece
        return found


def first_answer(port: int, *parts: bytes) -> tuple[int, dict[str, Any]]:
    """The first answer on a connection that is left open."""
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
    served = serve(keys=(OTHER, KEY))
    client = served.client
    for path in ("/status", "/forecast", "/servers", "/metrics", "/openapi.json", "/docs", "/nothing"):
        answer = client.get(path)
        assert answer.status_code == 401, path
        assert set(answer.json()) == {"error", "fix"}
    assert client.post("/feed", json=OPEN).status_code == 401
    assert client.get("/healthz").status_code == 200
    for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {OTHER}"}, {"Authorization": f"bearer {KEY}"}):
        assert client.get("/status", headers=headers).status_code == 200
        assert client.post("/feed", json=OPEN, headers=headers).status_code == 200
    bad = [("X-API-Key", KEY[:-1]), ("X-API-Key", ""), ("Authorization", f"Basic {KEY}"), ("X-API-Key", "\xff" * 20)]
    for headers in ({name: value} for name, value in bad):
        given = {name: value.encode("latin-1") for name, value in headers.items()}
        assert client.get("/status", headers=given).status_code == 401
    assert client.get("/status?key=" + KEY).status_code == 401


def test_api_key_is_never_logged(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    served = serve(keys=(KEY,))
    served.client.get("/status", headers={"X-API-Key": KEY + "x"})
    served.client.get("/status", headers={"X-API-Key": KEY})
    assert KEY not in caplog.text


def test_without_keys_only_local_host_names_are_served(serve: Any) -> None:
    served = serve()
    for host in ("127.0.0.1", f"localhost:{served.port}", "[::1]:80", "LOCALHOST"):
        assert served.client.get("/status", headers={"Host": host}).status_code == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:80", "["):
        answer = served.client.get("/status", headers={"Host": host})
        assert answer.status_code == 403, host
    assert (
        serve(keys=(KEY,)).client.get("/status", headers={"Host": "fleet.example", "X-API-Key": KEY}).status_code == 200
    )


def test_cross_site_post_is_refused(serve: Any) -> None:
    served = serve(fleet_cors_origins=("https://dash.example",))
    for path in ("/feed", "/admin/reload-model"):
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
            assert served.client.post(path, json=OPEN, headers={"Origin": origin}).status_code == 403
    for origin in (f"http://127.0.0.1:{served.port}", "https://dash.example"):
        assert served.client.post("/feed", json=OPEN, headers={"Origin": origin}).status_code == 200


def test_cors_allows_only_configured_origins(serve: Any) -> None:
    asked = {"Origin": "https://dash.example"}
    assert "access-control-allow-origin" not in serve().client.get("/status", headers=asked).headers
    served = serve(keys=(KEY,), fleet_cors_origins=("https://dash.example",))
    answer = served.client.get("/status", headers={**asked, "X-API-Key": KEY})
    assert answer.headers["access-control-allow-origin"] == "https://dash.example"
    preflight = {**asked, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "X-API-Key"}
    assert served.client.options("/status", headers=preflight).status_code == 200
    evil = served.client.get("/status", headers={"Origin": "https://evil.example", "X-API-Key": KEY})
    assert "access-control-allow-origin" not in evil.headers


def test_rate_limit_sends_retry_after(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    served = serve(fleet_rate_limit=10)
    answers = [served.client.get("/alerts") for _ in range(30)]
    refused = [one for one in answers if one.status_code == 429]
    assert len(refused) >= 10
    assert all(int(one.headers["Retry-After"]) >= 1 and set(one.json()) == {"error", "fix"} for one in refused)
    assert all(one.status_code in {200, 429} for one in answers)
    assert served.client.get("/healthz").status_code == 200
    ours = [record for record in caplog.records if record.name.startswith("forecastd.")]
    assert sum("429" in record.getMessage() for record in ours) == 1


def test_rate_limit_is_per_key(serve: Any) -> None:
    served = serve(keys=(KEY, OTHER), fleet_rate_limit=10)
    while served.client.get("/alerts", headers={"X-API-Key": KEY}).status_code == 200:
        pass
    assert served.client.get("/alerts", headers={"X-API-Key": OTHER}).status_code == 200


def test_declared_large_body_is_refused_early(serve: Any) -> None:
    served = serve(fleet_max_body_mb=1)
    head = f"POST /feed HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1 << 30}\r\n\r\n".encode()
    status, told = first_answer(served.port, head)
    assert (status, set(told)) == (413, {"error", "fix"})


def test_chunked_large_body_is_refused_at_limit(serve: Any) -> None:
    served = serve(fleet_max_body_mb=1)

    def endless() -> Iterator[bytes]:
        for _ in range(16):
            yield b" " * (1 << 20)

    answer = served.client.post("/feed", content=endless())
    assert answer.status_code == 413
    assert set(answer.json()) == {"error", "fix"}
    assert served.client.get("/status").status_code == 200


def test_endless_refused_body_is_cut_off(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_timeouts, "MAX_DISCARDED_BYTES", 1 << 20)
    served = serve(fleet_max_body_mb=1)
    head = f"POST /feed HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1 << 30}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        connection.sendall(head)
        with pytest.raises(ConnectionError):
            _send_forever(connection)


def _send_forever(connection: socket.socket) -> None:
    for _ in range(1 << 10):
        connection.sendall(b" " * (1 << 20))


def test_total_body_memory_is_bounded(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_bodies, "MAX_CONCURRENT_BODIES", 1)
    served = serve(fleet_max_body_mb=1)
    head = f"POST /feed HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1 << 20}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        two = [stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=60)) for _ in range(2)]
        for one in two:
            one.sendall(head + b" " * (3 << 18))
        refused = select.select(two, [], [], 60)[0][0]
        assert refused.recv(65_536).startswith(b"HTTP/1.1 503 ")
        other = two[1 - two.index(refused)]
        other.sendall(b" " * (1 << 18))
        assert other.recv(65_536).startswith(b"HTTP/1.1 400 ")  # whole, and judged
    assert served.feed(START, "web-01")["accepted"] == 1


def test_encoded_body_is_refused(serve: Any) -> None:
    answer = serve().client.post("/feed", content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415


def test_slow_body_times_out(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_bodies, "BODY_TIMEOUT_SECONDS", 0.2)
    served = serve()
    head = b"POST /feed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    answer = raw(served.port, head)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error", "fix"}


@pytest.mark.parametrize("whole", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"])
@pytest.mark.parametrize("begun", [b"", b"GET /status HTTP/1.1\r\nHost: loc"])
def test_idle_connection_is_closed(serve: Any, monkeypatch: pytest.MonkeyPatch, whole: bytes, begun: bytes) -> None:
    monkeypatch.setattr(http_server, "KEEP_ALIVE_SECONDS", 1)
    served = serve()
    if not whole:  # what is whole might not come within that
        monkeypatch.setattr(connection_timeouts, "HEADER_TIMEOUT_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        if whole:
            connection.sendall(whole)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 ")
            monkeypatch.setattr(connection_timeouts, "HEADER_TIMEOUT_SECONDS", 0.2)
        with contextlib.suppress(ConnectionError):
            connection.sendall(begun)
            while connection.recv(65_536):
                pass


def test_stalled_reader_is_disconnected(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_timeouts, "READER_TIMEOUT_SECONDS", 0.2)
    served = serve()
    for number in range(40):
        served.feed(START, *[f"server-{number}-{place}" for place in range(50)])
    served.forecast_tick()
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /forecast HTTP/1.1\r\nHost: localhost\r\n\r\n" * 8)
        connection.settimeout(60)
        served.until(lambda: not _is_open(connection))


def _is_open(connection: socket.socket) -> bool:
    """Whether something may still be sent on it; nothing is read."""
    try:
        connection.sendall(b"\r\n")
    except OSError:
        return False
    return True


def test_connection_count_is_bounded(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_timeouts, "MAX_CONNECTIONS", 3)
    served = serve()
    held = [socket.create_connection(("127.0.0.1", served.port), timeout=60) for _ in range(3)]
    try:
        answer = raw(served.port)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error", "fix"}
    finally:
        for one in held:
            one.close()


INVALID_HTTP = [
    b"hello\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
    b"GET / HTTP/1.1\r\nA: ".ljust(http_server.HEADER_BYTES + 1, b"a"),  # a byte that is left unread would reset the connection
]  # fmt: skip


def test_invalid_http_gets_400(serve: Any) -> None:
    served = serve()
    for sent in INVALID_HTTP:
        answer = raw(served.port, sent)
        assert answer.startswith(b"HTTP/1.1 400 "), sent[:50]
        assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error", "fix"}
    assert served.client.get("/status").status_code == 200
