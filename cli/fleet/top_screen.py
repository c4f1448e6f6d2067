"""The servers at most risk, a line each, with the main metrics now and ahead: for `fleet top`.

The one thing to know before changing it: a cell says the value now, then the highest p90 ahead; its bars begin with the value
now and go on with the p50 to the end of the horizon. How many metrics are shown depends on the width, never less than three.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isnan

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from cli.fleet.screen import LEVEL_STYLES, alert_lines, moment, percent, risk_text, servers_text
from cli.fleet.told import Alerts, Risk, Risks, ServerForecast, Status
from cli.pulse_screen import plain, span
from cli.screen import row
from forecastd.fleet.words import minutes

METRICS: Mapping[str, str] = {
    "cpu_percent": "CPU %",
    "memory_percent": "memory %",
    "latency_ms": "latency ms",
    "error_percent": "errors %",
    "disk_percent": "disk %",
    "disk_busy_percent": "disk busy %",
    "requests_per_s": "requests/s",
}
BARS, BLOCKS = 6, "▁▂▃▄▅▆▇█"
SERVER, SCORE, LEVEL, AHEAD, VALUES = 14, 3, 8, 6, 8  # columns of text
LEAST_METRICS = 3
MOST_ALERTS = 6
FRAME = 6  # lines that are not servers or alerts
PIPE_SERVERS = 20  # where there is no terminal whose height would say


@dataclass(frozen=True)
class Frame:
    """Everything that one picture shows. `trouble`: why nothing newer is known, None when this is new."""

    name: str
    status: Status
    risks: Risks
    alerts: Alerts
    forecasts: Mapping[str, ServerForecast]
    trouble: str | None = None


def shown_servers(height: int | None) -> int:
    """How many servers fit into a terminal of this height, with some alerts below; `height` None: no terminal."""
    return PIPE_SERVERS if height is None else max(3, height - FRAME - MOST_ALERTS)


class TopScreen:
    """One picture, as wide as there is room."""

    def __init__(self, frame: Frame, height: int | None = None) -> None:
        self._frame, self._height = frame, height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._picture(options.max_width, ascii_only=options.ascii_only)

    def _picture(self, width: int, *, ascii_only: bool) -> RenderableType:
        frame = self._frame
        lines: list[RenderableType] = []
        if frame.trouble is not None:
            lines.append(row("", Text(f"{plain(frame.trouble)} What follows is old.", style="bold red")))
        lines += [_head(frame), "", _servers(frame, width, ascii_only=ascii_only)]
        more = frame.risks.summary.servers - len(frame.risks.servers)
        if more > 0:
            lines.append(Text(f"and {more} more, less at risk", style="dim"))
        lines += ["", *self._alerts()]
        return Group(*lines)

    def _alerts(self) -> Iterable[RenderableType]:
        alerts, now = self._frame.alerts, moment(self._frame.status.now) or 0.0
        if not alerts.open:
            yield Text("no alerts")
            return
        left = MOST_ALERTS if self._height is None else max(2, self._height - FRAME - len(self._frame.risks.servers))
        shown = min(left, len(alerts.open))
        yield Text(
            f"{len(alerts.open)} alerts" if shown == len(alerts.open) else f"{shown} of {len(alerts.open)} alerts"
        )
        yield from alert_lines(alerts, now, shown)


def _head(frame: Frame) -> RenderableType:
    """The fleet in two lines."""
    status, summary = frame.status, frame.risks.summary
    first = Text(f"{plain(frame.name)}  ", style="bold")
    first.append_text(servers_text(status.servers))
    first.append("; ").append_text(risk_text(summary))
    horizon = span(status.model.horizon_steps * status.step_seconds)
    forecast = status.forecast
    second = Text("no forecast yet", style="yellow")
    if forecast.age_seconds is not None:
        second = Text(f"forecast {span(forecast.age_seconds)} old, {horizon} ahead")
    if summary.incident_probability is not None:
        second.append(f"; an incident in it: {percent(summary.incident_probability)}")
    if not status.health.ok:
        second = Text(" ".join(plain(reason) for reason in status.health.reasons), style="bold red")
    for text in (first, second):
        text.truncate(10_000)
    return Group(first, second)


def _servers(frame: Frame, width: int, *, ascii_only: bool) -> RenderableType:
    cell = VALUES + (0 if ascii_only else BARS + 1)
    names = list(METRICS)[: max(LEAST_METRICS, (width - SERVER - SCORE - LEVEL - AHEAD - 3) // (cell + 2))]
    table = Table.grid(padding=(0, 1))
    for size, justify in ((SERVER, "left"), (SCORE, "right"), (LEVEL, "left"), (AHEAD, "right")):
        table.add_column(width=size, justify=justify, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]
    for _ in names:
        table.add_column(width=cell, no_wrap=True)
    heads = ["server", "", "risk", "ahead", *(METRICS[name] for name in names)]
    table.add_row(*(Text(head, style="dim") for head in heads))
    for risk in frame.risks.servers:
        forecast = frame.forecasts.get(risk.server)
        cells = [_cell(risk.current.get(name), *_ahead(forecast, name), ascii_only=ascii_only) for name in names]
        style = LEVEL_STYLES.get(risk.level, "")
        level = "maintain" if risk.status == "maintenance" else plain(risk.level)
        table.add_row(
            Text(plain(risk.server)),
            Text(f"{risk.score:.0f}", style=style),
            Text(level, style=style),
            _when(risk),
            *cells,
        )
    return table


def _when(risk: Risk) -> Text:
    """How long until it is critical; what is possible only, in brackets."""
    if risk.minutes_ahead is None:
        return Text("")
    if risk.minutes_ahead == 0:
        return Text("now", style=LEVEL_STYLES["critical"])
    told = minutes(risk.minutes_ahead)
    return Text(told, style="yellow") if risk.quantile_ahead == 0.5 else Text(told, style="dim")


def _ahead(forecast: ServerForecast | None, metric: str) -> tuple[Sequence[float], Sequence[float]]:
    """The p50 and the p90 that are ahead."""
    return ((), ()) if forecast is None else (forecast.path(metric, "0.5"), forecast.path(metric, "0.9"))


def _cell(now: float | None, p50: Sequence[float], p90: Sequence[float], *, ascii_only: bool) -> Text:
    """The bars, the value now and the highest p90 ahead."""
    path = [one for one in ((now,) if now is not None else ()) if not isnan(one)] + [*p50]
    arrow = ">" if ascii_only else "→"
    values = "" if now is None else short(now)
    values += f"{arrow}{short(max(p90))}" if p90 else ""
    return Text(f"{values:<{VALUES}}" if ascii_only else f"{bars(path, max(p90, default=0.0)):<{BARS}} {values}")


def bars(path: Sequence[float], highest: float) -> str:
    """A path as `BARS` blocks, each the highest of its part; percents fill at 100, others at twice the first or the most."""
    if not path:
        return ""
    top = max(2 * path[0], highest, *path, 1e-9)
    edges = [round(place * len(path) / BARS) for place in range(BARS + 1)]
    parts = [path[start : max(end, start + 1)] for start, end in pairwise(edges)]
    heights = (max(part or path[-1:]) / top for part in parts)
    return "".join(BLOCKS[min(len(BLOCKS) - 1, max(0, int(height * len(BLOCKS))))] for height in heights)


def short(value: float) -> str:
    """A value in three characters, four from ten thousand on: `7.3`, `62`, `812`, `1k2`, `12k`, `3M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            return f"{value / size:.0f}{letter}" if value >= 9.95 * size else f"{value / size:.1f}".replace(".", letter)
    return f"{value:.1f}" if 0 < value < 9.95 else f"{value:.0f}"
