"""The API of the fleet: ingest, forecasts, status, history, metrics, and every error in one shape."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import httpx
import orjson
from prometheus_client.parser import text_string_to_metric_families

from forecastd.fleet.contract import METRIC_NAMES
from forecastd.fleet.documents import (
    AlertsResponse,
    ErrorResponse,
    ForecastsResponse,
    HealthResponse,
    HistoryResponse,
    RisksResponse,
    ServerForecastResponse,
    ServersResponse,
    StatusResponse,
    parse_document,
)

START = 1_769_860_800.0
STEP = 5


def test_rows_become_forecast_after_last_tick(serve: Any) -> None:
    fleet = serve()
    assert fleet.feed(START + 1, "web-01", "web-02")["accepted"] == 2
    tick = fleet.forecast_tick()
    fleet.clock.advance(2.5)
    result = fleet.client.get("/forecast").json()
    assert result["count"] == 2
    assert {entry["server"] for entry in result["forecasts"]} == {"web-01", "web-02"}
    entry = fleet.client.get("/forecast/web-02").json()
    assert entry["origin"] == "2026-01-31T12:00:00Z"
    assert tick * STEP == START
    assert entry["times"] == {"first": "2026-01-31T12:00:05Z", "last": "2026-01-31T12:00:20Z"}
    assert entry["metrics"]["cpu_percent"]["0.5"] == [20.0] * 4
    assert entry["model"] == "heuristic"
    assert entry["age_seconds"] == result["age_seconds"] == 2.5
    assert result["forecasts"][0] == {key: value for key, value in fleet.client.get("/forecast/web-01").json().items()
                                     if key != "age_seconds"}  # fmt: skip


def test_bad_rows_are_refused_individually(serve: Any) -> None:
    fleet = serve()
    records = [
        {"server": "web-01", "time": START, "metrics": {"cpu_percent": 10}},
        {"server": "no name", "time": START, "metrics": {"cpu_percent": 10}},
        {"server": "web-02", "time": START + 1e6, "metrics": {"cpu_percent": 10}},
    ]
    response = fleet.client.post("/feed", json={"version": 1, "records": records}).json()
    assert (response["accepted"], response["refused"]) == (1, 2)
    assert {(entry["row"], entry["code"]) for entry in response["reasons"]} == {(1, "server"), (2, "future")}
    repeated = fleet.client.post("/feed", json={"version": 1, "records": records[:1]}).json()
    assert (repeated["accepted"], repeated["duplicates"]) == (0, 1)
    document = fleet.client.get("/status").json()["ingest"]
    assert document == {"accepted": 1, "refused": 2, "duplicates": 1, "by_reason": {"server": 1, "future": 1}}


def test_ndjson_feed_is_accepted(serve: Any) -> None:
    fleet = serve()
    lines = "\n".join(json.dumps({"server": f"db-{n}", "time": START, "metrics": {"cpu_percent": n}}) for n in range(3))
    response = fleet.client.post(
        "/feed", content=f"{lines}\n{{", headers={"Content-Type": "application/x-ndjson"}
    ).json()
    assert (response["accepted"], response["refused"]) == (3, 1)


def test_invalid_feed_gets_400_with_fix(serve: Any) -> None:
    fleet = serve()
    bodies = (
        b"",
        b"[]",
        b'{"version": 2, "records": []}',
        b'{"version": 1}',
        b"\xff\x00",
        b"[" * 100_000,
        b"7",
        b"null",
    )
    for body in bodies:
        response = fleet.client.post("/feed", content=body)
        assert response.status_code == 400, body
        assert set(response.json()) == {"error", "fix"}
    assert fleet.client.post("/feed", content=b'{"version": 1, "records": []}').status_code == 200


def test_forecast_before_first_gets_retry_after(serve: Any) -> None:
    fleet = serve(loads_at_once=False)
    assert fleet.client.get("/forecast").json() == {"made_at": None, "age_seconds": None, "count": 0, "forecasts": []}
    fleet.feed(START, "web-01")
    response = fleet.client.get("/forecast")
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert fleet.client.get("/forecast/web-01").status_code == 503
    assert fleet.client.get("/forecast/web-09").status_code == 404
    assert fleet.client.get("/healthz").status_code == 503


def test_unchanged_forecast_gets_304(serve: Any) -> None:
    fleet = serve()
    fleet.feed(START, "web-01")
    fleet.forecast_tick()
    for path in ("/forecast", "/forecast/web-01", "/forecast?metrics=cpu_percent"):
        tag = fleet.client.get(path).headers["ETag"]
        repeated = fleet.client.get(path, headers={"If-None-Match": tag})
        assert (repeated.status_code, repeated.content) == (304, b"")
    fleet.feed(START + 5, "web-01")
    fleet.forecast_tick()
    assert fleet.client.get("/forecast", headers={"If-None-Match": tag}).status_code == 200


def test_forecast_selects_servers_metrics_and_levels(serve: Any) -> None:
    fleet = serve()
    fleet.feed(START, "a", "b", "c")
    fleet.forecast_tick()
    params = {"servers": "c,a", "metrics": "latency_ms,cpu_percent", "levels": "0.5,0.7"}
    document = fleet.client.get("/forecast", params=params).json()
    assert [entry["server"] for entry in document["forecasts"]] == ["c", "a"]
    for entry in document["forecasts"]:
        assert set(entry["metrics"]) == {"latency_ms", "cpu_percent"}
        assert set(entry["metrics"]["cpu_percent"]) == {"unit", "0.5", "0.7"}
        assert entry["levels"] == [0.5, 0.7]
    page = fleet.client.get("/forecast", params={"limit": 2, "offset": 2}).json()
    assert (page["count"], len(page["forecasts"])) == (3, 1)
    all_metrics = fleet.client.get("/forecast/a", params={"metrics": ",".join(METRIC_NAMES)}).json()
    assert all_metrics == fleet.client.get("/forecast/a").json()


INVALID_PATHS = {
    422: ["/forecast?metrics=nothing", "/forecast?metrics=,", "/forecast?levels=2", "/forecast?levels=x",
          "/forecast?levels=nan",
          "/forecast?limit=0", "/forecast?limit=x", "/servers?state=x", "/risk?top=-1", "/history?start=x",
          "/history?start=2&end=1", "/history?metrics=x", "/history?server=-", "/history?format=xml", "/history?start=1e300",
          "/history?end=-1", "/history?limit=0"],
    404: ["/forecast?servers=zz", "/forecast/zz", "/forecast/%00", "/forecast/a%2Fb", "/nothing", "/forecast/%F0%9F%98%80"],
    405: ["/feed", "/admin/reload-model"],
}  # fmt: skip


def test_every_error_has_fix(serve: Any) -> None:
    fleet = serve()
    fleet.feed(START, "a")
    fleet.forecast_tick()
    for status, paths in INVALID_PATHS.items():
        for path in paths:
            response = fleet.client.get(path)
            assert response.status_code == status, path
            assert set(response.json()) == {"error", "fix"}, path
            assert response.headers["content-type"] == "application/json", path


def test_servers_count_missing_ticks_down(serve: Any) -> None:
    fleet = serve()
    missing_ticks = []
    for tick in range(3):
        fleet.feed(START + 5 * tick, "web-01")
        fleet.forecast_tick()
        document = fleet.client.get("/servers").json()
        missing_ticks.append(document["servers"][0]["missing_ticks"])
    assert missing_ticks == [2, 1, 0]
    assert document["states"] == {"total": 1, "ready": 1, "warming": 0, "silent": 0}
    entry = document["servers"][0]
    assert (entry["server"], entry["profile"], entry["state"], entry["model"]) == ("web-01", "web", "ready", "tft")
    assert entry["last_seen"] == "2026-01-31T12:00:10Z"
    assert fleet.client.get("/servers?state=warming").json()["count"] == 0
    assert fleet.client.get("/forecast/web-01").json()["model"] == "tft"


def test_risk_is_worst_first_and_alerts_are_listed(serve: Any) -> None:
    fleet = serve()
    for tick in range(5):
        fleet.feed(START + 5 * tick, "calm", metrics={"cpu_percent": 3.0})
        fleet.feed(START + 5 * tick, "hot", metrics={"cpu_percent": 99.5})
        fleet.close_tick()
    document = fleet.client.get("/risk").json()
    assert [entry["server"] for entry in document["servers"]] == ["hot", "calm"]
    assert document["servers"][0]["score"] > document["servers"][1]["score"]
    assert document["summary"]["servers"] == 2
    assert len(fleet.client.get("/risk?top=1").json()["servers"]) == 1
    assert fleet.client.get("/risk?top=0").json()["servers"] == []
    alerts = fleet.client.get("/alerts").json()
    assert {entry["server"] for entry in alerts["open"]} == {"hot"}
    assert fleet.client.get("/status").json()["alerts"]["open"] == len(alerts["open"])


def test_history_returns_sent_rows_as_json_and_csv(serve: Any) -> None:
    fleet = serve()
    for tick in range(3):
        fleet.feed(START + 5 * tick, "a", "b", value=10.0 + tick)
        fleet.close_tick()
    params = {
        "server": "b",
        "metrics": "cpu_percent,swap_percent",
        "start": "2026-01-31T12:00:05Z",
        "end": str(START + 600),
    }
    # A tick is published before it is stored.
    fleet.until(lambda: fleet.client.get("/history", params=params).json()["count"] == 2)
    document = fleet.client.get("/history", params=params).json()
    assert document["metrics"] == ["cpu_percent", "swap_percent"]
    assert [(entry["time"], entry["server"], entry["values"]) for entry in document["rows"]] == [
        (START + 5, "b", [11.0, 11.0]), (START + 10, "b", [12.0, 12.0]),
    ]  # fmt: skip
    response = fleet.client.get("/history", params={**params, "format": "csv"})
    assert response.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert [(row["time"], row["server"], row["cpu_percent"]) for row in rows] == [
        ("2026-01-31T12:00:05Z", "b", "11"), ("2026-01-31T12:00:10Z", "b", "12"),
    ]  # fmt: skip
    limited = fleet.client.get("/history", params={"limit": 2, "start": START}).json()
    assert (limited["count"], limited["truncated"]) == (2, True)


def test_metrics_series_are_bounded(serve: Any) -> None:
    fleet = serve()
    fleet.feed(START, "web-01")
    fleet.forecast_tick()
    for number in range(3):
        _guess(fleet.client, number)
    before = _series(fleet.client)
    for number in range(3, 30):
        _guess(fleet.client, number)
    after = _series(fleet.client)
    assert set(after) == set(before)
    assert not any("guess" in name.lower() for name in after)
    assert after["forecastd_fleet_up{}"] == 1
    assert after["forecastd_fleet_rows_total{'result': 'accepted'}"] == 1
    assert (
        after["forecastd_fleet_requests_total{'method': 'GET', 'route': '/forecast/{server}', 'status': '404'}"] == 30
    )


def _guess(client: httpx.Client, number: int) -> None:
    client.get(f"/forecast/guess-{number}")
    client.get(f"/guess-{number}")
    client.request(f"GUESS{number}", "/status")
    client.get("/metrics")


def _series(client: httpx.Client) -> dict[str, float]:
    text = client.get("/metrics").text
    return {
        f"{sample.name}{dict(sorted(sample.labels.items()))}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


RESPONSES = {
    "/status": StatusResponse, "/servers": ServersResponse, "/risk": RisksResponse, "/alerts": AlertsResponse,
    "/healthz": HealthResponse, "/forecast": ForecastsResponse, "/forecast/hot": ServerForecastResponse,
    "/history": HistoryResponse, "/nothing": ErrorResponse,
}  # fmt: skip


def test_responses_have_exactly_the_fields_of_their_documents(serve: Any) -> None:
    fleet = serve(fleet_scrape=("db-01=http://127.0.0.1:9",))
    for tick in range(5):
        fleet.feed(START + 5 * tick, "hot", metrics={"cpu_percent": 99.5})
        fleet.forecast_tick()
    fleet.until(lambda: fleet.client.get("/history").json()["count"] == 5)
    for path, kind in RESPONSES.items():
        document = fleet.client.get(path).json()
        complete = orjson.loads(orjson.dumps(parse_document(kind, document)))
        for forecast in document.get("forecasts", ()):
            forecast["age_seconds"] = None  # given once, for all of them
        assert document == complete, path


def test_openapi_describes_every_route(serve: Any) -> None:
    fleet = serve(keys=("a-key-of-good-length",))
    document = fleet.client.get("/openapi.json", headers={"X-API-Key": "a-key-of-good-length"}).json()
    text = json.dumps(document)
    names = set(document["components"]["schemas"])
    assert {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]} <= names
    assert set(document["paths"]) == {
        "/status", "/servers", "/risk", "/alerts", "/healthz", "/forecast", "/forecast/{server}", "/feed", "/history",
        "/admin/reload-model", "/metrics",
    }  # fmt: skip
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["description"], path
    assert document["components"]["securitySchemes"]
    assert fleet.client.get("/docs", headers={"X-API-Key": "a-key-of-good-length"}).status_code == 200


def test_api_docs_need_no_network(serve: Any) -> None:
    fleet = serve()
    page = fleet.client.get("/docs").text
    result = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(result) >= 3
    for address in result:
        assert address.startswith("/"), address
        assert fleet.client.get(address).status_code == 200, address
