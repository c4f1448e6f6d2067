"""The fleet with a slow, failing or hung model, a model reload, a restart, and a changed clock."""

from __future__ import annotations

import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer

from forecastd.errors import SkipEpoch
from forecastd.fleet import fleet as fleet_module
from forecastd.fleet.contract import METRIC_NAMES
from forecastd.fleet.fleet import Fleet
from forecastd.fleet.ingest.scraper import Scraper

START = 1_769_860_800.0
STEP = 5


def test_slow_model_skips_ticks_and_blocks_nothing(serve: Any) -> None:
    fleet = serve()
    fleet.feed(START, "web-01", value=10.0)
    first = fleet.forecast_tick()
    fleet.script.proceed.clear()
    for tick in range(1, 6):
        assert fleet.feed(START + STEP * tick, "web-01", value=10.0 + tick)["accepted"] == 1
        fleet.close_tick()
        document = fleet.client.get("/risk").json()
        assert document["tick"] == first + tick  # evaluated without a forecast
    fleet.until(lambda: fleet.script.started == 2)
    assert fleet.client.get("/forecast/web-01").json()["origin"] == "2026-01-31T12:00:00Z"
    status = fleet.client.get("/status").json()
    assert status["forecast"]["skipped_ticks"] >= 3
    fleet.script.proceed.set()
    fleet.until(lambda: fleet.fleet.snapshot.forecast.tick == first + 5)
    assert fleet.client.get("/forecast/web-01").json()["metrics"]["cpu_percent"]["0.5"][0] == 15.0


def test_health_fails_while_forecast_is_stale(serve: Any) -> None:
    fleet = serve()
    fleet.feed(START, "web-01")
    fleet.forecast_tick()
    assert fleet.client.get("/healthz").json()["ok"] is True
    fleet.script.error = SkipEpoch("The model's processes died.", check="model_process")
    for tick in range(1, 9):
        fleet.feed(START + STEP * tick, "web-01")
        fleet.close_tick()
    fleet.until(lambda: fleet.fleet.last_error)
    response = fleet.client.get("/healthz")
    document = response.json()
    assert response.status_code == 503
    assert "old" in document["reasons"][0]
    assert "The model's processes died." in document["warnings"][0]
    assert fleet.client.get("/status").json()["forecast"]["failures"] >= 1
    assert fleet.client.get("/forecast").status_code == 200  # the last forecast, with its age
    fleet.script.error = None
    fleet.feed(START + STEP * 9, "web-01")
    fleet.forecast_tick()
    assert fleet.client.get("/healthz").status_code == 200


def test_unexpected_error_costs_one_tick(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    fleet = serve()
    fleet.script.error = ZeroDivisionError("an unexpected error of the test")
    fleet.feed(START, "web-01")
    fleet.close_tick()
    fleet.until(lambda: "an unexpected error of the test" in caplog.text)
    fleet.script.error = None
    fleet.feed(START + STEP, "web-01")
    fleet.forecast_tick()
    health = fleet.client.get("/healthz").json()
    assert health["ok"] is True
    assert any("unexpected error" in entry for entry in health["warnings"])


def test_restart_restores_window(serve: Any, tmp_path: Path) -> None:
    fleet = serve()
    for tick in range(6):
        fleet.feed(START + STEP * tick, "web-01", "web-02", value=10.0 + tick)
        fleet.forecast_tick()
    fleet.feed(fleet.clock.now(), "web-01", value=50.0)  # in the open tick
    fleet.fleet.close()
    restarted = serve(clock=fleet.clock)
    restarted.until(lambda: restarted.fleet.snapshot.forecast)
    forecast = restarted.fleet.snapshot.forecast
    assert forecast.tick == 6 + START / STEP - 1
    assert set(forecast.models) == {"tft"}
    document = restarted.client.get("/forecast/web-02").json()
    assert document["metrics"]["cpu_percent"]["0.5"][0] == 15.0
    window = restarted.client.get("/status").json()["window"]
    assert window["damaged"] == 0
    assert window["loaded_age_seconds"] is not None
    restarted.clock.advance(STEP)
    restarted.until(lambda: restarted.fleet.snapshot.forecast.tick == 6 + START / STEP)
    newest = restarted.client.get("/forecast/web-01").json()["metrics"]["cpu_percent"]["0.5"][0]
    assert newest == 50.0


def test_restart_does_not_reopen_alert(serve: Any) -> None:
    fleet = serve()
    for tick in range(5):
        fleet.feed(START + STEP * tick, "hot", metrics={"cpu_percent": 99.5})
        fleet.close_tick()
    open_alerts = fleet.client.get("/alerts").json()["open"]
    assert open_alerts
    fleet.fleet.close()
    restarted = serve(clock=fleet.clock)
    restarted.until(lambda: restarted.fleet.snapshot.tick > 0)
    assert [entry["id"] for entry in restarted.client.get("/alerts").json()["open"]] == [
        entry["id"] for entry in open_alerts
    ]


def test_clock_set_back_drops_future_ticks(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    fleet = serve()
    for tick in range(8):
        fleet.feed(START + STEP * tick, "web-01", value=10.0 + tick)
        fleet.forecast_tick()
    fleet.clock.wall -= 4 * STEP
    fleet.until(lambda: "set back" in caplog.text)
    fleet.until(lambda: fleet.fleet.snapshot.forecast and fleet.fleet.snapshot.forecast.tick < START / STEP + 5)
    assert fleet.feed(fleet.clock.now(), "web-01", value=70.0)["refused"] == 0
    tick = fleet.forecast_tick()
    assert tick < START / STEP + 8
    assert fleet.client.get("/forecast/web-01").json()["metrics"]["cpu_percent"]["0.5"][0] == 70.0


def test_silent_servers_are_removed_also_after_suspend(serve: Any) -> None:
    fleet = serve()
    fleet.feed(START, "web-01")
    fleet.forecast_tick()
    fleet.clock.advance(86_400)
    fleet.until(lambda: len(fleet.fleet.window.memory) == 0)
    fleet.until(lambda: fleet.client.get("/servers").json()["count"] == 0)
    fleet.until(lambda: fleet.client.get("/healthz").status_code == 200)  # the ticker has read the clock, too
    assert fleet.feed(fleet.clock.now(), "web-02")["accepted"] == 1
    fleet.forecast_tick()
    assert fleet.client.get("/forecast").json()["count"] == 1


def bundle(fleet: Any, name: str) -> str:
    (fleet.fleet.settings.fleet_models_path / name).mkdir(parents=True)
    return name


def reload_model(fleet: Any, name: object) -> Any:
    return fleet.client.post("/admin/reload-model", json={"name": name})


def test_reload_switches_model_and_closes_old(serve: Any) -> None:
    fleet = serve()
    fleet.feed(START, "web-01")
    fleet.forecast_tick()
    response = reload_model(fleet, bundle(fleet, "second-1.0"))
    assert response.status_code == 200
    assert (response.json()["old"]["name"], response.json()["new"]["name"]) == ("first", "second-1.0")
    fleet.until(lambda: fleet.client.get("/forecast/web-01").json()["bundle"] == "second-1.0")
    fleet.until(lambda: fleet.script.closed_names == ["first"])
    assert fleet.client.get("/status").json()["model"]["name"] == "second-1.0"
    assert reload_model(fleet, "first").status_code == 200  # the model of the start


INVALID_NAMES = [
    "",
    ".",
    "..",
    "../first",
    "a/b",
    "/etc",
    ".hidden",
    "a\x00b",
    "\xe9",
    "missing",
    "x" * 200,
    None,
    7,
    ["a"],
]
INVALID_BODIES = [b"", b"{}", b"[]", b'{"name": "a", "path": "b"}', b"\xff", b"{" * 10_000]


def test_reload_invalid_name_is_refused(serve: Any) -> None:
    fleet = serve()
    for name in INVALID_NAMES:
        response = reload_model(fleet, name)
        assert response.status_code == 422, name
        assert set(response.json()) == {"error", "fix"}
    for body in INVALID_BODIES:
        response = fleet.client.post("/admin/reload-model", content=body)
        assert response.status_code == 422, body
        assert set(response.json()) == {"error", "fix"}
    assert fleet.client.get("/status").json()["model"]["name"] == "first"
    assert fleet.script.opened_names == ["first"]


def test_reload_bad_model_changes_nothing(serve: Any) -> None:
    fleet = serve()
    fleet.feed(START, "web-01")
    fleet.forecast_tick()
    fleet.script.invalid_bundles["broken"] = "Its canary is off. Restore it."
    response = reload_model(fleet, bundle(fleet, "broken"))
    assert response.status_code == 422
    assert "Its canary is off" in response.json()["error"]
    assert fleet.script.closed_names == ["broken"]
    fleet.feed(START + STEP, "web-01")
    fleet.forecast_tick()
    assert fleet.client.get("/forecast/web-01").json()["bundle"] == "first"


def test_reload_runs_once_at_a_time(serve: Any) -> None:
    fleet = serve()
    fleet.feed(START, "web-01")
    fleet.forecast_tick()
    fleet.script.loaded.clear()
    first = bundle(fleet, "second")
    responses: list[Any] = []
    thread = threading.Thread(target=lambda: responses.append(reload_model(fleet, first)))
    thread.start()
    fleet.until(lambda: "second" in fleet.script.opened_names)
    assert reload_model(fleet, bundle(fleet, "third")).status_code == 409
    fleet.feed(START + STEP, "web-01")
    fleet.forecast_tick()
    assert fleet.client.get("/forecast/web-01").json()["bundle"] == "first"
    fleet.script.loaded.set()
    thread.join(60)
    assert responses[0].status_code == 200


def test_reload_replaces_hung_model_and_finishes_tick(serve: Any) -> None:
    fleet = serve()
    fleet.script.proceed.clear()
    fleet.feed(START, "web-01")
    tick = fleet.close_tick()
    fleet.until(lambda: fleet.script.started == 1)
    assert reload_model(fleet, bundle(fleet, "second")).status_code == 200
    fleet.until(lambda: fleet.script.started == 2)
    assert fleet.script.closed_names == ["first"]
    fleet.script.proceed.set()
    fleet.until(lambda: fleet.fleet.snapshot.forecast)
    assert (fleet.fleet.snapshot.forecast.bundle, fleet.fleet.snapshot.forecast.tick) == ("second", tick)
    assert fleet.client.get("/status").json()["forecast"]["failures"] == 0


def test_shutdown_does_not_wait_for_model(serve: Any) -> None:
    fleet = serve()
    fleet.feed(START, "web-01")
    fleet.script.proceed.clear()
    fleet.close_tick()
    fleet.until(lambda: fleet.script.started)
    fleet.script.loaded.clear()
    name = bundle(fleet, "second")
    thread = threading.Thread(target=lambda: reload_model(fleet, name), daemon=True)
    thread.start()
    fleet.until(lambda: "second" in fleet.script.opened_names)
    fleet.fleet.close()
    assert not fleet.fleet.forecast_worker.is_alive()
    fleet.until(lambda: {"first", "second"} <= set(fleet.script.closed_names))
    thread.join(60)
    assert not thread.is_alive()


def test_fleet_without_threads_can_be_closed(unstarted_fleet: Fleet) -> None:
    unstarted_fleet.close()
    assert not any(thread.is_alive() for thread in unstarted_fleet.threads)


def test_damaged_alert_state_starts_empty(serve: Any, tmp_path: Path) -> None:
    state = tmp_path / "state" / "fleet"
    state.mkdir(parents=True)
    (state / "alertbook.json").write_text(json.dumps({"version": 99}))
    fleet = serve()
    fleet.feed(START, "web-01")
    fleet.close_tick()
    assert fleet.client.get("/alerts").json()["open"] == []


def test_scraped_pages_reach_fleet(serve: Any, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "Scraper", partial(Scraper, timeout=60.0))  # one attempt per tick
    page = "".join(f"forecastd_{name} 12.5\n" for name in METRIC_NAMES)
    httpserver.expect_request("/metrics").respond_with_data(page, content_type="text/plain")
    fleet = serve(fleet_scrape=(f"db-01={httpserver.url_for('/metrics')}#database",))
    fleet.until(lambda: fleet.client.get("/status").json()["scrapes"][0]["ok"])
    fleet.forecast_tick()
    document = fleet.client.get("/servers").json()["servers"][0]
    assert (document["server"], document["profile"]) == ("db-01", "database")
    assert fleet.client.get("/forecast/db-01").json()["metrics"]["cpu_percent"]["0.5"][0] == 12.5
