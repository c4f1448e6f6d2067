"""What the `data` commands share: options, loading candles, and the report on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import click
from rich.text import Text

from cli.options import TIME, setting_option
from cli.rows import console, row
from forecastd.clock import SystemClock
from forecastd.market.candles import Candles
from forecastd.market.inspect import CandleReport, TimeRange, inspect_candles, load_candles
from forecastd.market.sources import open_source
from forecastd.market.window import RollingWindow
from forecastd.runtime.formatting import format_duration
from forecastd.settings import load_settings

F = TypeVar("F", bound=Callable[..., Any])
SOURCE_OPTION = setting_option("--source")
AS_OF_OPTION = click.option("--as-of", type=TIME, metavar="ISO", help="Act as if it were this time (ISO 8601, UTC).")
MAX_GAPS = 5  # printed


def range_options(command: F) -> F:
    """The options that select candles."""
    for option in (
        AS_OF_OPTION,
        click.option("--end", type=TIME, metavar="ISO", help="Candles that open before this time."),
        click.option("--start", type=TIME, metavar="ISO", help="Candles that open at or after this time."),
        click.option(
            "--hours", type=click.IntRange(min=1), help="Number of hours; without --start, the last (default 408)."
        ),
        SOURCE_OPTION,
    ):
        command = option(command)
    return command


def load_report(
    shared: dict[str, Any], /, data_source: str | None, as_of: float | None, **candle_range: Any
) -> tuple[Candles, CandleReport]:
    """The candles that the options select, through the rolling window, and the report on them."""
    settings = load_settings(**(shared or {}), data_source=data_source)
    now = SystemClock().now() if as_of is None else as_of
    source = open_source(settings.source.name, settings)
    with RollingWindow.open(settings.state_path / "window.sqlite") as window:
        candles = load_candles(source, window, TimeRange(**candle_range), now=now)
    return candles, inspect_candles(candles, now=now)


def print_report(report: CandleReport, *, as_json: bool, checks: bool) -> None:
    """The report as rows or as one JSON object, with the results of the checks if `checks`."""
    if as_json:
        document = asdict(report)
        click.echo(json.dumps(document if checks else {name: document[name] for name in document if name != "checks"}))
        return
    synthetic = " (synthetic)" if report.synthetic else ""
    lines = [("source", f"{report.source}{synthetic}, {report.symbol}, one candle every {report.step} s")]
    age = "" if report.age_seconds is None else f", closed {format_duration(report.age_seconds)} ago"
    lines.append(("candles", f"{report.rows}, {report.start} to {report.end}{age}" if report.rows else "none"))
    gaps = "; ".join(f"{count} from {first}" for first, count in report.gaps[:MAX_GAPS])
    more = f"; and {len(report.gaps) - MAX_GAPS} more" if len(report.gaps) > MAX_GAPS else ""
    lines += [
        ("gaps", gaps + more or "none"),
        ("repairs", "; ".join(report.repairs) or "none"),
        ("sha256", report.sha256),
    ]
    if checks:
        passed = ", ".join(name for name, reason in report.checks.items() if reason is None)
        lines.append(("passed", passed or "none"))
        lines += [("refused", f"{name}: {reason}") for name, reason in report.checks.items() if reason is not None]
    for label, text in lines:
        console().print(row(label, Text(text)))
