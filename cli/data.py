"""`data`: fetch, inspect and export candles; serve a fake Tiingo."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.options import SettingOption

if TYPE_CHECKING:
    from forecastd.market.candles import Candles
    from forecastd.market.inspect import CandleReport

F = TypeVar("F", bound=Callable[..., Any])
SOURCE_OPTION = click.option(
    "--source", "data_source", cls=SettingOption, metavar="SPEC", help="Where the candles come from.  [DATA_SOURCE]"
)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
AS_OF_OPTION = click.option("--as-of", metavar="ISO", help="Do as if it were this moment (ISO 8601, UTC).")
EXIT_REFUSED = 4


def range_options(command: F) -> F:
    """The options that say which candles."""
    for option in (
        AS_OF_OPTION,
        click.option("--end", metavar="ISO", help="Candles that open before this time."),
        click.option("--start", metavar="ISO", help="Candles that open at or after this time."),
        click.option("--hours", type=click.IntRange(min=1), help="How many; without --start, the last (default 408)."),
        SOURCE_OPTION,
    ):
        command = option(command)
    return command


@click.group(name="data")
def command() -> None:
    """Fetch, inspect and export candles; serve a fake Tiingo."""


@command.command()
@range_options
@JSON_OPTION
@click.pass_obj
def fetch(shared: dict[str, Any], /, as_json: bool, **options: Any) -> None:
    """Bring the rolling window up to date.

    The source is asked only for what is missing.
    """
    _, report = _load_candles(shared, **options)
    _print_report(report, as_json=as_json, checks=False)


@command.command()
@range_options
@JSON_OPTION
@click.pass_context
def inspect(ctx: click.Context, /, as_json: bool, **options: Any) -> None:
    """Describe candles and run the checks.

    They are judged as a forecast would judge them. Ends with 4 when a check refuses them.
    """
    _, report = _load_candles(ctx.obj or {}, **options)
    _print_report(report, as_json=as_json, checks=True)
    ctx.exit(EXIT_REFUSED if any(report.checks.values()) else 0)


@command.command()
@click.argument("path", type=click.Path(path_type=Path, allow_dash=True))
@range_options
@click.option("--format", "form", type=click.Choice(["csv", "parquet"]), help="Default: by the name, CSV for -.")
@click.option("--force", is_flag=True, help="Replace PATH where it exists.")
@click.pass_obj
def export(shared: dict[str, Any], /, path: Path, form: Any, force: bool, **options: Any) -> None:
    """Write candles to a file or to stdout.

    PATH ends in .csv, .csv.gz or .parquet, or is - for stdout. `--source file:PATH` reads the file back.
    """
    from forecastd.market.sources.export import export_candles, to_csv, to_parquet

    candles, _ = _load_candles(shared, **options)
    if str(path) == "-":
        click.echo(to_parquet(candles) if form == "parquet" else to_csv(candles), nl=False)
        return
    export_candles(candles, path, form, force=force)
    click.echo(f"{len(candles)} candles of {candles.provenance.source} written to {path}", err=True)


@command.command()
@SOURCE_OPTION
@AS_OF_OPTION
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8640, show_default=True, help="Port; 0 takes a free one."
)
@click.option("--require-key", is_flag=True, help="Answer only requests that carry TIINGO_API_KEY.")
@click.option("--fault", "faults", multiple=True, metavar="NAME[@first=N|@every=N]", help="Go wrong; may be repeated.")
@JSON_OPTION
@click.pass_obj
def fake_tiingo(
    shared: dict[str, Any],
    /,
    as_of: str | None,
    faults: tuple[str, ...],
    require_key: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Serve candles as Tiingo would.

    Of any source, over HTTP, with faults on demand, until Ctrl-C.

    \b
    Faults: rate-limit, rate-limit-long, in-band, html, truncated, wrong-types,
    slow, hang, huge, unauthorized, redirect, broken, empty.
    """
    from cli.times import parse_time
    from forecastd.clock import ReplayClock, SystemClock
    from forecastd.market.sources import open_source
    from forecastd.market.sources.fake_tiingo import FakeTiingo, TiingoFault, require_api_key
    from forecastd.settings import load_settings

    settings = load_settings(**(shared or {}), data_source=options.pop("data_source"))
    reference = parse_time(as_of)
    clock = SystemClock() if reference is None else ReplayClock(reference)
    key = require_api_key(settings) if require_key else None
    source = open_source(settings.data_source, settings)
    with FakeTiingo(source, clock, key=key, faults=[TiingoFault.parse(text) for text in faults], **options) as server:
        document = {"url": server.url, "source": source.name, "symbol": source.symbol, "faults": list(faults)}
        line = f"Serving {source.name} at {server.url} (TIINGO_URL={server.url}, DATA_SOURCE=tiingo). Ctrl-C ends."
        click.echo(json.dumps(document) if as_json else line)
        _wait_for_signal()
    click.echo(f"{server.request_count} requests, {server.bytes_sent} bytes sent", err=True)


def _load_candles(
    shared: dict[str, Any], /, data_source: str | None, as_of: str | None, **candle_range: Any
) -> tuple[Candles, CandleReport]:
    from cli.times import parse_time
    from forecastd.clock import SystemClock
    from forecastd.market.inspect import TimeRange, inspect_candles, load_candles
    from forecastd.market.sources import open_source
    from forecastd.market.window import RollingWindow
    from forecastd.settings import load_settings

    settings = load_settings(**(shared or {}), data_source=data_source)
    reference = parse_time(as_of)
    now = SystemClock().now() if reference is None else reference
    start, end = parse_time(candle_range["start"], "--start"), parse_time(candle_range["end"], "--end")
    source = open_source(settings.data_source, settings)
    with RollingWindow.open(settings.state_path / "window.sqlite") as window:
        candles = load_candles(source, window, TimeRange(start, end, candle_range["hours"]), now=now)
    return candles, inspect_candles(candles, now=now)


def _print_report(report: CandleReport, *, as_json: bool, checks: bool) -> None:
    if as_json:
        document = asdict(report)
        click.echo(json.dumps(document if checks else {name: document[name] for name in document if name != "checks"}))
        return
    from rich.text import Text

    from cli.rows import console, row

    synthetic = " (made up)" if report.synthetic else ""
    lines = [("source", f"{report.source}{synthetic}, {report.symbol}, a candle every {report.step} s")]
    age = "" if report.age_seconds is None else f", closed {report.age_seconds / 3600:.1f} h ago"
    lines.append(("candles", f"{report.rows}, {report.start} to {report.end}{age}" if report.rows else "none"))
    gaps = "; ".join(f"{count} from {first}" for first, count in report.gaps[:5])
    more = f"; and {len(report.gaps) - 5} more" if len(report.gaps) > 5 else ""
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


def _wait_for_signal() -> None:
    """Until SIGINT or SIGTERM."""
    stop_event = threading.Event()
    previous_handlers = {
        number: signal.signal(number, lambda *_: stop_event.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    stop_event.wait()
    for number, handler in previous_handlers.items():
        signal.signal(number, handler)
