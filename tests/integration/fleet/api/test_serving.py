"""What a client of the fleet's API gets: rows taken in, forecasts, how it stands, history; and every error in one shape."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from forecastd.fleet.contract import METRIC_NAMES

START = 1_769_860_800.0
STEP = 5


def test_rows_become_forecast_after_last_tick(serve: Any) -> None:
    served = serve()
    assert served.feed(START + 1, "web-01", "web-02")["accepted"] == 2
    tick = served.forecast_tick()
    served.clock.go_on(2.5)
    found = served.client.get("/forecast").json()
    assert found["count"] == 2
    assert {one["server"] for one in found["forecasts"]} == {"web-01", "web-02"}
    one = served.client.get("/forecast/web-02").json()
    assert one["origin"] == "2026-01-31T12:00:00Z"
    assert tick * STEP == START
    assert one["times"] == {"first": "2026-01-31T12:00:05Z", "last": "2026-01-31T12:00:20Z"}
    assert one["metrics"]["cpu_percent"]["0.5"] == [20.0] * 4
    assert one["model"] == "heuristic"
    assert one["age_seconds"] == found["age_seconds"] == 2.5
    assert found["forecasts"][0] == {key: value for key, value in served.client.get("/forecast/web-01").json().items()
                                     if key != "age_seconds"}  # fmt: skip


def test_bad_rows_are_refused_individually(serve: Any) -> None:
    served = serve()
    records = [
        {"server": "web-01", "time": START, "metrics": {"cpu_percent": 10}},
        {"server": "no name", "time": START, "metrics": {"cpu_percent": 10}},
        {"server": "web-02", "time": START + 1e6, "metrics": {"cpu_percent": 10}},
    ]
    answer = served.client.post("/feed", json={"version": 1, "records": records}).json()
    assert (answer["accepted"], answer["refused"]) == (1, 2)
    assert {(one["row"], one["code"]) for one in answer["reasons"]} == {(1, "server"), (2, "future")}
    again = served.client.post("/feed", json={"version": 1, "records": records[:1]}).json()
    assert (again["accepted"], again["duplicates"]) == (0, 1)
    told = served.client.get("/status").json()["ingest"]
    assert told == {"accepted": 1, "refused": 2, "duplicates": 1, "by_reason": {"server": 1, "future": 1}}


def test_ndjson_feed_is_accepted(serve: Any) -> None:
    served = serve()
    lines = "\n".join(json.dumps({"server": f"db-{n}", "time": START, "metrics": {"cpu_percent": n}}) for n in range(3))
    answer = served.client.post(
        "/feed", content=f"{lines}\n{{", headers={"Content-Type": "application/x-ndjson"}
    ).json()
    assert (answer["accepted"], answer["refused"]) == (3, 1)


def test_invalid_feed_gets_400_with_fix(serve: Any) -> None:
    served = serve()
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
        answer = served.client.post("/feed", content=body)
        assert answer.status_code == 400, body
        assert set(answer.json()) == {"error", "fix"}
    assert served.client.post("/feed", content=b'{"version": 1, "records": []}').status_code == 200


def test_forecast_before_first_gets_retry_after(serve: Any) -> None:
    served = serve(opened=False)
    assert served.client.get("/forecast").json() == {"made_at": None, "age_seconds": None, "count": 0, "forecasts": []}
    served.feed(START, "web-01")
    answer = served.client.get("/forecast")
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert served.client.get("/forecast/web-01").status_code == 503
    assert served.client.get("/forecast/web-09").status_code == 404
    assert served.client.get("/healthz").status_code == 503


def test_unchanged_forecast_gets_304(serve: Any) -> None:
    served = serve()
    served.feed(START, "web-01")
    served.forecast_tick()
    for path in ("/forecast", "/forecast/web-01", "/forecast?metrics=cpu_percent"):
        tag = served.client.get(path).headers["ETag"]
        again = served.client.get(path, headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
    served.feed(START + 5, "web-01")
    served.forecast_tick()
    assert served.client.get("/forecast", headers={"If-None-Match": tag}).status_code == 200


def test_forecast_selects_servers_metrics_and_levels(serve: Any) -> None:
    served = serve()
    served.feed(START, "a", "b", "c")
    served.forecast_tick()
    asked = {"servers": "c,a", "metrics": "latency_ms,cpu_percent", "levels": "0.5,0.7"}
    told = served.client.get("/forecast", params=asked).json()
    assert [one["server"] for one in told["forecasts"]] == ["c", "a"]
    for one in told["forecasts"]:
        assert set(one["metrics"]) == {"latency_ms", "cpu_percent"}
        assert set(one["metrics"]["cpu_percent"]) == {"unit", "0.5", "0.7"}
        assert one["levels"] == [0.5, 0.7]
    page = served.client.get("/forecast", params={"limit": 2, "offset": 2}).json()
    assert (page["count"], len(page["forecasts"])) == (3, 1)
    whole = served.client.get("/forecast/a", params={"metrics": ",".join(METRIC_NAMES)}).json()
    assert whole == served.client.get("/forecast/a").json()


ERRORS = {
    422: ["/forecast?metrics=nothing", "/forecast?metrics=,", "/forecast?levels=2", "/forecast?levels=x",
          "/forecast?levels=nan",
          "/forecast?limit=0", "/forecast?limit=x", "/servers?state=x", "/risk?top=-1", "/history?start=x",
          "/history?start=2&end=1", "/history?metrics=x", "/history?server=-", "/history?format=xml", "/history?start=1e300",
          "/history?end=-1", "/history?limit=0"],
    404: ["/forecast?servers=zz", "/forecast/zz", "/forecast/%00", "/forecast/a%2Fb", "/nothing", "/forecast/%F0%9F%98%80"],
    405: ["/feed", "/admin/reload-model"],
}  # fmt: skip


def test_every_error_has_fix(serve: Any) -> None:
    served = serve()
    served.feed(START, "a")
    served.forecast_tick()
    for status, paths in ERRORS.items():
        for path in paths:
            answer = served.client.get(path)
            assert answer.status_code == status, path
            assert set(answer.json()) == {"error", "fix"}, path
            assert answer.headers["content-type"] == "application/json", path


def test_servers_count_missing_ticks_down(serve: Any) -> None:
    served = serve()
    needs = []
    for tick in range(3):
        served.feed(START + 5 * tick, "web-01")
        served.forecast_tick()
        told = served.client.get("/servers").json()
        needs.append(told["servers"][0]["needs"])
    assert needs == [2, 1, 0]
    assert told["states"] == {"total": 1, "ready": 1, "warming": 0, "silent": 0}
    one = told["servers"][0]
    assert (one["server"], one["profile"], one["state"], one["model"]) == ("web-01", "web", "ready", "tft")
    assert one["last_seen"] == "2026-01-31T12:00:10Z"
    assert served.client.get("/servers?state=warming").json()["count"] == 0
    assert served.client.get("/forecast/web-01").json()["model"] == "tft"


def test_risk_is_worst_first_and_alerts_are_listed(serve: Any) -> None:
    served = serve()
    for tick in range(5):
        served.feed(START + 5 * tick, "calm", metrics={"cpu_percent": 3.0})
        served.feed(START + 5 * tick, "hot", metrics={"cpu_percent": 99.5})
        served.close_tick()
    told = served.client.get("/risk").json()
    assert [one["server"] for one in told["servers"]] == ["hot", "calm"]
    assert told["servers"][0]["score"] > told["servers"][1]["score"]
    assert told["summary"]["servers"] == 2
    assert len(served.client.get("/risk?top=1").json()["servers"]) == 1
    assert served.client.get("/risk?top=0").json()["servers"] == []
    alerts = served.client.get("/alerts").json()
    assert {one["server"] for one in alerts["open"]} == {"hot"}
    assert served.client.get("/status").json()["alerts"]["open"] == len(alerts["open"])


def test_history_returns_sent_rows_as_json_and_csv(serve: Any) -> None:
    served = serve()
    for tick in range(3):
        served.feed(START + 5 * tick, "a", "b", value=10.0 + tick)
        served.close_tick()
    asked = {
        "server": "b",
        "metrics": "cpu_percent,swap_percent",
        "start": "2026-01-31T12:00:05Z",
        "end": str(START + 600),
    }
    # A tick is told as judged before it is kept.
    served.until(lambda: served.client.get("/history", params=asked).json()["count"] == 2)
    told = served.client.get("/history", params=asked).json()
    assert told["metrics"] == ["cpu_percent", "swap_percent"]
    assert [(one["time"], one["server"], one["values"]) for one in told["rows"]] == [
        (START + 5, "b", [11.0, 11.0]), (START + 10, "b", [12.0, 12.0]),
    ]  # fmt: skip
    answer = served.client.get("/history", params={**asked, "format": "csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["time"], row["server"], row["cpu_percent"]) for row in rows] == [
        ("2026-01-31T12:00:05Z", "b", "11"), ("2026-01-31T12:00:10Z", "b", "12"),
    ]  # fmt: skip
    short = served.client.get("/history", params={"limit": 2, "start": START}).json()
    assert (short["count"], short["truncated"]) == (2, True)


def test_metrics_series_are_bounded(serve: Any) -> None:
    served = serve()
    served.feed(START, "web-01")
    served.forecast_tick()
    for number in range(3):
        _guess(served.client, number)
    before = _series(served.client)
    for number in range(3, 30):
        _guess(served.client, number)
    after = _series(served.client)
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


def test_openapi_describes_every_route(serve: Any) -> None:
    served = serve(keys=("a-key-of-good-length",))
    document = served.client.get("/openapi.json", headers={"X-API-Key": "a-key-of-good-length"}).json()
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
    assert served.client.get("/docs", headers={"X-API-Key": "a-key-of-good-length"}).status_code == 200


def test_api_docs_need_no_network(serve: Any) -> None:
    served = serve()
    page = served.client.get("/docs").text
    found = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(found) >= 3
    for address in found:
        assert address.startswith("/"), address
        assert served.client.get(address).status_code == 200, address
