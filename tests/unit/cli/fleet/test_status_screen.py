"""The screens of a running fleet: 80 columns, problems first, and no control sequences from the service."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console, RenderableType

from cli.fleet.rows import format_probability
from cli.fleet.status_screen import status_screen
from cli.fleet.top_screen import TopData, TopScreen, format_bars, format_short, server_capacity
from forecastd.fleet.documents import AlertsResponse, ForecastsResponse, RisksResponse, StatusResponse, parse_document

STATUS: dict[str, Any] = {
    "version": "0.1.0", "started_at": "2026-09-19T02:13:20Z", "now": "2026-09-21T14:13:20Z", "uptime_seconds": 216_000.0,
    "step_seconds": 5, "synthetic": False, "speed": 1.0, "health": {"ok": True, "reasons": [], "warnings": []},
    "model": {"name": "fleet-demo", "sha256": "ab12cd34ef567890", "engine": "auto", "horizon_steps": 96,
              "encoder_length": 288, "encoder_minimum": 144},
    "tick": {"newest": 358_000_000, "time": "2026-09-21T14:13:15Z", "age_seconds": 2.2},
    "forecast": {"made_at": "2026-09-21T14:13:18Z", "age_seconds": 2.0, "seconds": 0.046, "servers": 20, "tft": 18,
                 "heuristic": 2, "skipped_ticks": 0, "failures": 0},
    "servers": {"total": 20, "ready": 18, "warming": 2, "silent": 0},
    "window": {"ticks": 34_560, "oldest": "2026-09-19T14:13:20Z", "damaged": 0, "disk_bytes": 41_200_000, "last_error": None},
    "ingest": {"accepted": 864_000, "refused": 0, "duplicates": 3, "by_reason": {}},
    "supervision": {"replacements": 0, "crashes": 0, "failovers": 0, "children": [{"phase": "idle"}, {"phase": "idle"}]},
}  # fmt: skip
RISKS: dict[str, Any] = {
    "summary": {"servers": 20, "counts": {"ok": 17, "watch": 1, "warning": 1, "critical": 1}, "maintenance": 0,
                "incident_probability": 0.9312, "expected_incidents": 1.42},
    "servers": [
        {"server": "db-01", "profile": "database", "status": "ok", "score": 83.9, "level": "critical", "minutes_ahead": 6.0,
         "quantile_ahead": 0.5, "incident_probability": 0.7, "current": {"cpu_percent": 40.0, "memory_percent": 91.0},
         "reasons": ["memory 91 % now, likely above 95 % in 6 min (p90 97 %)", "CPU 40 % now", "not shown"]},
        {"server": "web-02", "score": 31.0, "level": "watch", "minutes_ahead": 2.25, "quantile_ahead": 0.9,
         "reasons": ["latency 100 ms now"], "current": {"latency_ms": 1234.5}},
        {"server": "web-03", "score": 29.99, "level": "ok"},
    ],
}  # fmt: skip
ALERTS: dict[str, Any] = {
    "open": [{"severity": "critical", "message": "db-01: memory at 96 %, critical from 95 %",
              "opened_at": "2026-09-21T14:01:05Z", "server": "db-01"}],
    "recent": [],
}  # fmt: skip
FORECASTS: dict[str, Any] = {
    "forecasts": [{"server": "db-01", "metrics": {
        "memory_percent": {"unit": "%", "0.5": [90.0, 95.0, 98.0], "0.9": [92.0, 97.0, 99.4]},
        "latency_ms": {"0.5": [5.0], "0.9": [None]},
    }}],
}  # fmt: skip


def render(screen: RenderableType, width: int = 80) -> str:
    console = Console(width=width, file=io.TextIOWrapper(io.BytesIO(), "utf-8"), highlight=False)
    with console.capture() as capture:
        console.print(screen)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def status(changes: dict[str, Any] | None = None, risks: Any = RISKS, alerts: Any = ALERTS) -> str:
    document = parse_document(StatusResponse, {**STATUS, **(changes or {})})
    return render(
        status_screen(
            "127.0.0.1:8080", document, parse_document(RisksResponse, risks), parse_document(AlertsResponse, alerts)
        ),
        80,
    )


def top_data(**changes: Any) -> TopData:
    forecasts = {forecast.server: forecast for forecast in parse_document(ForecastsResponse, FORECASTS).forecasts}
    document = {"status": STATUS, "risks": RISKS, "alerts": ALERTS, **changes}
    return TopData(
        "127.0.0.1:8080", parse_document(StatusResponse, document["status"]),
        parse_document(RisksResponse, document["risks"]),
        parse_document(AlertsResponse, document["alerts"]), forecasts, document.get("error"),
    )  # fmt: skip


def test_status_screen_healthy_fleet() -> None:
    assert (
        status()
        == """\
fleet      127.0.0.1:8080, forecastd 0.1.0, up 2 d 12 h, since 09-19 02:13Z
health     good

servers    20: 18 ready, 2 warming up
risk       1 critical, 1 warning, 1 watch, 17 ok
           incident now or within 8 min: 93 %, 1.4 servers expected
worst       83 db-01  memory 91 % now, likely above 95 % in 6 min (p90 97 %)
                      CPU 40 % now
            31 web-02 latency 100 ms now

alerts     1 open, 1 critical
critical   db-01: memory at 96 %, critical from 95 %             for 12 min 15 s

tick       every 5 s, the newest 2 s ago
forecast   made 2 s ago in 46 ms, 8 min ahead; 18 by model, 2 by heuristic
model      fleet-demo (ab12cd34ef56), engine auto, needs 12 min of data
rows       864,000 accepted, 3 duplicates
window     34,560 ticks on disk, back to 2 d ago, 41.2 MB
processes  2 idle"""
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"health": {"ok": False, "reasons": ["the ticker has stopped", "x"]}}, "health     the ticker has stopped"),
        ({"health": {"ok": True, "warnings": ["the disk is full"]}}, "warning    the disk is full"),
        ({"synthetic": True}, "           the servers are simulated (--demo)"),
        ({"speed": 10}, "           the clock runs at speed 10: a rehearsal"),
        ({"servers": {"total": 3, "ready": 2, "silent": 1}}, "servers    3: 2 ready, 1 silent"),
        ({"tick": {"newest": -1, "age_seconds": 1e9}}, "tick       no rows received yet"),
        ({"forecast": {}}, "forecast   none yet"),
        ({"forecast": {**STATUS["forecast"], "skipped_ticks": 7, "failures": 1, "last_error": "No child."}},
         "           No child."),
        ({"ingest": {"accepted": 1, "refused": 12, "by_reason": {"future": 10, "unit": 2}}},
         "rows       1 accepted, 12 refused (future 10, unit 2)"),
        ({"window": {"ticks": 5, "damaged": 2, "disk_bytes": 0, "last_error": "Disk full."}},
         "           2 ticks damaged and lost"),
        ({"window": {"ticks": 5, "last_error": "Disk full."}}, "           Disk full."),
        ({"supervision": {"crashes": 1, "replacements": 2, "failovers": 3}},
         "processes  none; 1 crashed, 2 replaced, 3 jobs moved"),
    ],
)  # fmt: skip
def test_status_screen_shows_each_situation(changes: dict[str, Any], line: str) -> None:
    assert line in status(changes).splitlines()


def test_status_screen_new_fleet_is_shown() -> None:
    minimal = {"version": "9", "now": "2026-09-21T14:13:20Z", "step_seconds": 5, "tick": {}, "servers": {}}
    document = parse_document(StatusResponse, minimal)
    text = render(status_screen("x", document, RisksResponse(servers=()), AlertsResponse(open=())))
    assert "risk       0 critical" in text
    assert "alerts     none open" in text
    assert "worst" not in text


def test_status_screen_counts_hidden_alerts() -> None:
    assert "           and 2 more; --json lists them all" in status(alerts={"open": ALERTS["open"] * 7}).splitlines()


def test_top_screen_lists_servers_by_risk() -> None:
    assert (
        render(TopScreen(top_data()))
        == """\
127.0.0.1:8080  20 servers: 18 ready, 2 warming up; forecast 2 s old
1 critical, 1 warning, 1 watch, 17 ok; an incident within 8 min: 93 %

server              risk      ahead CPU %          memory %       latency ms
db-01            83 critical     6m ▄▄▄▄▄▄ 40      ██████ 91→99   ▅▅▅▅▅▅
web-02           31 watch     2.2m?                               ▅▅▅▅▅▅ 1k2
web-03           29 ok
and 17 more at lower risk

1 alert
critical   db-01: memory at 96 %, critical from 95 %             for 12 min 15 s"""
    )


@pytest.mark.parametrize(("minutes", "quantile", "text"), [
    (0.0, None, "now"), (0.25, 0.5, "15s"), (0.25, 0.9, "15s?"), (1.0, 0.5, "1m"), (7.96, 0.9, "8m?"), (123.4, 0.5, "123m"),
])  # fmt: skip
def test_top_screen_time_to_critical(minutes: float, quantile: float | None, text: str) -> None:
    risk = {"server": "a", "score": 50, "level": "watch", "minutes_ahead": minutes, "quantile_ahead": quantile}
    line = render(TopScreen(top_data(risks={"servers": [risk]}))).splitlines()[4]
    assert line.split() == ["a", "50", "watch", text]


def test_top_screen_fits_terminal_width() -> None:
    headers = {width: render(TopScreen(top_data()), width).splitlines()[3] for width in (80, 100, 140)}
    assert "errors %" not in headers[80]
    assert "errors %" in headers[100]
    assert "disk busy %" in headers[140]
    for width in headers:
        assert max(map(len, render(TopScreen(top_data()), width).splitlines())) <= width


def test_top_screen_ascii_terminal_has_no_bars() -> None:
    console = Console(width=80, file=io.TextIOWrapper(io.BytesIO(), "ascii"), highlight=False)
    with console.capture() as capture:
        console.print(TopScreen(top_data()))
    assert capture.get().isascii()
    assert "91>99" in capture.get()
    assert "memory %" in capture.get()


def test_top_screen_error_is_above_old_data() -> None:
    lines = render(TopScreen(top_data(error="Connection refused."))).splitlines()
    assert lines[0] == "           Connection refused. The data below is old."
    unhealthy = {**STATUS, "health": {"ok": False, "reasons": ["the ticker has stopped"]}}
    assert render(TopScreen(top_data(status=unhealthy))).splitlines()[1] == "the ticker has stopped"


def test_top_screen_names_maintenance() -> None:
    risk = {"server": "a", "score": 90, "level": "ok", "status": "maintenance"}
    assert "a                90 maintain" in render(TopScreen(top_data(risks={"servers": [risk]})))


@pytest.mark.parametrize("height", [20, 24, 50])
def test_top_screen_fits_terminal_height(height: int) -> None:
    risks_of_500 = {**RISKS, "summary": {"servers": 500}, "servers": [RISKS["servers"][0]] * server_capacity(height)}
    long = {"open": [{**ALERTS["open"][0], "message": "very long " * 20}] * 50}
    for error in (None, "x" * 100):
        screen = TopScreen(top_data(risks=risks_of_500, alerts=long, error=error), height)
        assert len(render(screen).splitlines()) < height


def test_screens_escape_text_and_fit_80_columns() -> None:
    hostile = "\x1b[2J\x1b]0;title\x07\r\n[bold]" + "x" * 200
    changes = {
        "version": hostile, "health": {"ok": False, "reasons": [hostile], "warnings": [hostile]},
        "model": {**STATUS["model"], "name": hostile, "sha256": hostile, "engine": hostile},
        "forecast": {**STATUS["forecast"], "last_error": hostile}, "window": {"last_error": hostile},
        "ingest": {"refused": 1, "by_reason": {hostile: 1}}, "supervision": {"children": [{"phase": hostile}]},
    }  # fmt: skip
    risks = {"servers": [{"server": hostile, "score": 99, "level": hostile, "status": hostile, "reasons": [hostile]}]}
    alerts = {"open": [{"severity": hostile, "message": hostile, "opened_at": hostile}]}
    for text in (
        status(changes, risks, alerts),
        render(TopScreen(top_data(status={**STATUS, **changes}, risks=risks, alerts=alerts, error=hostile))),
    ):
        assert not re.search(r"[^\n -~…]", text)
        assert "[bold]" in text
        assert max(len(line) for line in text.splitlines()) <= 80


@pytest.mark.parametrize(("series", "top", "text"), [
    ((), 100, ""), ((50.0,), 100, "▅▅▅▅▅▅"), ((0.0,) * 6, 100, "▁▁▁▁▁▁"), ((100.0, 200.0), 100, "██████"),
    ((0.0, 20.0, 40.0, 60.0, 80.0, 100.0), 100, "▁▂▄▅▇█"), (tuple(float(step) for step in range(97)), 96, "▂▃▄▆▇█"),
])  # fmt: skip
def test_format_bars(series: tuple[float, ...], top: float, text: str) -> None:
    assert format_bars(series, top) == text


@pytest.mark.parametrize(("value", "text"), [
    (0, "0"), (0.04, "0.0"), (7.34, "7.3"), (9.96, "10"), (62.4, "62"), (812.0, "812"), (999.6, "1k0"), (1234, "1k2"),
    (12_345, "12k"), (123_456, "123k"), (2_500_000, "2M5"), (1e9, "1G0"),
])  # fmt: skip
def test_format_short(value: float, text: str) -> None:
    assert format_short(value) == text


@pytest.mark.parametrize(("share", "text"), [
    (0, "0 %"), (0.001, "under 1 %"), (0.5, "50 %"), (0.999, "over 99 %"), (1, "100 %"),
])  # fmt: skip
def test_format_probability_never_rounds_to_certain(share: float, text: str) -> None:
    assert format_probability(share) == text
