"""The names and numbers in the pages of the fleet are those of the program, in both directions.

Tables are compared by their names and numbers; the wording of the pages is free.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from cli.fleet import COMMANDS, train
from cli.manifest import FLEET_LABELS
from forecastd.fleet import status as fleet_status
from forecastd.fleet.api import context, forecast_routes, history_routes, http_server, listener
from forecastd.fleet.api.app import create_app
from forecastd.fleet.api.keys import ApiKeys
from forecastd.fleet.api.metrics_routes import FleetCollector, RequestMetrics
from forecastd.fleet.conditions.alert import SEVERITIES, EventKind
from forecastd.fleet.conditions.alert_tracker import CLEAR_TICKS, MAX_RECENT_EVENTS, OPEN_TICKS
from forecastd.fleet.conditions.notifier import AGGREGATE_ABOVE, AGGREGATE_UNTIL, FLEET_KIND, SERVER_KIND
from forecastd.fleet.conditions.rules import HYSTERESIS
from forecastd.fleet.contract import MAX_REASONS, METRIC_NAMES, METRICS, UNIT_FACTORS
from forecastd.fleet.documents import (
    RISK_LEVELS,
    ForecastSummary,
    IngestCounters,
    NewestTick,
    RiskSummary,
    ServerCounts,
    StatusResponse,
    SupervisionSummary,
)
from forecastd.fleet.fleet import Fleet
from forecastd.fleet.ingest import record
from forecastd.fleet.ingest.feed import filter_by_time, parse_feed
from forecastd.fleet.risk.assessment import LEVEL_MIN_SCORES
from forecastd.fleet.risk.current_values import MAX_CARRY_TICKS, SILENT_CRITICAL_TICKS, SILENT_WARNING_TICKS
from forecastd.fleet.risk.thresholds import BUILTIN_FILE, DEFAULT, read_thresholds_file
from forecastd.fleet.simulator import SCENARIOS
from forecastd.fleet.simulator.feeds import BAD_ROW_KINDS, DUPLICATE
from forecastd.fleet.status import STALE_SECONDS, STALE_TICKS
from forecastd.fleet.tick_evaluator import STATE_NAMES
from forecastd.fleet.window.readiness import MAX_GAP
from forecastd.settings import DEFAULTS, FleetEngine, load_settings
from forecastd.supervise.events import SupervisionCounts
from forecastd.testing import ManualClock
from tests.support.pages import read_blocks, table_rows

PAGES = ("fleet", "fleet-feed", "fleet-api", "fleet-models", "fleet-alerts")
STEP, NOW = 5, 1_769_860_800
FRAMEWORK_CODES = {"304", "405", "500"}  # statuses that no route declares
NOTICES = {"unknown_metric", "superseded"}  # codes that do not refuse a row


@pytest.fixture(scope="module")
def pages(root: Path) -> dict[str, str]:
    return {name: (root / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in PAGES}


@pytest.fixture(scope="module")
def app() -> FastAPI:
    """The API of a fleet that does not run: enough for its routes."""
    fleet = SimpleNamespace(settings=load_settings(), clock=ManualClock())
    return create_app(cast(Fleet, fleet), ApiKeys())


def section(page: str, heading: str) -> str:
    """The text below a heading, up to the next one of the same or a higher level."""
    marks = heading.partition(" ")[0]
    body = page.partition(f"\n{heading}\n")[2]
    assert body, heading
    return re.split(rf"^#{{1,{len(marks)}}} ", body, maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(text: str, pattern: str = r"[a-z_]+") -> set[str]:
    return {cells[0] for cells in table_rows(text, pattern)}


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?", text)]


# The feed


def test_feed_page_lists_every_metric_with_its_unit(pages: dict[str, str]) -> None:
    rows = table_rows(section(pages["fleet-feed"], "## Metrics"), r"[a-z_]+_[a-z_]+|cpu_percent")
    assert [tuple(cells[:2]) for cells in rows] == [(metric.name, metric.unit) for metric in METRICS]


def test_feed_page_lists_every_spelling_of_a_unit(pages: dict[str, str]) -> None:
    rows = table_rows(section(pages["fleet-feed"], "## Units"), r"\S+")
    assert {cells[0]: set(cells[1].split()) for cells in rows if cells[0] != "---"} == {
        unit: set(spellings) for unit, spellings in UNIT_FACTORS.items()
    }


def test_feed_page_lists_every_code(pages: dict[str, str]) -> None:
    codes = set(re.findall(r'InvalidRecord\(\s*"(\w+)"', inspect.getsource(record))) | set(record.REQUIREMENTS)
    codes |= {code for code, _ in BAD_ROW_KINDS.values()} - {DUPLICATE}
    text = section(pages["fleet-feed"], "## Refused rows")
    assert first_cells(text) - {"code"} == codes | {"too_many_servers"} | NOTICES


def test_feed_page_states_gap_of_readiness(pages: dict[str, str]) -> None:
    text = section(pages["fleet-feed"], "## When a server is ready")
    assert f" {MAX_GAP} ticks" in dict(cells[:2] for cells in table_rows(text, r"[a-z]+"))["silent"]
    assert first_cells(text) - {"state"} == {"warming", *STATE_NAMES.values()}


def test_example_feeds_are_accepted(root: Path) -> None:
    accepted = []
    for block in read_blocks(root / "docs" / "fleet-feed.md"):
        text = block.text.replace("'$(date +%s)'", str(NOW))
        for body in (
            re.findall(r"'(\{.*?\})'", text, flags=re.DOTALL) if "/feed" in text and "printf" not in text else ()
        ):
            is_json = '"records"' in body
            parsed = parse_feed(body.encode(), "application/json" if is_json else "application/x-ndjson", step=STEP)
            rows = filter_by_time(parsed.rows, parsed.refusals, now=NOW, step=STEP, retained_ticks=300, max_skew=30.0)
            assert not parsed.unknown_metrics
            accepted.append((len(rows), dict(parsed.refusals.counts)))
    assert accepted == [(1, {"unit": 1}), (1, {})]


def test_example_response_agrees_with_example_feed(root: Path) -> None:
    blocks = [block.text for block in read_blocks(root / "docs" / "fleet-feed.md") if block.language == "json"]
    response = next(json.loads(text) for text in blocks if '"accepted"' in text)
    assert (response["accepted"], response["refused"], response["counts"]) == (1, 1, {"unit": 1})
    units = next(json.loads(text) for text in blocks if '"units"' in text and '"records"' in text)["units"]
    declared = {metric.name: metric.unit for metric in METRICS}
    assert all(unit in UNIT_FACTORS[declared[name]] for name, unit in units.items())


def test_agent_sends_metrics_of_the_contract(root: Path) -> None:
    script = next(b.text for b in read_blocks(root / "docs" / "fleet-feed.md") if b.text.startswith("#!/bin/sh"))
    names = re.findall(r'\\"(\w+)\\":', script)
    assert names
    assert set(names) <= set(METRIC_NAMES)


# The API


def test_api_page_lists_every_route_with_its_parameters(pages: dict[str, str], app: FastAPI) -> None:
    rows = table_rows(section(pages["fleet-api"], "## Routes"), r"(GET|POST) .*")
    listed = {route: set(re.findall(r"\w+", cells[1])) for cells in rows for route in cells[0].split(", ")}
    routes = {
        f"{method.upper()} {path}": {p["name"] for p in operation.get("parameters", ()) if p["in"] == "query"}
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
    }
    assert listed == routes | {"GET /docs": set(), "GET /openapi.json": set()}


def test_api_page_lists_every_status_code(pages: dict[str, str], app: FastAPI) -> None:
    operations = [operation for path in app.openapi()["paths"].values() for operation in path.values()]
    statuses = {status for operation in operations for status in operation["responses"]}
    assert first_cells(section(pages["fleet-api"], "## Status codes"), r"\d{3}") == statuses | FRAMEWORK_CODES


def test_api_page_states_limits_of_the_program(pages: dict[str, str]) -> None:
    settings = load_settings()
    rows = table_rows(section(pages["fleet-api"], "## Limits"), r".*")
    assert [numbers(cells[1])[0] for cells in rows if numbers(cells[1])] == [
        settings.fleet.max_body_mb,
        context.BODY_TIMEOUT_SECONDS,
        context.MAX_CONCURRENT_BODIES,
        settings.fleet.rate_limit,
        settings.fleet.max_servers,
        listener.MAX_CONNECTIONS,
        http_server.HEADER_BYTES >> 10,
        listener.IDLE_SECONDS,
        listener.READER_SECONDS,
        history_routes.MAX_ROWS,
        history_routes.MAX_SERVERS,
        forecast_routes.MAX_LEVELS,
        MAX_REASONS,
    ]


def exposed_metrics(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """The name of every metric at the fleet's `/metrics`, with its labels."""
    counts = SupervisionCounts().as_json() | {"hangs": ({"phase": "loading", "count": 1},), "jobs": {"done": 1}}
    document = StatusResponse(
        version="1", now="2026-01-31T12:00:00Z", step_seconds=STEP, tick=NewestTick(1, None, 1.0),
        forecast=ForecastSummary(age_seconds=1.0, seconds=1.0), servers=ServerCounts(),
        ingest=IngestCounters(by_reason={"unit": 1}), risk=RiskSummary(counts={"ok": 1}),
        supervision=SupervisionSummary(**cast(dict[str, Any], counts)),
    )  # fmt: skip
    monkeypatch.setattr(fleet_status, "status_document", lambda _: document)
    registry = CollectorRegistry()
    registry.register(FleetCollector(cast(Fleet, SimpleNamespace())))
    scope: dict[str, Any] = {"method": "GET", "route": SimpleNamespace(path="/status")}
    RequestMetrics(registry).record(scope, 200, 0.1)
    return {
        family.name + ("_total" if family.type == "counter" else ""): set(family.samples[0].labels) - {"le"}
        for family in registry.collect()
    }


def test_api_page_lists_every_metric(pages: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    exposed = exposed_metrics(monkeypatch)
    rows = table_rows(section(pages["fleet-api"], "## Metrics"), r"forecastd_\w+")
    assert {cells[0]: set(re.findall(r"\w+", cells[1])) for cells in rows} == exposed
    named = {name for page in pages.values() for name in re.findall(r"forecastd_fleet_\w+", page)}
    assert named - set(exposed) == set()


def test_pages_name_only_settings_of_the_fleet_and_all_of_them(pages: dict[str, str]) -> None:
    named = {name for page in pages.values() for name in re.findall(r"\bFLEET_[A-Z_]+[A-Z]", page)}
    assert named == {name for name in DEFAULTS if name.startswith("FLEET_")}


# Risk and alerts


def test_alerts_page_has_the_built_in_thresholds(pages: dict[str, str]) -> None:
    lines = section(pages["fleet-alerts"], "## Thresholds")
    profiles = table_rows(lines, "metric")[0][1:]
    builtin = read_thresholds_file(BUILTIN_FILE)
    assert profiles == ["default", *(name for name in builtin if name != DEFAULT)]
    listed = {
        (cells[0], profile): tuple(numbers(cell))
        for cells in table_rows(lines, "|".join(METRIC_NAMES))
        for profile, cell in zip(profiles, cells[1:], strict=True)
        if cell
    }
    assert listed == {
        (metric, profile or "default"): (limits.warning, limits.critical)
        for profile, table in builtin.items()
        for metric, limits in table.items()
    }


def test_alerts_page_states_levels(pages: dict[str, str]) -> None:
    rows = table_rows(section(pages["fleet-alerts"], "## Risk"), "|".join(RISK_LEVELS))
    assert {cells[0]: float(cells[1]) for cells in rows} == {"ok": 0.0, **LEVEL_MIN_SCORES}
    ticks = {cells[0]: re.findall(r"(\d+) ticks", cells[2]) for cells in rows}
    assert (ticks["warning"], ticks["critical"]) == ([str(SILENT_WARNING_TICKS)], [str(SILENT_CRITICAL_TICKS)])
    (current,) = table_rows(pages["fleet-alerts"], "current")
    assert numbers(current[1]) == [MAX_CARRY_TICKS]


def test_alerts_page_states_when_alerts_open_and_clear(pages: dict[str, str]) -> None:
    text = section(pages["fleet-alerts"], "## Alerts")
    assert float(MAX_RECENT_EVENTS) in numbers(text)
    rows = {cells[0]: cells for cells in table_rows(text, r"[a-z]+(, [a-z]+)?")}
    assert list(rows) == ["severity", *SEVERITIES, "event", "opened", "escalated, eased", "cleared"]
    assert {kind for name in ("opened", "escalated, eased", "cleared") for kind in name.split(", ")} == set(
        get_args(EventKind)
    )
    assert numbers(rows["opened"][1]) == [OPEN_TICKS]
    assert numbers(rows["escalated, eased"][1]) == [OPEN_TICKS, CLEAR_TICKS]
    assert numbers(rows["cleared"][1]) == [CLEAR_TICKS]
    assert numbers(rows["cleared"][2]) == [100 * HYSTERESIS]
    assert numbers(rows["warning"][1]) == [SILENT_WARNING_TICKS]
    assert numbers(rows["critical"][1]) == [SILENT_CRITICAL_TICKS]


def test_alerts_page_lists_the_kinds_of_messages(pages: dict[str, str]) -> None:
    text = section(pages["fleet-alerts"], "## Messages to a person")
    rows = {cells[0]: cells for cells in table_rows(text, r"\w+_\w+")}
    assert set(rows) == {SERVER_KIND, FLEET_KIND}
    assert [numbers(cell) for cell in rows[FLEET_KIND][2:]] == [[AGGREGATE_ABOVE], [AGGREGATE_UNTIL]]
    message = next(json.loads(text) for text in re.findall(r"```json\n(.*?)```", text, flags=re.DOTALL))
    assert message["kind"] in rows


# Running, and models


def test_fleet_page_lists_scenarios_and_commands(pages: dict[str, str]) -> None:
    text = section(pages["fleet"], "## Simulate servers")
    assert first_cells(text) - {"option", "scenario"} == set(SCENARIOS)
    assert [name for name in COMMANDS if not any(f"fleet {name}" in page for page in pages.values())] == []


def test_fleet_page_states_when_a_forecast_is_stale(pages: dict[str, str]) -> None:
    rows = [cells[0] for cells in table_rows(section(pages["fleet"], "## Health"), r".*\d.*")]
    assert [numbers(text) for text in rows] == [[STALE_TICKS, STALE_SECONDS]]


def test_models_page_lists_engines(pages: dict[str, str]) -> None:
    assert first_cells(section(pages["fleet-models"], "## Engines")) - {"engine"} == set(get_args(FleetEngine))


def test_models_page_names_baselines_of_the_score_table(pages: dict[str, str]) -> None:
    rows = first_cells(section(pages["fleet-models"], "## Read the scores"), "|".join(FLEET_LABELS.values()))
    assert rows == set(FLEET_LABELS.values())


def test_models_page_lists_every_option_of_train_with_its_default(pages: dict[str, str]) -> None:
    listed = {
        option: numbers(cells[1])
        for cells in table_rows(section(pages["fleet-models"], "### All options"), r"--[a-z].*")
        for option in cells[0].split(", ")
    }
    defaults = {}
    for parameter in train.command.params:
        default = parameter.to_info_dict()["default"]
        is_number = isinstance(default, int | float) and not isinstance(default, bool)
        defaults[parameter.opts[0]] = [default] if is_number else numbers(default) if isinstance(default, str) else []
    assert listed == defaults
