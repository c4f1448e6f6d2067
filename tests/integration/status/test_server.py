"""Health over a real socket: the three paths, and clients that are slow, many, endless or hostile."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from forecastd.clock import SystemClock
from forecastd.ledger.outcome import Outcome
from forecastd.status import HealthServer, server
from forecastd.status.model import (
    ChildStatus,
    DaemonStatus,
    EndpointStatus,
    HangCount,
    HeartbeatStatus,
    ModelStatus,
    StreamStatus,
    SupervisionStatus,
    TopicStatus,
    WatchdogStatus,
    WindowStatus,
)
from tests.support.waiting import wait_until

TIMEOUT_SECONDS = 30.0
CLOCK = SystemClock()


def full_status() -> DaemonStatus:
    """A status with every field."""
    now = CLOCK.now()
    topic = TopicStatus(
        67, "allo1abc", active=True, height=7300, height_age=2.0, watch_start_height=100, newest_nonce=7200,
        epoch_length=720, block_seconds=5.0, window=WindowStatus(True, 7200, 7200, 7260, 20, 100.0), balance_uallo=5 * 10**18,
        runway_epochs=900,
    )  # fmt: skip
    for outcome in (
        Outcome("skipped", check="stale", reason="a sentence that must not become a label", nonce=5760),
        Outcome("missed", reason='another "sentence"\nwith a break', nonce=6480),
        Outcome("submitted", nonce=7200, height=7203, stages={"data": 0.5, "model": 2.0}),
    ):
        topic = topic.with_outcome(outcome, now - 100)
    return DaemonStatus(
        4711, now - 7200, now, 7200.0, "daemon", "running", "testnet", chain_id="allora-testnet-1", deadline=now + 1e6,
        topics=(topic, TopicStatus(69)),
        endpoints=(EndpointStatus("grpc+https://one:443", "ok", "allora-testnet-1", 7300, 0, 0.04),
                   EndpointStatus("rest+https://two", "behind", None, 6800, 500, None, 3, "slow")),
        streams=(StreamStatus("wss://one/websocket", connected=True, last_event_at=now),),
        models=(ModelStatus("btc", "ab12", now - 86_400, now, 90 * 86_400.0),),
        supervision=SupervisionStatus((HangCount("btc", "predicting", 2),), 1, 3, 2, 4, {"result": 40, "failed": 1}, ("old",),
                                     (ChildStatus(5, "active", "btc", "idle"), ChildStatus(6, "standby", "btc", "idle"))),
        heartbeat=HeartbeatStatus(now - 60, 60.0, 3600.0), watchdog=WatchdogStatus(now - 1, 1.0, 60.0),
        memory_bytes=90_000_000, children_memory_bytes=200_000_000, open_files=23,
        versions={"forecastd": "0.1.0", "pytorch-forecasting": "1.8"},
    )  # fmt: skip


@pytest.fixture
def daemon_status() -> list[DaemonStatus]:
    """The daemon's current status, in a list, so that a test can replace it."""
    return [full_status()]


@pytest.fixture
def port(daemon_status: list[DaemonStatus]) -> Iterator[int]:
    with HealthServer(0, lambda: daemon_status[0], CLOCK) as running:
        assert running.port is not None
        yield running.port


SendRequest = Callable[..., tuple[int, dict[str, str], bytes]]


@pytest.fixture
def send_request(port: int) -> SendRequest:
    def send_request(path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)) as connection:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()

    return send_request


def test_healthz_answers_with_reasons(send_request: SendRequest, daemon_status: list[DaemonStatus]) -> None:
    status, headers, body = send_request("/healthz")
    assert (status, headers["Content-Type"], json.loads(body)) == (200, "application/json", {"ok": True, "reasons": []})
    daemon_status[0] = replace(daemon_status[0], state="stopping")
    status, _, body = send_request("/healthz")
    assert (status, json.loads(body)) == (503, {"ok": False, "reasons": ["The daemon is shutting down."]})


def test_status_returns_the_daemon_status(send_request: SendRequest, daemon_status: list[DaemonStatus]) -> None:
    status, _, body = send_request("/status")
    assert status == 200
    assert DaemonStatus.from_json(body) == daemon_status[0]


def metrics(send_request: SendRequest) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Every sample by its name and labels, as Prometheus' own parser reads them."""
    status, headers, body = send_request("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(body.decode()):
        assert family.documentation
        for sample in family.samples:
            families.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return families


def test_metrics_parse_with_the_prometheus_parser(send_request: SendRequest) -> None:
    families = metrics(send_request)
    topic = (("topic", "67"), ("wallet", "allo1abc"))

    def sample_value(name: str, *labels: tuple[str, str]) -> float:
        return families[f"forecastd_{name}"][tuple(sorted(labels))]

    assert sample_value("healthy") == 1
    assert sample_value("state", ("state", "running")) == 1
    assert sample_value("state", ("state", "ended")) == 0
    assert sample_value("cycles_total", *topic) == 3
    assert sample_value("missed_epochs_total", *topic) == 1
    assert sample_value("outcomes_total", *topic, ("outcome", "skipped"), ("check", "stale")) == 1
    assert sample_value("stage_seconds_sum", *topic, ("stage", "model")) == 2.0
    assert sample_value("submission_lag_blocks_max", *topic) == 3
    assert sample_value("balance_uallo", *topic) == 5e18
    assert sample_value("endpoint_up", ("endpoint", "rest+https://two")) == 0
    assert sample_value("endpoint_lag_blocks", ("endpoint", "rest+https://two")) == 500
    assert sample_value("model_hangs_total", ("bundle", "btc"), ("phase", "predicting")) == 2
    assert sample_value("model_jobs_total", ("result", "result")) == 40
    assert sample_value("model_quarantined") == 1
    assert sample_value("model_age_seconds", ("model", "btc"), ("sha256", "ab12")) == pytest.approx(
        86_400, abs=TIMEOUT_SECONDS
    )
    assert (("endpoint", "rest+https://two"),) not in families["forecastd_endpoint_latency_seconds"]
    assert dict(next(iter(families["forecastd_build_info"])))["pytorch_forecasting"] == "1.8"


def test_metric_labels_stay_bounded(send_request: SendRequest, daemon_status: list[DaemonStatus]) -> None:
    before = {name: len(samples) for name, samples in metrics(send_request).items()}
    topic = daemon_status[0].topics[0]
    for number in range(50):
        topic = topic.with_outcome(Outcome("missed", reason=f"reason {number}", nonce=7920 + number), CLOCK.now())
    daemon_status[0] = replace(daemon_status[0], topics=(topic, *daemon_status[0].topics[1:]))
    assert {name: len(samples) for name, samples in metrics(send_request).items()} == before


def test_metrics_match_the_documentation(send_request: SendRequest, root: Path) -> None:
    _, _, body = send_request("/metrics")
    exported = {family.name for family in text_string_to_metric_families(body.decode())}
    text = (root / "docs" / "monitoring.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(forecastd_\w+)", text))
    assert {re.sub("_(total|info)$", "", name) for name in documented} == {
        re.sub("_info$", "", metric_name) for metric_name in exported
    }


def test_duplicate_or_invalid_labels_do_not_break_the_scrape(
    send_request: SendRequest, daemon_status: list[DaemonStatus]
) -> None:
    topic = daemon_status[0].topics[0]
    strange = EndpointStatus("\udcff", "ok")
    daemon_status[0] = replace(daemon_status[0], topics=(topic, topic), endpoints=(strange, strange))
    _, _, body = send_request("/metrics")
    lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
    names = [line.rpartition(" ")[0] for line in lines]
    assert len(names) == len(set(names))
    assert 'forecastd_endpoint_up{endpoint="?"}' in names


def test_metrics_of_a_starting_daemon_are_valid(send_request: SendRequest, daemon_status: list[DaemonStatus]) -> None:
    daemon_status[0] = DaemonStatus(1, 0.0, 0.0, 0.0, "daemon", "starting", "local")
    assert "forecastd_cycles_total" not in metrics(send_request)


def test_head_request_returns_headers_only(send_request: SendRequest) -> None:
    for path in ("/healthz", "/metrics", "/status"):
        status, headers, body = send_request(path, "HEAD")
        assert (status, body) == (200, b"")
        assert int(headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/etc/passwd", 404), ("GET", "/../../etc/passwd", 404), ("GET", "/status/", 404),
     ("POST", "/status", 501), ("DELETE", "/healthz", 501), ("OPTIONS", "/metrics", 501)],
)  # fmt: skip
def test_unknown_path_or_method_is_rejected(send_request: SendRequest, method: str, path: str, status: int) -> None:
    response_status, headers, body = send_request(path, method)
    assert response_status == status
    assert list(json.loads(body)) == ["error"]
    assert path.strip("/") not in body.decode() or path == "/"
    assert "Python" not in str(headers)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("[::1]:80", 200),
        ("127.0.0.1", 200),
        ("evil.example", 403),
        ("[", 403),
    ],
)
def test_foreign_host_header_is_rejected(send_request: SendRequest, host: str, status: int) -> None:
    assert send_request("/status", Host=host)[0] == status


def send_raw(port: int, data: bytes) -> bytes:
    """The response to these bytes, until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS) as connection:
        response = b""
        try:
            connection.sendall(data)
            while chunk := connection.recv(65_536):
                response += chunk
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server closed the connection during the write
        return response


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"x" * 1_000_000,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100_000,
        b"\x00" * 100_000,
        b"\x16\x03\x01" * 5000,
    ],
)
def test_endless_request_gets_no_response(port: int, data: bytes) -> None:
    assert send_raw(port, data) == b""


@pytest.mark.parametrize("data", [b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\xff\xfe \x00\r\n\r\n"])
def test_malformed_request_is_rejected(port: int, data: bytes, send_request: SendRequest) -> None:
    assert b"200" not in send_raw(port, data)
    assert send_request("/healthz")[0] == 200


def test_slow_request_is_disconnected(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.2)
    assert send_raw(port, b"GET /healthz HTTP/1.1\r\n") == b""


def test_excess_connections_are_rejected_until_one_closes(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", TIMEOUT_SECONDS)

    def is_served() -> bool:
        return send_raw(port, b"GET /healthz HTTP/1.1\r\n\r\n") != b""

    with ExitStack() as stack:
        for _ in range(server.MAX_CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS)).sendall(b"GET ")
        wait_until(lambda: not is_served(), "a rejected connection", TIMEOUT_SECONDS)
    wait_until(is_served, "a served connection", TIMEOUT_SECONDS)


def test_port_in_use_only_logs_a_warning(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with HealthServer(port, full_status, CLOCK) as second:
        assert second.port is None
    assert f"cannot bind port {port} of 127.0.0.1 (Address already in use)" in caplog.text


def test_port_is_free_after_close(daemon_status: list[DaemonStatus]) -> None:
    for _ in range(5):  # another process may take a released port, but not five times
        with HealthServer(0, lambda: daemon_status[0], CLOCK) as first:
            port = first.port
            assert port is not None
        with HealthServer(port, lambda: daemon_status[0], CLOCK) as second:
            bound_port = second.port
        if bound_port == port:
            break
    assert bound_port == port
    assert not [thread for thread in threading.enumerate() if thread.name == "health"]


def test_handler_exception_does_not_stop_the_server(
    send_request: SendRequest, daemon_status: list[DaemonStatus], caplog: pytest.LogCaptureFixture
) -> None:
    status: Any = daemon_status.pop()
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        send_request("/status")
    daemon_status.append(status)
    assert send_request("/status")[0] == 200
    assert "A health request failed: IndexError" in caplog.text


def test_health_and_alerts_import_no_heavy_library() -> None:
    program = (
        "import sys; from forecastd.status import HealthServer; from forecastd.alerts import AlertDispatcher;"
        "heavy = {'fastapi', 'uvicorn', 'pandas', 'torch', 'requests', 'grpc'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
