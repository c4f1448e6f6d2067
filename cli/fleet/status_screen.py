"""The state of a running fleet on one screen of 80 columns, for `fleet status`.

Invariant: an operator reads it at 3 a.m. to decide whether to act. Health and risk come first, and normal values are
short.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.fleet.client import make_client
from cli.rows import LABEL_WIDTH, console, row
from cli.status_screen import format_ago, format_time, printable
from forecastd.clock import from_iso
from forecastd.errors import ExitCode
from forecastd.fleet.documents import (
    AlertsResponse,
    ForecastSummary,
    HealthResponse,
    RisksResponse,
    RiskSummary,
    ServerCounts,
    ServerRisk,
    StatusResponse,
)
from forecastd.runtime.formatting import format_duration
from forecastd.settings import load_valid_settings

LEVEL_STYLES = {"critical": "bold red", "warning": "yellow", "watch": "cyan", "early": "cyan"}
MAX_ROWS = 5  # of alerts and of servers
SERVER_WIDTH = 20  # characters of a server's name


def show_status(options: Mapping[str, Any], url: str | None, api_key: str | None, *, as_json: bool) -> int:
    """Print the state of the fleet at `url`; return the exit code. `options`: overrides of the settings."""
    settings, _ = load_valid_settings(**options)
    client = make_client(settings, url, api_key)
    paths: dict[str, dict[str, str | int]] = {"status": {}, "risk": {"top": MAX_ROWS}, "alerts": {}}
    documents = {name: client.get(f"/{name}", **params) for name, params in paths.items()}
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
    lines: list[RenderableType] = [
        row("fleet", _fleet_text(name, status, now)),
        row("health", _health_text(status.health)),
    ]
    lines += [row("warning", Text(printable(warning), style="yellow")) for warning in status.health.warnings]
    lines += ["", row("servers", servers_text(status.servers)), row("risk", risk_text(risks.summary))]
    lines += list(_incident_rows(risks.summary, status))
    lines += _worst_servers([risk for risk in risks.servers if risk.level != "ok"][:MAX_ROWS])
    lines += ["", *_alert_rows(alerts, now), "", *_service_rows(status, now)]
    return Group(*lines)


def _fleet_text(name: str, status: StatusResponse, now: float) -> Text:
    uptime = "" if status.uptime_seconds is None else f", up {format_duration(status.uptime_seconds)}"
    started = parse_time(status.started_at)
    started_text = "" if started is None else f", since {format_time(started, now)}"
    text = Text(f"{printable(name)}, forecastd {printable(status.version)}{uptime}{started_text}")
    if status.synthetic:
        text.append("\nthe servers are simulated (--demo)", style="yellow")
    if status.speed != 1:
        text.append(f"\nthe clock runs at speed {status.speed:g}: a rehearsal", style="yellow")
    return text


def _health_text(health: HealthResponse) -> Text:
    if health.ok:
        return Text("good", style="green")
    return Text("\n".join(printable(reason) for reason in health.reasons) or "not good", style="bold red")


def servers_text(servers: ServerCounts, name: str = "") -> Text:
    """The number of servers in total and by state. `name` follows the total."""
    text = Text(f"{servers.total}{name}: {servers.ready} ready")
    text.append(f", {servers.warming} warming up" if servers.warming else "")
    text.append(f", {servers.silent} silent" if servers.silent else "", style="yellow")
    return text


def risk_text(summary: RiskSummary) -> Text:
    """The number of servers by risk level, the worst first."""
    text = Text()
    for level in ("critical", "warning", "watch", "ok"):
        number = summary.counts.get(level, 0)
        if number or level == "critical":
            text.append(", " if text else "")
            text.append(f"{number} {level}", style=LEVEL_STYLES.get(level, "") if number else "")
    if summary.maintenance:
        text.append(f", {summary.maintenance} in maintenance")
    return text


def _incident_rows(summary: RiskSummary, status: StatusResponse) -> Iterable[RenderableType]:
    """The probability of an incident within the horizon."""
    if summary.incident_probability is None:
        return
    within = format_duration(status.model.horizon_steps * status.step_seconds)
    text = f"incident now or within {within}: {format_probability(summary.incident_probability)}"
    if summary.expected_incidents is not None:
        text += f", {summary.expected_incidents:.1f} servers expected"
    yield row("", Text(text))


def _worst_servers(risks: Sequence[ServerRisk]) -> list[RenderableType]:
    names = [printable(risk.server) for risk in risks]
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=LABEL_WIDTH, no_wrap=True)
    table.add_column(min_width=3, justify="right", no_wrap=True)
    table.add_column(width=min(SERVER_WIDTH, max(map(len, names), default=0)), no_wrap=True, overflow="ellipsis")
    table.add_column(ratio=1, overflow="fold")
    for index, (name, risk) in enumerate(zip(names, risks, strict=True)):
        reasons = Text("\n".join(printable(reason) for reason in risk.reasons[:2]))
        score = Text(str(int(risk.score)), style=LEVEL_STYLES.get(risk.level, ""))
        table.add_row("" if index else "worst", score, name, reasons)
    return [table] if table.row_count else []


def _alert_rows(alerts: AlertsResponse, now: float) -> Iterable[RenderableType]:
    critical = sum(alert.severity == "critical" for alert in alerts.open)
    text = Text(f"{len(alerts.open)} open" if alerts.open else "none open")
    text.append(f", {critical} critical" if critical else "", style=LEVEL_STYLES["critical"])
    yield row("alerts", text)
    yield from alert_lines(alerts, now, MAX_ROWS)
    if len(alerts.open) > MAX_ROWS:
        yield row("", Text(f"and {len(alerts.open) - MAX_ROWS} more; --json lists them all"))


def alert_lines(alerts: AlertsResponse, now: float, limit: int, *, wrap: bool = True) -> Iterable[RenderableType]:
    """The most severe alerts, one row each: severity, message and age. Without `wrap` each is cut off at the width."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=LABEL_WIDTH, no_wrap=True)
    table.add_column(ratio=1, overflow="fold" if wrap else "ellipsis", no_wrap=not wrap)
    table.add_column(justify="right", no_wrap=True)
    for alert in alerts.open[:limit]:
        opened = parse_time(alert.opened_at)
        age = "" if opened is None else f"for {format_duration(now - opened)}"
        table.add_row(
            Text(printable(alert.severity), style=LEVEL_STYLES.get(alert.severity, "")), printable(alert.message), age
        )
    if table.row_count:
        yield table


def _service_rows(status: StatusResponse, now: float) -> Iterable[RenderableType]:
    """The state of the service itself: tick, forecast, model, rows, window and processes."""
    yield row("tick", _tick_text(status))
    yield row("forecast", _forecast_text(status.forecast, status))
    model, step = status.model, status.step_seconds
    if model.name:
        minimum = ""
        if model.encoder_minimum is not None:
            minimum = f", needs {format_duration(model.encoder_minimum * step)} of data"
        text = f"{printable(model.name)} ({printable(model.sha256[:12])}), engine {printable(model.engine)}{minimum}"
        yield row("model", Text(text))
    yield row("rows", _rows_text(status))
    yield row("window", _window_text(status, now))
    yield row("processes", _processes_text(status))


def _tick_text(status: StatusResponse) -> Text:
    if status.tick.newest < 0 or status.tick.age_seconds is None:
        return Text("no rows received yet", style="yellow")
    age, step = status.tick.age_seconds, status.step_seconds
    text = f"every {step} s, the newest {format_duration(max(age, 0))} ago"
    return Text(text, style="yellow" if age > 6 * step else "")


def _forecast_text(forecast: ForecastSummary, status: StatusResponse) -> Text:
    text = Text()
    if forecast.made_at is None or forecast.age_seconds is None:
        text.append("none yet", style="yellow")
    else:
        duration = "" if forecast.seconds is None else f" in {1000 * forecast.seconds:.0f} ms"
        horizon = format_duration(status.model.horizon_steps * status.step_seconds)
        old = forecast.age_seconds > 6 * status.step_seconds * max(status.speed, 1)
        age = format_duration(forecast.age_seconds)
        text.append(f"made {age} ago{duration}, {horizon} ahead", style="yellow" if old else "")
        text.append(f"; {forecast.tft} by model, {forecast.heuristic} by heuristic")
    if forecast.skipped_ticks:
        ticks = "tick" if forecast.skipped_ticks == 1 else "ticks"
        text.append(f", {forecast.skipped_ticks} {ticks} skipped", style="yellow")
    text.append(f", {forecast.failures} failed" if forecast.failures else "", style="yellow")
    if forecast.last_error:
        text.append(f"\n{printable(forecast.last_error)}", style="yellow")
    return text


def _rows_text(status: StatusResponse) -> Text:
    ingest = status.ingest
    text = Text(f"{ingest.accepted:,} accepted")
    text.append(f", {ingest.duplicates:,} duplicates" if ingest.duplicates else "")
    if ingest.refused:
        worst = sorted(ingest.by_reason.items(), key=lambda item: -item[1])[:3]
        reasons = ", ".join(f"{printable(name)} {number:,}" for name, number in worst)
        text.append(f", {ingest.refused:,} refused{f' ({reasons})' if reasons else ''}", style="yellow")
    return text


def _window_text(status: StatusResponse, now: float) -> Text:
    window, oldest = status.window, parse_time(status.window.oldest)
    since_text = "" if oldest is None else f", back to {format_ago(oldest, now)}"
    text = Text(f"{window.ticks:,} ticks on disk{since_text}, {window.disk_bytes / 1e6:,.1f} MB")
    if window.damaged:
        text.append(f"\n{window.damaged} {'tick' if window.damaged == 1 else 'ticks'} damaged and lost", style="yellow")
    if window.last_error:
        text.append(f"\n{printable(window.last_error)}", style="bold red")
    return text


def _processes_text(status: StatusResponse) -> Text:
    supervision = status.supervision
    phases = [printable(str(child.get("phase", "running"))).replace("_", " ") for child in supervision.children]
    text = Text(", ".join(f"{phases.count(phase)} {phase}" for phase in dict.fromkeys(phases)) or "none")
    moved = "job moved" if supervision.failovers == 1 else "jobs moved"
    counts = ((supervision.crashes, "crashed"), (supervision.replacements, "replaced"), (supervision.failovers, moved))
    summary = ", ".join(f"{number} {label}" for number, label in counts if number)
    text.append(f"; {summary}" if summary else "", style="yellow")
    return text


def parse_time(text: str | None) -> float | None:
    """The unix seconds of an ISO time in a response; None when it is invalid."""
    try:
        return None if text is None else from_iso(text)
    except (ValueError, OverflowError):
        return None


def format_probability(share: float) -> str:
    """A probability in percent: never 0 % or 100 % unless it is exact."""
    if 0 < share < 0.01:
        return "under 1 %"
    return "over 99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"
