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
    from forecastd.candles import Candles
    from forecastd.survey import Survey

F = TypeVar("F", bound=Callable[..., Any])
SOURCE = click.option(
    "--source", "data_source", cls=SettingOption, metavar="SPEC", help="Where the candles come from.  [DATA_SOURCE]"
)
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
AS_OF = click.option("--as-of", metavar="ISO", help="Do as if it were this moment (ISO 8601, UTC).")
REFUSED = 4


def ranged(command: F) -> F:
    """The options that say which candles."""
    for option in (
        AS_OF,
        click.option("--end", metavar="ISO", help="Candles that open before this time."),
        click.option("--start", metavar="ISO", help="Candles that open at or after this time."),
        click.option("--hours", type=click.IntRange(min=1), help="How many; without --start, the last (default 408)."),
        SOURCE,
    ):
        command = option(command)
    return command


@click.group(name="data")
def command() -> None:
    """Fetch, inspect and export candles; serve a fake Tiingo."""


@command.command()
@ranged
@JSON
@click.pass_obj
def fetch(shared: dict[str, Any], /, as_json: bool, **asked: Any) -> None:
    """Bring the rolling window up to date.

    The source is asked only for what is missing.
    """
    _, found = _survey(shared, **asked)
    _show(found, as_json=as_json, checks=False)


@command.command()
@ranged
@JSON
@click.pass_context
def inspect(ctx: click.Context, /, as_json: bool, **asked: Any) -> None:
    """Describe candles and run the checks.

    They are judged as a forecast would judge them. Ends with 4 when a check refuses them.
    """
    _, found = _survey(ctx.obj or {}, **asked)
    _show(found, as_json=as_json, checks=True)
    ctx.exit(REFUSED if any(found.checks.values()) else 0)


@command.command()
@click.argument("path", type=click.Path(path_type=Path, allow_dash=True))
@ranged
@click.option("--format", "form", type=click.Choice(["csv", "parquet"]), help="Default: by the name, CSV for -.")
@click.option("--force", is_flag=True, help="Replace PATH where it exists.")
@click.pass_obj
def export(shared: dict[str, Any], /, path: Path, form: Any, force: bool, **asked: Any) -> None:
    """Write candles to a file or to stdout.

    PATH ends in .csv, .csv.gz or .parquet, or is - for stdout. `--source file:PATH` reads the file back.
    """
    from forecastd.sources.export import to_csv, to_parquet, write

    candles, _ = _survey(shared, **asked)
    if str(path) == "-":
        click.echo(to_parquet(candles) if form == "parquet" else to_csv(candles), nl=False)
        return
    write(candles, path, form, force=force)
    click.echo(f"{len(candles)} candles of {candles.provenance.source} written to {path}", err=True)


@command.command()
@SOURCE
@AS_OF
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8640, show_default=True, help="Port; 0 takes a free one."
)
@click.option("--require-key", is_flag=True, help="Answer only requests that carry TIINGO_API_KEY.")
@click.option("--fault", "faults", multiple=True, metavar="NAME[@first=N|@every=N]", help="Go wrong; may be repeated.")
@JSON
@click.pass_obj
def fake_tiingo(
    shared: dict[str, Any],
    /,
    as_of: str | None,
    faults: tuple[str, ...],
    require_key: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Serve candles as Tiingo would.

    Of any source, over HTTP, with faults on demand, until Ctrl-C.

    \b
    Faults: rate-limit, rate-limit-long, in-band, html, truncated, wrong-types,
    slow, hang, huge, unauthorized, redirect, broken, empty.
    """
    from cli.times import reference_time
    from forecastd.clock import ReplayClock, SystemClock
    from forecastd.settings import load_settings
    from forecastd.sources import open_source
    from forecastd.sources.faketiingo import FakeTiingo, Fault, required_key

    settings = load_settings(**(shared or {}), data_source=asked.pop("data_source"))
    moment = reference_time(as_of)
    clock = SystemClock() if moment is None else ReplayClock(moment)
    key = required_key(settings) if require_key else None
    source = open_source(settings.data_source, settings)
    with FakeTiingo(source, clock, key=key, faults=[Fault.parse(text) for text in faults], **asked) as server:
        told = {"url": server.url, "source": source.name, "symbol": source.symbol, "faults": list(faults)}
        line = f"Serving {source.name} at {server.url} (TIINGO_URL={server.url}, DATA_SOURCE=tiingo). Ctrl-C ends."
        click.echo(json.dumps(told) if as_json else line)
        _wait_for_signal()
    click.echo(f"{server.requests} requests, {server.bytes_sent} bytes sent", err=True)


def _survey(
    shared: dict[str, Any], /, data_source: str | None, as_of: str | None, **span: Any
) -> tuple[Candles, Survey]:
    from cli.times import reference_time
    from forecastd.clock import SystemClock
    from forecastd.settings import load_settings
    from forecastd.sources import open_source
    from forecastd.survey import Span, gather, survey
    from forecastd.window import RollingWindow

    settings = load_settings(**(shared or {}), data_source=data_source)
    moment = reference_time(as_of)
    now = SystemClock().now() if moment is None else moment
    start, end = reference_time(span["start"], "--start"), reference_time(span["end"], "--end")
    source = open_source(settings.data_source, settings)
    with RollingWindow.open(settings.state / "window.sqlite") as window:
        candles = gather(source, window, Span(start, end, span["hours"]), now=now)
    return candles, survey(candles, now=now)


def _show(found: Survey, *, as_json: bool, checks: bool) -> None:
    if as_json:
        facts = asdict(found)
        click.echo(json.dumps(facts if checks else {name: facts[name] for name in facts if name != "checks"}))
        return
    from rich.text import Text

    from cli.screen import console, row

    made_up = " (made up)" if found.synthetic else ""
    lines = [("source", f"{found.source}{made_up}, {found.symbol}, a candle every {found.step} s")]
    age = "" if found.age_seconds is None else f", closed {found.age_seconds / 3600:.1f} h ago"
    lines.append(("candles", f"{found.rows}, {found.start} to {found.end}{age}" if found.rows else "none"))
    gaps = "; ".join(f"{count} from {first}" for first, count in found.gaps[:5])
    more = f"; and {len(found.gaps) - 5} more" if len(found.gaps) > 5 else ""
    lines += [
        ("gaps", gaps + more or "none"),
        ("repairs", "; ".join(found.repairs) or "none"),
        ("sha256", found.sha256),
    ]
    if checks:
        passed = ", ".join(name for name, reason in found.checks.items() if reason is None)
        lines.append(("passed", passed or "none"))
        lines += [("refused", f"{name}: {reason}") for name, reason in found.checks.items() if reason is not None]
    for label, text in lines:
        console().print(row(label, Text(text)))


def _wait_for_signal() -> None:
    """Until SIGINT or SIGTERM."""
    done = threading.Event()
    before = {number: signal.signal(number, lambda *_: done.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    done.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
