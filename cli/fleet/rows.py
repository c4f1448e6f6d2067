"""The rows that `fleet status` and `fleet top` share. Normal values are short; empty parts are left out."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from cli.rows import LABEL_WIDTH
from cli.status_screen import printable
from forecastd.clock import from_iso
from forecastd.fleet.documents import RISK_LEVELS, AlertsResponse, RiskSummary, ServerCounts, StatusResponse
from forecastd.runtime.formatting import format_duration

LEVEL_STYLES = {"critical": "bold red", "warning": "yellow", "watch": "cyan", "early": "cyan"}


def counted(number: int, text: str, style: str = "") -> tuple[str, str]:
    """A count that follows another part of a row; empty for 0."""
    return (f", {number:,} {text}" if number else "", style)


def servers_text(servers: ServerCounts, name: str = "") -> Text:
    """The number of servers in total and by state. `name` follows the total."""
    return Text.assemble(
        f"{servers.total}{name}: {servers.ready} ready",
        counted(servers.warming, "warming up"),
        counted(servers.silent, "silent", "yellow"),
    )


def risk_text(summary: RiskSummary) -> Text:
    """The number of servers by risk level, the worst first."""
    counts = {level: summary.counts.get(level, 0) for level in reversed(RISK_LEVELS)}
    parts = [
        Text(f"{number} {level}", LEVEL_STYLES.get(level, "") if number else "")
        for level, number in counts.items()
        if number or level == "critical"
    ]
    return Text.assemble(Text(", ").join(parts), counted(summary.maintenance, "in maintenance"))


def horizon_text(status: StatusResponse) -> str:
    """How far the model forecasts."""
    return format_duration(status.model.horizon_steps * status.step_seconds)


def alert_table(alerts: AlertsResponse, now: float, limit: int, *, wrap: bool = True) -> Table:
    """The most severe alerts, one row each: severity, message and age. Without `wrap` each is cut off at the width."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=LABEL_WIDTH, no_wrap=True)
    table.add_column(ratio=1, overflow="fold" if wrap else "ellipsis", no_wrap=not wrap)
    table.add_column(justify="right", no_wrap=True)
    for alert in alerts.open[:limit]:
        opened = parse_time(alert.opened_at)
        severity = Text(printable(alert.severity), LEVEL_STYLES.get(alert.severity, ""))
        table.add_row(
            severity, printable(alert.message), "" if opened is None else f"for {format_duration(now - opened)}"
        )
    return table


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
