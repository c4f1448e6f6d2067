"""The servers at most risk, a line each, with the main metrics now and ahead: for `fleet top`.

The one thing to know before changing it: a cell's bars begin with the value now and go on with the p50 to the end of the
horizon; then come the value now and the highest p90 ahead. How many metrics are shown depends on the width, but three are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from cli.fleet.screen import LEVEL_STYLES, alert_lines, moment, percent, risk_text, servers_text
from cli.fleet.told import Alerts, Risk, Risks, ServerForecast, Status
from cli.pulse_screen import plain, span
from cli.screen import row
from forecastd.fleet.words import number

METRICS: Mapping[str, str] = {
    "cpu_percent": "CPU %",
    "memory_percent": "memory %",
    "latency_ms": "latency ms",
    "error_percent": "errors %",
    "disk_percent": "disk %",
    "disk_busy_percent": "disk busy %",
    "requests_per_s": "requests/s",
}
LIKELY = 0.5  # the quantile by which a crossing is likely; by a higher one it is possible
BARS, BLOCKS = 6, "▁▂▃▄▅▆▇█"
SERVER, SCORE, LEVEL, AHEAD, VALUES = 15, 3, 8, 6, 7  # columns of text
HEAD = max(map(len, METRICS.values()))
LEAST_METRICS = 3
MOST_ALERTS = 6
FRAME = 8  # lines that are neither servers nor alerts
TROUBLE = 3  # lines of what is wrong, where something is
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
        taken = FRAME + len(self._frame.risks.servers) + (TROUBLE if self._frame.trouble else 0)
        left = MOST_ALERTS if self._height is None else max(1, self._height - taken)
        shown = min(left, len(alerts.open))
        many = f"{len(alerts.open)} alert{'' if len(alerts.open) == 1 else 's'}"
        yield Text(many if shown == len(alerts.open) else f"{shown} of {many}")
        yield from alert_lines(alerts, now, shown, whole=self._height is None)


def _head(frame: Frame) -> RenderableType:
    """The fleet in two lines."""
    status, summary = frame.status, frame.risks.summary
    first = Text(f"{plain(frame.name)}  ", style="bold")
    first.append_text(servers_text(status.servers, " servers"))
    age = status.forecast.age_seconds
    first.append("; no forecast yet" if age is None else f"; forecast {span(age)} old", style="" if age else "yellow")
    if not status.health.ok:
        reasons = " ".join(plain(reason) for reason in status.health.reasons)
        return Group(first, Text(reasons or "not healthy", style="bold red"))
    second = risk_text(summary)
    if summary.incident_probability is not None:
        horizon = span(status.model.horizon_steps * status.step_seconds)
        second.append(f"; an incident within {horizon}: {percent(summary.incident_probability)}")
    return Group(first, second)


def _servers(frame: Frame, width: int, *, ascii_only: bool) -> RenderableType:
    cell, overflow = (HEAD, "crop") if ascii_only else (BARS + 1 + VALUES, "ellipsis")
    names = list(METRICS)[: max(LEAST_METRICS, (width - SERVER - SCORE - LEVEL - AHEAD - 3) // (cell + 2))]
    table = Table.grid(padding=(0, 1))
    for size, justify in ((SERVER, "left"), (SCORE, "right"), (LEVEL, "left"), (AHEAD, "right")):
        table.add_column(width=size, justify=justify, no_wrap=True, overflow=overflow)  # type: ignore[arg-type]
    for _ in names:
        table.add_column(width=cell, no_wrap=True, overflow=overflow)  # type: ignore[arg-type]
    heads = ["server", "", "risk", "ahead", *(METRICS[name] for name in names)]
    table.add_row(*(Text(head, style="dim") for head in heads))
    for risk in frame.risks.servers:
        forecast = frame.forecasts.get(risk.server)
        cells = [_cell(name, risk.current.get(name), forecast, ascii_only=ascii_only) for name in names]
        style = LEVEL_STYLES.get(risk.level, "")
        level = "maintain" if risk.status == "maintenance" else plain(risk.level)
        table.add_row(
            Text(plain(risk.server)),
            Text(str(int(risk.score)), style=style),
            Text(level, style=style),
            _when(risk),
            *cells,
        )
    return table


def _when(risk: Risk) -> Text:
    """How long until it is critical; with a question mark where that is possible only."""
    if risk.minutes_ahead is None:
        return Text("")
    if risk.minutes_ahead == 0:
        return Text("now", style=LEVEL_STYLES["critical"])
    told = (
        f"{60 * risk.minutes_ahead:.0f}s" if risk.minutes_ahead < 0.995 else f"{number(round(risk.minutes_ahead, 1))}m"
    )
    return Text(told, style="yellow") if risk.quantile_ahead == LIKELY else Text(f"{told}?", style="dim")


def _cell(name: str, now: float | None, forecast: ServerForecast | None, *, ascii_only: bool) -> Text:
    """The bars, the value now and the highest p90 ahead. Percents are full at 100, the others at twice the value now."""
    p50, p90 = ((), ()) if forecast is None else (forecast.path(name, "0.5"), forecast.path(name, "0.9"))
    path = [*(() if now is None else (now,)), *p50]
    arrow = ">" if ascii_only else "→"
    values = "" if now is None else short(now)
    values += f"{arrow}{short(max(p90))}" if p90 else ""
    if ascii_only:
        return Text(f"{values:<{VALUES}}")
    top = 100.0 if name.endswith("_percent") else 2 * max([*path[:1], 1e-9])
    return Text(f"{bars(path, top):<{BARS}} {values}")


def bars(path: Sequence[float], top: float) -> str:
    """A path as `BARS` blocks, each the highest of its part; `top` is a full one."""
    if not path:
        return ""
    edges = [round(place * len(path) / BARS) for place in range(BARS + 1)]
    parts = [path[start : max(end, start + 1)] for start, end in pairwise(edges)]
    heights = (max(part or path[-1:]) / top for part in parts)
    return "".join(BLOCKS[min(len(BLOCKS) - 1, max(0, int(height * len(BLOCKS))))] for height in heights)


def short(value: float) -> str:
    """A value in three characters, four from a hundred thousand on: `7.3`, `62`, `812`, `1k2`, `12k`, `3M0`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            return f"{value / size:.0f}{letter}" if value >= 9.95 * size else f"{value / size:.1f}".replace(".", letter)
    return f"{value:.1f}" if 0 < value < 9.95 else f"{value:.0f}"
