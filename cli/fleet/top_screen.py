"""The servers at most risk, one row each, with the main metrics now and ahead, for `fleet top`.

The bars of a cell start with the current value and continue with the p50 to the end of the horizon; the current value
and the highest p90 ahead follow. The number of metrics depends on the width of the terminal, but is at least three.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from threading import Event
from typing import Any

from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from cli.fleet.client import make_client
from cli.fleet.rows import (
    LEVEL_STYLES,
    alert_table,
    format_probability,
    horizon_text,
    parse_time,
    risk_text,
    servers_text,
)
from cli.live import show_live
from cli.rows import console, row
from cli.signals import single_interrupt
from cli.status_screen import printable
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.fleet.client import FleetClient
from forecastd.fleet.documents import (
    AlertsResponse,
    ForecastsResponse,
    RisksResponse,
    ServerForecastResponse,
    ServerRisk,
    StatusResponse,
)
from forecastd.fleet.formatting import format_number
from forecastd.runtime.formatting import format_count, format_duration
from forecastd.settings import load_valid_settings

METRICS: Mapping[str, str] = {
    "cpu_percent": "CPU %",
    "memory_percent": "memory %",
    "latency_ms": "latency ms",
    "error_percent": "errors %",
    "disk_percent": "disk %",
    "disk_busy_percent": "disk busy %",
    "requests_per_s": "requests/s",
}
LIKELY_LEVEL = 0.5  # the quantile of a likely crossing; a higher one is a possible crossing
BAR_COUNT, BLOCKS = 6, "▁▂▃▄▅▆▇█"
SERVER_WIDTH, SCORE_WIDTH, LEVEL_WIDTH, AHEAD_WIDTH, VALUES_WIDTH = 15, 3, 8, 6, 7  # columns of text
HEADER_WIDTH = max(map(len, METRICS.values()))
MIN_METRICS = 3
MAX_ALERTS = 6
FIXED_LINES = 8  # lines that are neither servers nor alerts
ERROR_LINES = 3  # lines of an error message
DEFAULT_SERVERS = 20  # without a terminal


def show_top(
    options: Mapping[str, Any], url: str | None, api_key: str | None, *, servers: int | None, interval: float | None
) -> None:
    """Show the servers at most risk of the fleet at `url`, every `interval` seconds until Ctrl-C; None: once.

    `options`: overrides of the settings. Raises as `FleetClient.get` does when the first screen cannot be shown.
    """
    settings, _ = load_valid_settings(**options)
    monitor = TopMonitor(make_client(settings, url, api_key), servers)
    with single_interrupt():
        if interval is None:
            console().print(monitor.screen())
        else:
            show_live(monitor.screen, Event(), interval)


@dataclass(frozen=True)
class TopData:
    """The data of one screen. `error`: why there is no newer data; None when it is new."""

    name: str
    status: StatusResponse
    risks: RisksResponse
    alerts: AlertsResponse
    forecasts: Mapping[str, ServerForecastResponse]
    error: str | None = None


def server_capacity(height: int | None) -> int:
    """The number of servers that fit into a terminal of this height with some alerts below. None: no terminal."""
    return DEFAULT_SERVERS if height is None else max(3, height - FIXED_LINES - MAX_ALERTS)


class TopMonitor:
    """Reads one service repeatedly. `servers`: the number of servers; None for as many as fit."""

    def __init__(self, client: FleetClient, servers: int | None) -> None:
        self._client, self._servers = client, servers
        self._last_data: TopData | None = None

    def screen(self) -> RenderableType:
        """The newest screen, or the last data with the error that prevents a newer one.

        Raises as `FleetClient.get` does while there is no data.
        """
        terminal = console()
        height = terminal.height if terminal.is_terminal else None
        try:
            self._last_data = self._fetch(height)
        except (RetryLater, NeedsHuman) as error:
            if self._last_data is None:
                raise
            return TopScreen(replace(self._last_data, error=str(error)), height)
        return TopScreen(self._last_data, height)

    def _fetch(self, height: int | None) -> TopData:
        client = self._client
        status = client.fetch(StatusResponse, "/status")
        risks = client.fetch(RisksResponse, "/risk", top=self._servers or server_capacity(height))
        alerts = client.fetch(AlertsResponse, "/alerts")
        return TopData(client.name, status, risks, alerts, self._forecasts(risks))

    def _forecasts(self, risks: RisksResponse) -> dict[str, ServerForecastResponse]:
        """The forecasts of these servers; empty while there is none, or while one of the servers is being removed."""
        if not risks.servers:
            return {}
        names = ",".join(risk.server for risk in risks.servers)
        try:
            response = self._client.fetch(
                ForecastsResponse, "/forecast", servers=names, metrics=",".join(METRICS), levels="0.5,0.9"
            )
        except (RetryLater, NeedsHuman):
            return {}
        return {forecast.server: forecast for forecast in response.forecasts}


class TopScreen:
    """One screen, as wide as the terminal. `height`: that of the terminal; None without one."""

    def __init__(self, data: TopData, height: int | None = None) -> None:
        self._data, self._height = data, height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        data = self._data
        if data.error is not None:
            yield row("", Text(f"{printable(data.error)} The data below is old.", "bold red"))
        yield from _header(data)
        yield ""
        yield _server_table(data, options.max_width, ascii_only=options.ascii_only)
        remaining = data.risks.summary.servers - len(data.risks.servers)
        if remaining > 0:
            yield Text(f"and {remaining} more at lower risk", "dim")
        yield ""
        yield from self._alerts()

    def _alerts(self) -> Iterator[RenderableType]:
        alerts, now = self._data.alerts, parse_time(self._data.status.now) or 0.0
        if not alerts.open:
            yield Text("no alerts")
            return
        used_lines = FIXED_LINES + len(self._data.risks.servers) + (ERROR_LINES if self._data.error else 0)
        free_lines = MAX_ALERTS if self._height is None else max(1, self._height - used_lines)
        shown = min(free_lines, len(alerts.open))
        count_text = format_count(len(alerts.open), "alert")
        yield Text(count_text if shown == len(alerts.open) else f"{shown} of {count_text}")
        yield alert_table(alerts, now, shown, wrap=self._height is None)


def _header(data: TopData) -> Iterator[RenderableType]:
    """The fleet in two lines."""
    status, summary, age = data.status, data.risks.summary, data.status.forecast.age_seconds
    yield Text.assemble(
        (f"{printable(data.name)}  ", "bold"),
        servers_text(status.servers, " servers"),
        ("; no forecast yet", "yellow") if age is None else f"; forecast {format_duration(age)} old",
    )
    if not status.health.ok:
        yield Text(" ".join(map(printable, status.health.reasons)) or "not healthy", "bold red")
        return
    incident = ""
    if summary.incident_probability is not None:
        incident = f"; an incident within {horizon_text(status)}: {format_probability(summary.incident_probability)}"
    yield Text.assemble(risk_text(summary), incident)


def _server_table(data: TopData, width: int, *, ascii_only: bool) -> Table:
    cell_width = HEADER_WIDTH if ascii_only else BAR_COUNT + 1 + VALUES_WIDTH
    free_width = width - SERVER_WIDTH - SCORE_WIDTH - LEVEL_WIDTH - AHEAD_WIDTH - 3
    names = list(METRICS)[: max(MIN_METRICS, free_width // (cell_width + 2))]
    columns: list[tuple[int, JustifyMethod]] = [
        (SERVER_WIDTH, "left"), (SCORE_WIDTH, "right"), (LEVEL_WIDTH, "left"), (AHEAD_WIDTH, "right"),
    ]  # fmt: skip
    table = Table.grid(padding=(0, 1))
    for size, justify in columns + [(cell_width, "left")] * len(names):
        table.add_column(
            width=size, justify=justify, no_wrap=True, overflow="crop" if ascii_only else "ellipsis"
        )  # fmt: skip
    headers = ["server", "", "risk", "ahead", *(METRICS[name] for name in names)]
    table.add_row(*(Text(header, "dim") for header in headers))
    for risk in data.risks.servers:
        forecast = data.forecasts.get(risk.server)
        style = LEVEL_STYLES.get(risk.level, "")
        table.add_row(
            Text(printable(risk.server)),
            Text(str(int(risk.score)), style),
            Text("maintain" if risk.status == "maintenance" else printable(risk.level), style),
            _time_to_critical(risk),
            *(_metric_cell(name, risk.current.get(name), forecast, ascii_only=ascii_only) for name in names),
        )
    return table


def _time_to_critical(risk: ServerRisk) -> Text:
    """The time until a server is critical, with a question mark where that is only possible."""
    minutes = risk.minutes_ahead
    if minutes is None:
        return Text("")
    if minutes == 0:
        return Text("now", LEVEL_STYLES["critical"])
    text = f"{60 * minutes:.0f}s" if minutes < 0.995 else f"{format_number(round(minutes, 1))}m"
    return Text(text, "yellow") if risk.quantile_ahead == LIKELY_LEVEL else Text(f"{text}?", "dim")


def _metric_cell(name: str, now: float | None, forecast: ServerForecastResponse | None, *, ascii_only: bool) -> Text:
    """The bars, the current value and the highest p90 ahead.

    A full bar is 100 for percentages, else twice the value now.
    """
    p50, p90 = ((), ()) if forecast is None else (forecast.quantiles(name, "0.5"), forecast.quantiles(name, "0.9"))
    series = [*(() if now is None else (now,)), *p50]
    arrow = ">" if ascii_only else "→"
    text = "" if now is None else format_short(now)
    text += f"{arrow}{format_short(max(p90))}" if p90 else ""
    if ascii_only:
        return Text(f"{text:<{VALUES_WIDTH}}")
    top = 100.0 if name.endswith("_percent") else 2 * max([*series[:1], 1e-9])
    return Text(f"{format_bars(series, top):<{BAR_COUNT}} {text}")


def format_bars(series: Sequence[float], top: float) -> str:
    """A series as `BAR_COUNT` blocks, each the maximum of its part; `top` is a full block."""
    if not series:
        return ""
    edges = [round(index * len(series) / BAR_COUNT) for index in range(BAR_COUNT + 1)]
    parts = [series[start : max(end, start + 1)] for start, end in pairwise(edges)]
    heights = (max(part or series[-1:]) / top for part in parts)
    return "".join(BLOCKS[min(len(BLOCKS) - 1, max(0, int(height * len(BLOCKS))))] for height in heights)


def format_short(value: float) -> str:
    """A value in three characters, four from 100,000 on: `7.3`, `62`, `812`, `1k2`, `12k`, `3M0`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            return f"{value / size:.0f}{letter}" if value >= 9.95 * size else f"{value / size:.1f}".replace(".", letter)
    return f"{value:.1f}" if 0 < value < 9.95 else f"{value:.0f}"
