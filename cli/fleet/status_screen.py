"""The state of a running fleet on one screen of 80 columns, for `fleet status`.

Invariant: an operator reads it at 3 a.m. to decide whether to act. Health and risk come first, and normal values are
short.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.fleet.client import make_client
from cli.fleet.rows import (
    LEVEL_STYLES,
    alert_table,
    counted,
    format_probability,
    horizon_text,
    parse_time,
    risk_text,
    servers_text,
)
from cli.rows import LABEL_WIDTH, console, row
from cli.status_screen import format_ago, format_time, printable
from forecastd.errors import ExitCode
from forecastd.fleet.documents import (
    AlertsResponse,
    HealthResponse,
    IngestCounters,
    RisksResponse,
    RiskSummary,
    ServerRisk,
    StatusResponse,
    StoredWindow,
    SupervisionSummary,
)
from forecastd.runtime.formatting import format_count, format_duration
from forecastd.settings import load_valid_settings

MAX_ROWS = 5  # of alerts and of servers
MAX_REASONS = 3  # of refused rows
STALE_TICKS = 6  # an older tick or forecast is highlighted
SERVER_WIDTH = 20  # characters of a server's name


def show_status(options: Mapping[str, Any], url: str | None, api_key: str | None, *, as_json: bool) -> int:
    """Print the state of the fleet at `url`; return the exit code. `options`: overrides of the settings."""
    settings, _ = load_valid_settings(**options)
    client = make_client(settings, url, api_key)
    documents = {
        "status": client.get("/status"),
        "risk": client.get("/risk", top=MAX_ROWS),
        "alerts": client.get("/alerts"),
    }
    status = client.parse(StatusResponse, "/status", documents["status"])
    code = ExitCode.SUCCESS if status.health.ok else ExitCode.TEMPORARY
    if as_json:
        click.echo(json.dumps({**documents, "exit_code": code}))
        return code
    risks = client.parse(RisksResponse, "/risk", documents["risk"])
    alerts = client.parse(AlertsResponse, "/alerts", documents["alerts"])
    console().print(status_screen(client.name, status, risks, alerts))
    return code


def status_screen(name: str, status: StatusResponse, risks: RisksResponse, alerts: AlertsResponse) -> RenderableType:
    """The screen for the fleet at the address `name`."""
    now = parse_time(status.now) or 0.0
    return Group(
        row("fleet", _fleet_text(name, status, now)),
        row("health", _health_text(status.health)),
        *(row("warning", Text(printable(warning), "yellow")) for warning in status.health.warnings),
        "",
        row("servers", servers_text(status.servers)),
        row("risk", risk_text(risks.summary)),
        *_incident_rows(risks.summary, status),
        *_worst_servers([risk for risk in risks.servers if risk.level != "ok"][:MAX_ROWS]),
        "",
        *_alert_rows(alerts, now),
        "",
        row("tick", _tick_text(status)),
        row("forecast", _forecast_text(status)),
        *_model_rows(status),
        row("rows", _rows_text(status.ingest)),
        row("window", _window_text(status.window, now)),
        row("processes", _processes_text(status.supervision)),
    )


def _fleet_text(name: str, status: StatusResponse, now: float) -> Text:
    started = parse_time(status.started_at)
    return Text.assemble(
        f"{printable(name)}, forecastd {printable(status.version)}",
        "" if status.uptime_seconds is None else f", up {format_duration(status.uptime_seconds)}",
        "" if started is None else f", since {format_time(started, now)}",
        ("\nthe servers are simulated (--demo)" if status.synthetic else "", "yellow"),
        (f"\nthe clock runs at speed {status.speed:g}: a rehearsal" if status.speed != 1 else "", "yellow"),
    )


def _health_text(health: HealthResponse) -> Text:
    if health.ok:
        return Text("good", "green")
    return Text("\n".join(map(printable, health.reasons)) or "not good", "bold red")


def _incident_rows(summary: RiskSummary, status: StatusResponse) -> Iterator[RenderableType]:
    """The probability of an incident within the horizon."""
    if summary.incident_probability is not None:
        text = f"incident now or within {horizon_text(status)}: {format_probability(summary.incident_probability)}"
        if summary.expected_incidents is not None:
            text += f", {summary.expected_incidents:.1f} servers expected"
        yield row("", Text(text))


def _worst_servers(risks: Sequence[ServerRisk]) -> Iterator[RenderableType]:
    if not risks:
        return
    names = [printable(risk.server) for risk in risks]
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=LABEL_WIDTH, no_wrap=True)
    table.add_column(min_width=3, justify="right", no_wrap=True)
    table.add_column(width=min(SERVER_WIDTH, max(map(len, names))), no_wrap=True, overflow="ellipsis")
    table.add_column(ratio=1, overflow="fold")
    for index, (name, risk) in enumerate(zip(names, risks, strict=True)):
        reasons = Text("\n".join(map(printable, risk.reasons[:2])))
        score = Text(str(int(risk.score)), LEVEL_STYLES.get(risk.level, ""))
        table.add_row("" if index else "worst", score, name, reasons)
    yield table


def _alert_rows(alerts: AlertsResponse, now: float) -> Iterator[RenderableType]:
    critical = sum(alert.severity == "critical" for alert in alerts.open)
    yield row("alerts", Text.assemble(f"{len(alerts.open) or 'none'} open", counted(critical, "critical", "bold red")))
    if alerts.open:
        yield alert_table(alerts, now, MAX_ROWS)
    if len(alerts.open) > MAX_ROWS:
        yield row("", Text(f"and {len(alerts.open) - MAX_ROWS} more; --json lists them all"))


def _tick_text(status: StatusResponse) -> Text:
    age, step = status.tick.age_seconds, status.step_seconds
    if status.tick.newest < 0 or age is None:
        return Text("no rows received yet", "yellow")
    style = "yellow" if age > STALE_TICKS * step else ""
    return Text(f"every {step} s, the newest {format_duration(age)} ago", style)


def _forecast_text(status: StatusResponse) -> Text:
    forecast, age = status.forecast, status.forecast.age_seconds
    if forecast.made_at is None or age is None:
        newest = Text("none yet", "yellow")
    else:
        style = "yellow" if age > STALE_TICKS * status.step_seconds * max(status.speed, 1) else ""
        duration = "" if forecast.seconds is None else f" in {1000 * forecast.seconds:.0f} ms"
        newest = Text.assemble(
            (f"made {format_duration(age)} ago{duration}, {horizon_text(status)} ahead", style),
            f"; {forecast.tft} by model, {forecast.heuristic} by heuristic",
        )
    skipped = "tick skipped" if forecast.skipped_ticks == 1 else "ticks skipped"
    return Text.assemble(
        newest,
        counted(forecast.skipped_ticks, skipped, "yellow"),
        counted(forecast.failures, "failed", "yellow"),
        (f"\n{printable(forecast.last_error)}" if forecast.last_error else "", "yellow"),
    )


def _model_rows(status: StatusResponse) -> Iterator[RenderableType]:
    model, minimum = status.model, status.model.encoder_minimum
    if model.name:
        needs = "" if minimum is None else f", needs {format_duration(minimum * status.step_seconds)} of data"
        identity = f"{printable(model.name)} ({printable(model.sha256[:12])})"
        yield row("model", Text(f"{identity}, engine {printable(model.engine)}{needs}"))


def _rows_text(ingest: IngestCounters) -> Text:
    worst = sorted(ingest.by_reason.items(), key=lambda item: -item[1])[:MAX_REASONS]
    reasons = ", ".join(f"{printable(name)} {number:,}" for name, number in worst)
    return Text.assemble(
        f"{ingest.accepted:,} accepted",
        counted(ingest.duplicates, "duplicates"),
        counted(ingest.refused, f"refused ({reasons})" if reasons else "refused", "yellow"),
    )


def _window_text(window: StoredWindow, now: float) -> Text:
    oldest = parse_time(window.oldest)
    since = "" if oldest is None else f", back to {format_ago(oldest, now)}"
    damaged = f"\n{format_count(window.damaged, 'tick')} damaged and lost" if window.damaged else ""
    return Text.assemble(
        f"{window.ticks:,} ticks on disk{since}, {window.disk_bytes / 1e6:,.1f} MB",
        (damaged, "yellow"),
        (f"\n{printable(window.last_error)}" if window.last_error else "", "bold red"),
    )


def _processes_text(supervision: SupervisionSummary) -> Text:
    phases = [printable(str(child.get("phase", "running"))).replace("_", " ") for child in supervision.children]
    running = ", ".join(f"{phases.count(phase)} {phase}" for phase in dict.fromkeys(phases)) or "none"
    moved = "job moved" if supervision.failovers == 1 else "jobs moved"
    counts = ((supervision.crashes, "crashed"), (supervision.replacements, "replaced"), (supervision.failovers, moved))
    summary = ", ".join(f"{number} {label}" for number, label in counts if number)
    return Text.assemble(running, (f"; {summary}" if summary else "", "yellow"))
