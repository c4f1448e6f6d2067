"""Health over a real socket: the three answers, and callers that are slow, many, endless or no friends."""

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
from forecastd.health import HealthServer, server
from forecastd.outcome import Outcome
from forecastd.pulse import (
    ChildPulse,
    EndpointPulse,
    Hangs,
    HeartbeatPulse,
    ModelPulse,
    Pulse,
    StreamPulse,
    SupervisionPulse,
    TopicPulse,
    WatchdogPulse,
    WindowPulse,
)

PATIENCE = 30.0
CLOCK = SystemClock()


def full() -> Pulse:
    """A pulse in which everything is known."""
    now = CLOCK.now()
    topic = TopicPulse(
        67, "allo1abc", active=True, height=7300, height_age=2.0, watched_from=100, newest_nonce=7200, epoch_length=720,
        block_seconds=5.0, window=WindowPulse(True, 7200, 7200, 7260, 20, 100.0), balance_uallo=5 * 10**18, runway_epochs=900,
    )  # fmt: skip
    for outcome in (
        Outcome("skipped", check="stale", reason="a sentence that must not become a label", nonce=5760),
        Outcome("missed", reason='another "sentence"\nwith a break', nonce=6480),
        Outcome("submitted", nonce=7200, height=7203, stages={"data": 0.5, "model": 2.0}),
    ):
        topic = topic.after(outcome, now - 100)
    return Pulse(
        4711, now - 7200, now, 7200.0, "daemon", "running", "testnet", chain_id="allora-testnet-1", deadline=now + 1e6,
        topics=(topic, TopicPulse(69)),
        endpoints=(EndpointPulse("grpc+https://one:443", "ok", "allora-testnet-1", 7300, 0, 0.04),
                   EndpointPulse("rest+https://two", "behind", None, 6800, 500, None, 3, "slow")),
        streams=(StreamPulse("wss://one/websocket", connected=True, last_at=now),),
        models=(ModelPulse("btc", "ab12", now - 86_400, now, 90 * 86_400.0),),
        supervision=SupervisionPulse((Hangs("btc", "predicting", 2),), 1, 3, 2, 4, {"result": 40, "failed": 1}, ("old",),
                                     (ChildPulse(5, "active", "btc", "idle"), ChildPulse(6, "standby", "btc", "idle"))),
        heartbeat=HeartbeatPulse(now - 60, 60.0, 3600.0), watchdog=WatchdogPulse(now - 1, 1.0, 60.0),
        memory_bytes=90_000_000, children_memory_bytes=200_000_000, open_files=23,
        versions={"forecastd": "0.1.0", "pytorch-forecasting": "1.8"},
    )  # fmt: skip


@pytest.fixture
def pulse() -> list[Pulse]:
    """The daemon's present state, in a list, so that a test may change it."""
    return [full()]


@pytest.fixture
def port(pulse: list[Pulse]) -> Iterator[int]:
    with HealthServer(0, lambda: pulse[0], CLOCK) as running:
        assert running.port is not None
        yield running.port


Ask = Callable[..., tuple[int, dict[str, str], bytes]]


@pytest.fixture
def ask(port: int) -> Ask:
    def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    return ask


def test_healthz_says_yes_or_no_with_reasons(ask: Ask, pulse: list[Pulse]) -> None:
    status, headers, body = ask("/healthz")
    assert (status, headers["Content-Type"], json.loads(body)) == (200, "application/json", {"ok": True, "reasons": []})
    pulse[0] = replace(pulse[0], state="stopping")
    status, _, body = ask("/healthz")
    assert (status, json.loads(body)) == (503, {"ok": False, "reasons": ["The daemon is ending."]})


def test_status_is_the_pulse(ask: Ask, pulse: list[Pulse]) -> None:
    status, _, body = ask("/status")
    assert status == 200
    assert Pulse.from_json(body) == pulse[0]


def metrics(ask: Ask) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Every sample by its name and labels, as Prometheus' own parser reads them."""
    status, headers, body = ask("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(body.decode()):
        assert family.documentation
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_metrics_are_read_by_prometheus_own_parser(ask: Ask) -> None:
    found = metrics(ask)
    topic = (("topic", "67"), ("wallet", "allo1abc"))

    def of(name: str, *labels: tuple[str, str]) -> float:
        return found[f"forecastd_{name}"][tuple(sorted(labels))]

    assert of("healthy") == 1
    assert of("state", ("state", "running")) == 1
    assert of("state", ("state", "ended")) == 0
    assert of("cycles_total", *topic) == 3
    assert of("missed_epochs_total", *topic) == 1
    assert of("outcomes_total", *topic, ("outcome", "skipped"), ("check", "stale")) == 1
    assert of("stage_seconds_sum", *topic, ("stage", "model")) == 2.0
    assert of("submission_lag_blocks_largest", *topic) == 3
    assert of("balance_uallo", *topic) == 5e18
    assert of("endpoint_up", ("endpoint", "rest+https://two")) == 0
    assert of("endpoint_lag_blocks", ("endpoint", "rest+https://two")) == 500
    assert of("model_hangs_total", ("bundle", "btc"), ("phase", "predicting")) == 2
    assert of("model_jobs_total", ("result", "result")) == 40
    assert of("model_quarantined") == 1
    assert of("model_age_seconds", ("model", "btc"), ("sha256", "ab12")) == pytest.approx(86_400, abs=PATIENCE)
    assert (("endpoint", "rest+https://two"),) not in found["forecastd_endpoint_latency_seconds"]
    assert dict(next(iter(found["forecastd_build_info"])))["pytorch_forecasting"] == "1.8"


def test_labels_stay_few_whatever_the_reasons_are(ask: Ask, pulse: list[Pulse]) -> None:
    before = {name: len(samples) for name, samples in metrics(ask).items()}
    topic = pulse[0].topics[0]
    for number in range(50):
        topic = topic.after(Outcome("missed", reason=f"reason {number}", nonce=7920 + number), CLOCK.now())
    pulse[0] = replace(pulse[0], topics=(topic, *pulse[0].topics[1:]))
    assert {name: len(samples) for name, samples in metrics(ask).items()} == before


def test_every_metric_is_documented_and_nothing_else_is(ask: Ask, root: Path) -> None:
    _, _, body = ask("/metrics")
    given = {family.name for family in text_string_to_metric_families(body.decode())}
    text = (root / "docs" / "monitoring.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(forecastd_\w+)", text))
    assert {re.sub("_(total|info)$", "", name) for name in documented} == {re.sub("_info$", "", one) for one in given}


def test_what_is_there_twice_or_has_broken_characters_does_not_cost_the_scrape(ask: Ask, pulse: list[Pulse]) -> None:
    topic = pulse[0].topics[0]
    strange = EndpointPulse("\udcff", "ok")
    pulse[0] = replace(pulse[0], topics=(topic, topic), endpoints=(strange, strange))
    _, _, body = ask("/metrics")
    lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
    names = [line.rpartition(" ")[0] for line in lines]
    assert len(names) == len(set(names))
    assert 'forecastd_endpoint_up{endpoint="?"}' in names


def test_metrics_of_a_daemon_that_knows_nothing_yet_are_no_error(ask: Ask, pulse: list[Pulse]) -> None:
    pulse[0] = Pulse(1, 0.0, 0.0, 0.0, "daemon", "starting", "local")
    assert "forecastd_cycles_total" not in metrics(ask)


def test_a_head_has_the_headers_and_no_body(ask: Ask) -> None:
    for path in ("/healthz", "/metrics", "/status"):
        status, headers, body = ask(path, "HEAD")
        assert (status, body) == (200, b"")
        assert int(headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/etc/passwd", 404), ("GET", "/../../etc/passwd", 404), ("GET", "/status/", 404),
     ("POST", "/status", 501), ("DELETE", "/healthz", 501), ("OPTIONS", "/metrics", 501)],
)  # fmt: skip
def test_there_is_nothing_else(ask: Ask, method: str, path: str, status: int) -> None:
    found, headers, body = ask(path, method)
    assert found == status
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
def test_a_web_page_under_another_name_gets_nothing(ask: Ask, host: str, status: int) -> None:
    assert ask("/status", Host=host)[0] == status


def raw(port: int, data: bytes) -> bytes:
    """What comes back for these bytes, until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        found = b""
        try:
            connection.sendall(data)
            while piece := connection.recv(65_536):
                found += piece
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was hung up on while it still wrote
        return found


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"x" * 1_000_000,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100_000,
        b"\x00" * 100_000,
        b"\x16\x03\x01" * 5000,
    ],
)
def test_a_request_without_an_end_gets_no_answer(port: int, data: bytes) -> None:
    assert raw(port, data) == b""


@pytest.mark.parametrize("data", [b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\xff\xfe \x00\r\n\r\n"])
def test_nonsense_is_refused(port: int, data: bytes, ask: Ask) -> None:
    assert b"200" not in raw(port, data)
    assert ask("/healthz")[0] == 200


def test_who_sends_too_slowly_is_hung_up_on(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.2)
    assert raw(port, b"GET /healthz HTTP/1.1\r\n") == b""


def test_more_than_a_few_at_once_are_turned_away_and_the_next_is_served(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_SECONDS", PATIENCE)

    def until(served: bool) -> None:
        never = threading.Event()
        for _ in range(int(PATIENCE / 0.05)):
            if (raw(port, b"GET /healthz HTTP/1.1\r\n\r\n") != b"") == served:
                return
            never.wait(0.05)
        pytest.fail(f"still {'turned away' if served else 'served'}")

    with ExitStack() as stack:
        for _ in range(server.MOST_CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE)).sendall(b"GET ")
        until(served=False)
    until(served=True)


def test_a_port_in_use_is_told_and_nothing_fails(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with HealthServer(port, full, CLOCK) as second:
        assert second.port is None
    assert f"port {port} of 127.0.0.1 cannot be had (Address already in use)" in caplog.text


def test_the_port_is_free_again_afterwards(pulse: list[Pulse]) -> None:
    for _ in range(5):  # a port that was let go of may be somebody else's by now, but not five times
        with HealthServer(0, lambda: pulse[0], CLOCK) as first:
            port = first.port
            assert port is not None
        with HealthServer(port, lambda: pulse[0], CLOCK) as second:
            found = second.port
        if found == port:
            break
    assert found == port
    assert not [thread for thread in threading.enumerate() if thread.name == "health"]


def test_a_defect_of_the_daemon_ends_one_answer_and_not_the_server(
    ask: Ask, pulse: list[Pulse], caplog: pytest.LogCaptureFixture
) -> None:
    good: Any = pulse.pop()
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        ask("/status")
    pulse.append(good)
    assert ask("/status")[0] == 200
    assert "was not answered: IndexError" in caplog.text


def test_health_and_alerts_cost_the_parent_no_heavy_import() -> None:
    program = (
        "import sys; from forecastd.health import HealthServer; from forecastd.alerts import Alerts;"
        "heavy = {'fastapi', 'uvicorn', 'pandas', 'torch', 'requests', 'grpc'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
