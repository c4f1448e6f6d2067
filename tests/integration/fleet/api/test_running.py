"""How the fleet goes on: with a slow, failing or hanging model, another model, a restart, a clock that is set."""

from __future__ import annotations

import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer

from forecastd.errors import SkipEpoch
from forecastd.fleet import fleet
from forecastd.fleet.contract import METRIC_NAMES
from forecastd.fleet.ingest.scraper import Scraper

START = 1_769_860_800.0
STEP = 5


def test_slow_model_skips_ticks_and_blocks_nothing(serve: Any) -> None:
    served = serve()
    served.feed(START, "web-01", value=10.0)
    first = served.forecast_tick()
    served.script.go.clear()
    for tick in range(1, 6):
        assert served.feed(START + STEP * tick, "web-01", value=10.0 + tick)["accepted"] == 1
        served.close_tick()
        told = served.client.get("/risk").json()
        assert told["tick"] == first + tick  # judged all the same
    served.until(lambda: served.script.begun == 2)
    assert served.client.get("/forecast/web-01").json()["origin"] == "2026-01-31T12:00:00Z"
    status = served.client.get("/status").json()
    assert status["forecast"]["skipped_ticks"] >= 3
    served.script.go.set()
    served.until(lambda: served.fleet.published.forecast.tick == first + 5)
    assert served.client.get("/forecast/web-01").json()["metrics"]["cpu_percent"]["0.5"][0] == 15.0


def test_health_fails_while_forecast_is_stale(serve: Any) -> None:
    served = serve()
    served.feed(START, "web-01")
    served.forecast_tick()
    assert served.client.get("/healthz").json()["ok"] is True
    served.script.error = SkipEpoch("The model's processes died.", check="model_process")
    for tick in range(1, 9):
        served.feed(START + STEP * tick, "web-01")
        served.close_tick()
    served.until(lambda: served.fleet.trouble)
    answer = served.client.get("/healthz")
    told = answer.json()
    assert answer.status_code == 503
    assert "old" in told["reasons"][0]
    assert "The model's processes died." in told["warnings"][0]
    assert served.client.get("/status").json()["forecast"]["failures"] >= 1
    assert served.client.get("/forecast").status_code == 200  # the last one, with its age
    served.script.error = None
    served.feed(START + STEP * 9, "web-01")
    served.forecast_tick()
    assert served.client.get("/healthz").status_code == 200


def test_unexpected_error_costs_one_tick(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    served = serve()
    served.script.error = ZeroDivisionError("what was not foreseen")
    served.feed(START, "web-01")
    served.close_tick()
    served.until(lambda: "what was not foreseen" in caplog.text)
    served.script.error = None
    served.feed(START + STEP, "web-01")
    served.forecast_tick()
    health = served.client.get("/healthz").json()
    assert health["ok"] is True
    assert any("nobody foresaw" in one for one in health["warnings"])


def test_restart_restores_window(serve: Any, tmp_path: Path) -> None:
    served = serve()
    for tick in range(6):
        served.feed(START + STEP * tick, "web-01", "web-02", value=10.0 + tick)
        served.forecast_tick()
    served.feed(served.clock.now(), "web-01", value=50.0)  # in the tick that is open
    served.fleet.close()
    again = serve(clock=served.clock)
    made = again.until(lambda: again.fleet.published.forecast)
    assert made.tick == 6 + START / STEP - 1
    assert set(made.models) == {"tft"}
    told = again.client.get("/forecast/web-02").json()
    assert told["metrics"]["cpu_percent"]["0.5"][0] == 15.0
    window = again.client.get("/status").json()["window"]
    assert window["damaged"] == 0
    assert window["loaded_age_seconds"] is not None
    again.clock.go_on(STEP)
    again.until(lambda: again.fleet.published.forecast.tick == 6 + START / STEP)
    found = again.client.get("/forecast/web-01").json()["metrics"]["cpu_percent"]["0.5"][0]
    assert found == 50.0


def test_restart_does_not_reopen_alert(serve: Any) -> None:
    served = serve()
    for tick in range(5):
        served.feed(START + STEP * tick, "hot", metrics={"cpu_percent": 99.5})
        served.close_tick()
    opened = served.client.get("/alerts").json()["open"]
    assert opened
    served.fleet.close()
    again = serve(clock=served.clock)
    again.until(lambda: again.fleet.published.tick > 0)
    assert [one["id"] for one in again.client.get("/alerts").json()["open"]] == [one["id"] for one in opened]


def test_clock_set_back_drops_future_ticks(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    served = serve()
    for tick in range(8):
        served.feed(START + STEP * tick, "web-01", value=10.0 + tick)
        served.forecast_tick()
    served.clock.go_on(-4 * STEP)
    served.until(lambda: "set back" in caplog.text)
    served.until(lambda: served.fleet.published.forecast and served.fleet.published.forecast.tick < START / STEP + 5)
    assert served.feed(served.clock.now(), "web-01", value=70.0)["refused"] == 0
    tick = served.forecast_tick()
    assert tick < START / STEP + 8
    assert served.client.get("/forecast/web-01").json()["metrics"]["cpu_percent"]["0.5"][0] == 70.0


def test_silent_servers_are_removed_also_after_suspend(serve: Any) -> None:
    served = serve()
    served.feed(START, "web-01")
    served.forecast_tick()
    served.clock.go_on(86_400)
    served.until(lambda: len(served.fleet.memory.window) == 0)
    served.until(lambda: served.client.get("/servers").json()["count"] == 0)
    served.until(lambda: served.client.get("/healthz").status_code == 200)  # the ticker has seen the time, too
    assert served.feed(served.clock.now(), "web-02")["accepted"] == 1
    served.forecast_tick()
    assert served.client.get("/forecast").json()["count"] == 1


# ---- another model ----------------------------------------------------------------------------------------------------


def bundle(served: Any, name: str) -> str:
    (served.fleet.settings.fleet_models / name).mkdir(parents=True)
    return name


def reload_model(served: Any, name: object) -> Any:
    return served.client.post("/admin/reload-model", json={"name": name})


def test_reload_switches_model_and_closes_old(serve: Any) -> None:
    served = serve()
    served.feed(START, "web-01")
    served.forecast_tick()
    answer = reload_model(served, bundle(served, "second-1.0"))
    assert answer.status_code == 200
    assert (answer.json()["old"]["name"], answer.json()["new"]["name"]) == ("first", "second-1.0")
    served.until(lambda: served.client.get("/forecast/web-01").json()["bundle"] == "second-1.0")
    served.until(lambda: served.script.closed == ["first"])
    assert served.client.get("/status").json()["model"]["name"] == "second-1.0"
    assert reload_model(served, "first").status_code == 200  # the one it was started with


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
    served = serve()
    for name in INVALID_NAMES:
        answer = reload_model(served, name)
        assert answer.status_code == 422, name
        assert set(answer.json()) == {"error", "fix"}
    for body in INVALID_BODIES:
        answer = served.client.post("/admin/reload-model", content=body)
        assert answer.status_code == 422, body
        assert set(answer.json()) == {"error", "fix"}
    assert served.client.get("/status").json()["model"]["name"] == "first"
    assert served.script.opened == ["first"]


def test_reload_bad_model_changes_nothing(serve: Any) -> None:
    served = serve()
    served.feed(START, "web-01")
    served.forecast_tick()
    served.script.bad["broken"] = "Its canary is off. Restore it."
    answer = reload_model(served, bundle(served, "broken"))
    assert answer.status_code == 422
    assert "Its canary is off" in answer.json()["error"]
    assert served.script.closed == ["broken"]
    served.feed(START + STEP, "web-01")
    served.forecast_tick()
    assert served.client.get("/forecast/web-01").json()["bundle"] == "first"


def test_reload_runs_once_at_a_time(serve: Any) -> None:
    served = serve()
    served.feed(START, "web-01")
    served.forecast_tick()
    served.script.loaded.clear()
    first = bundle(served, "second")
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(reload_model(served, first)))
    thread.start()
    served.until(lambda: "second" in served.script.opened)
    assert reload_model(served, bundle(served, "third")).status_code == 409
    served.feed(START + STEP, "web-01")
    served.forecast_tick()
    assert served.client.get("/forecast/web-01").json()["bundle"] == "first"
    served.script.loaded.set()
    thread.join(60)
    assert answers[0].status_code == 200


def test_reload_replaces_hung_model_and_finishes_tick(serve: Any) -> None:
    served = serve()
    served.script.go.clear()
    served.feed(START, "web-01")
    tick = served.close_tick()
    served.until(lambda: served.script.begun == 1)
    assert reload_model(served, bundle(served, "second")).status_code == 200
    served.until(lambda: served.script.begun == 2)
    assert served.script.closed == ["first"]
    served.script.go.set()
    served.until(lambda: served.fleet.published.forecast)
    assert (served.fleet.published.forecast.bundle, served.fleet.published.forecast.tick) == ("second", tick)
    assert served.client.get("/status").json()["forecast"]["failures"] == 0


def test_shutdown_does_not_wait_for_model(serve: Any) -> None:
    served = serve()
    served.feed(START, "web-01")
    served.script.go.clear()
    served.close_tick()
    served.until(lambda: served.script.begun)
    served.script.loaded.clear()
    name = bundle(served, "second")
    thread = threading.Thread(target=lambda: reload_model(served, name), daemon=True)
    thread.start()
    served.until(lambda: "second" in served.script.opened)
    served.fleet.close()
    assert not served.fleet.forecasting.alive
    served.until(lambda: {"first", "second"} <= set(served.script.closed))
    thread.join(60)
    assert not thread.is_alive()


def test_damaged_alert_state_starts_empty(serve: Any, tmp_path: Path) -> None:
    state = tmp_path / "state" / "fleet"
    state.mkdir(parents=True)
    (state / "alertbook.json").write_text(json.dumps({"version": 99}))
    served = serve()
    served.feed(START, "web-01")
    served.close_tick()
    assert served.client.get("/alerts").json()["open"] == []


def test_failed_model_is_retried_with_backoff(serve: Any) -> None:
    served = serve()
    served.feed(START, "web-01")
    served.forecast_tick()
    served.script.error = SkipEpoch("The model is in quarantine.", check="fleet_forecast")
    served.fleet.model._current.counts.quarantines = 1
    opened = []
    for tick in range(1, 60):
        served.feed(START + STEP * tick, "web-01")
        served.close_tick()
        served.until(lambda: served.fleet._attempted_tick >= served.fleet.memory.window.newest)
        opened.append(len(served.script.opened))
        served.fleet.model._current.counts.quarantines = 1
    first, second = opened.index(2), opened.index(3)
    assert 5 <= first <= 8
    assert second - first >= 11
    assert len(served.script.closed) == len(served.script.opened) - 1
    served.script.error = None
    served.feed(served.clock.now(), "web-01")
    served.forecast_tick()


def test_scraped_pages_reach_fleet(serve: Any, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "Puller", partial(Scraper, timeout=60.0))  # until the next tick there is one try
    page = "".join(f"forecastd_{name} 12.5\n" for name in METRIC_NAMES)
    httpserver.expect_request("/metrics").respond_with_data(page, content_type="text/plain")
    served = serve(fleet_scrape=(f"db-01={httpserver.url_for('/metrics')}#database",))
    served.until(lambda: served.client.get("/status").json()["scrapes"][0]["ok"])
    served.forecast_tick()
    told = served.client.get("/servers").json()["servers"][0]
    assert (told["server"], told["profile"]) == ("db-01", "database")
    assert served.client.get("/forecast/db-01").json()["metrics"]["cpu_percent"]["0.5"][0] == 12.5
