"""Simulations over a real socket to a service that is unavailable, busy or limited at times."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from forecastd.clock import SystemClock, to_iso
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.fleet.client import FleetClient
from forecastd.fleet.contract import FeedError
from forecastd.fleet.ingest.feed import parse_feed
from forecastd.fleet.simulator.feeds import ACCEPTED, DUPLICATE
from forecastd.fleet.simulator.simulation import Simulation, SimulationPlan, SimulationTally
from forecastd.fleet.window.window import FleetWindow
from tests.support.waiting import wait_until

STEP = 5


class FakeFleetServer(ThreadingHTTPServer):
    """GET /status and POST /feed of a fleet. `faults`: the next feed uses the first one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeFleetHandler)
        self.clock = SystemClock()
        self.window = FleetWindow(STEP, 400, 1_000)
        self.now = 1_795_000_000.0 + 2.5
        self.started_at = self.clock.monotonic()
        self.speed, self.skew, self.key, self.max_bytes = 50.0, 30.0, "", 1 << 20
        self.status: dict[str, Any] | None = None
        self.faults: list[str] = []
        self.bodies: list[tuple[str, bytes]] = []
        self.expected_bodies = 0
        self.has_bodies = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def time(self) -> float:
        return self.now + (self.clock.monotonic() - self.started_at) * self.speed

    def status_document(self) -> dict[str, Any]:
        now = self.time()
        newest = int(now // STEP) - 1
        return self.status or {
            "version": "1", "servers": {}, "now": to_iso(now), "step_seconds": STEP, "speed": self.speed,
            "tick": {"newest": newest, "time": to_iso(newest * STEP), "age_seconds": round(now - (newest + 1) * STEP, 3)},
        }  # fmt: skip

    def ingest(self, text: bytes, content_type: str) -> tuple[int, dict[str, Any]]:
        if len(text) > self.max_bytes:
            return 413, {"error": "The body is too large.", "fix": "Send smaller batches."}
        try:
            parsed = parse_feed(text, content_type, step=STEP)
        except FeedError as error:
            return 400, {"error": str(error), "fix": ""}
        self.window.advance(int(self.time() // STEP) - 1)
        answer = self.window.ingest(parsed, now=self.time(), max_skew=self.skew)
        self.bodies.append((content_type, text))
        if len(self.bodies) >= self.expected_bodies:
            self.has_bodies.set()
        return 200, answer.model_dump()


class FakeFleetHandler(BaseHTTPRequestHandler):
    server: FakeFleetServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(*self.check_key(200, self.server.status_document()))

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"]))
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault == "drop":  # ingested, but the response is lost
            self.server.ingest(text, self.headers["Content-Type"])
            self.close_connection = True
            return
        if fault:
            self.answer(int(fault), {"error": "Not now.", "fix": "Wait."})
            return
        self.answer(*self.check_key(*self.server.ingest(text, self.headers["Content-Type"])))

    def check_key(self, code: int, document: Any) -> tuple[int, Any]:
        if self.server.key and self.headers.get("X-API-Key") != self.server.key:
            return 401, {"error": "The API key is unknown.", "fix": "Send one."}
        return code, document

    def answer(self, code: int, document: Any) -> None:
        text = json.dumps(document).encode()
        self.send_response(code)
        if code == 429:
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[FakeFleetServer]:
    with FakeFleetServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class SimulationRun:
    """A simulation and its messages."""

    def __init__(self, url: str, key: str | None = None, **plan: Any) -> None:
        self.messages: list[str] = []
        self.stop = threading.Event()
        self.client = FleetClient(url, key, seconds=30.0, keep_alive=True)
        self.progress: list[float] = []
        self.simulation = Simulation(
            SimulationPlan(**({"servers": 7, "duration": 0.0, "backfill": 5.0} | plan)), self.client, SystemClock(),
            self.stop, report=self.messages.append, on_progress=lambda _, until: self.progress.append(until),
        )  # fmt: skip

    def __call__(self) -> SimulationTally:
        try:
            return self.simulation.run()
        finally:
            self.client.close()


@pytest.mark.parametrize("kind", ["json", "ndjson"])
def test_backfill_sends_every_past_tick(service: FakeFleetServer, kind: str) -> None:
    run = SimulationRun(service.url, kind=kind)
    tally = run()
    assert (tally.ticks, tally.rows, tally.accepted, tally.as_expected) == (60, 420, 420, True)
    assert {content_type for content_type, _ in service.bodies} == {
        "application/json" if kind == "json" else "application/x-ndjson"
    }
    begin = run.simulation._fleet.start
    block = service.window.block(begin - 1, 60)
    simulated = run.simulation._fleet.block(begin - 60, 60)
    assert set(block.servers) == set(run.simulation._fleet.names)
    order = [block.servers.index(name) for name in run.simulation._fleet.names]
    assert abs(block.values[order] - simulated).max() <= 1e-4


def test_live_ticks_follow_service_speed(service: FakeFleetServer) -> None:
    service.expected_bodies = 12
    run = SimulationRun(service.url, backfill=0.0, duration=None, join_leave=60.0)
    thread = threading.Thread(target=run)
    thread.start()
    assert service.has_bodies.wait(60)
    tally = run.simulation.tally
    wait_until(lambda: tally.left + tally.joined > 0)
    run.stop.set()
    thread.join()
    assert tally.as_expected, tally.mismatches
    assert tally.ticks >= 12
    times = [record["time"] for _, text in service.bodies for record in json.loads(text)["records"]]
    assert times == sorted(times)
    assert set(times) <= {run.simulation._fleet.start * STEP + STEP * tick for tick in range(tally.ticks)}


def test_tally_matches_refusals_with_lost_responses(service: FakeFleetServer) -> None:
    service.faults = ["429", "503", "drop", "500"]
    run = SimulationRun(service.url, bad=0.3, servers=40)
    tally = run()
    assert tally.as_expected, tally.mismatches
    assert tally.retries == 4
    assert sum(tally.refused.values()) > 100
    assert tally.refused == {code: count for code, count in tally.expected.items() if code not in {ACCEPTED, DUPLICATE}}
    assert [message for message in run.messages if "503" in message]
    assert [message for message in run.messages if "responds again" in message]
    assert len(service.window.servers()) == 40


def test_too_large_body_is_split(service: FakeFleetServer) -> None:
    service.max_bytes = 20_000
    tally = SimulationRun(service.url)()
    assert (tally.accepted, tally.as_expected) == (420, True)
    assert all(len(text) <= 20_000 for _, text in service.bodies)
    assert len(service.bodies) > 1


def test_service_refusing_one_row_stops_simulation(service: FakeFleetServer) -> None:
    service.max_bytes = 100
    with pytest.raises(NeedsHuman, match="refuses even a single row"):
        SimulationRun(service.url)()


def test_rows_before_window_are_counted_apart(service: FakeFleetServer) -> None:
    tally = SimulationRun(service.url, servers=2, backfill=60.0)()  # 720 ticks; the window has 400
    assert tally.as_expected, tally.mismatches
    assert tally.before_window > 0
    assert tally.before_window + tally.accepted == tally.rows


def test_full_fleet_is_a_mismatch(service: FakeFleetServer) -> None:
    service.window = FleetWindow(STEP, 400, 3)
    tally = SimulationRun(service.url)()
    assert not tally.as_expected
    assert any("FLEET_MAX_SERVERS" in message for message in tally.mismatches)


def test_api_key_is_sent_and_missing_key_is_refused(service: FakeFleetServer) -> None:
    service.key = "a-key-of-this-test-only"
    assert SimulationRun(service.url, service.key)().as_expected
    with pytest.raises(NeedsHuman, match="401"):
        SimulationRun(service.url)()


def test_other_speed_than_service_is_refused(service: FakeFleetServer) -> None:
    assert SimulationRun(service.url, speed=50.0)().as_expected
    with pytest.raises(NeedsHuman, match="runs at speed 50"):
        SimulationRun(service.url, speed=1.0)()


@pytest.mark.parametrize("status", [
    {"version": "7"}, {"version": "7", "servers": {}, "now": "noon", "step_seconds": 5, "tick": {"newest": 1}},
])  # fmt: skip
def test_unknown_service_gets_no_rows(service: FakeFleetServer, status: dict[str, Any]) -> None:
    service.status = status
    with pytest.raises(NeedsHuman, match="is not a fleet"):
        SimulationRun(service.url)()


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:8080", "http://"])
def test_simulation_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(NeedsHuman, match="not a fleet URL"):
        FleetClient(url)


def test_no_listener_gives_up_after_patience(unused_url: str) -> None:
    run = SimulationRun(unused_url, patience=0.3)
    with pytest.raises(RetryLater, match=r"(Connection refused).*Gave up"):
        run()
    assert len(run.messages) == 1  # the same error is reported once


def test_stop_ends_wait_for_service(unused_url: str) -> None:
    run = SimulationRun(unused_url)
    thread = threading.Thread(target=run)
    thread.start()
    run.stop.set()
    thread.join(60)
    assert not thread.is_alive()
    assert run.simulation.tally.rows == 0


def test_service_clock_set_back_is_followed(service: FakeFleetServer) -> None:
    service.expected_bodies, service.skew = 4, 3_600.0
    run = SimulationRun(service.url, backfill=0.0, duration=None)
    thread = threading.Thread(target=run)
    thread.start()
    assert service.has_bodies.wait(60)
    service.started_at += 300 / service.speed * STEP  # 300 ticks back, 30 s of the test's time
    service.faults = ["503"]
    wait_until(lambda: any("set back" in message for message in run.messages))
    body_count = len(service.bodies)
    wait_until(lambda: len(service.bodies) >= body_count + 4)
    run.stop.set()
    thread.join()
    assert run.simulation.tally.as_expected, run.simulation.tally.mismatches
