"""`data fake-tiingo`."""

from __future__ import annotations

import json
import signal
import threading
from typing import Any

import click

from cli.data.common import AS_OF_OPTION, SOURCE_OPTION
from cli.options import json_option
from forecastd.clock import ReplayClock, SystemClock
from forecastd.market.sources import open_source
from forecastd.market.sources.fake_tiingo import FakeTiingo, TiingoFault, require_api_key
from forecastd.runtime.formatting import format_count
from forecastd.settings import load_settings


@click.command(name="fake-tiingo")
@SOURCE_OPTION
@AS_OF_OPTION
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8640, show_default=True, help="Port; 0 selects a free one."
)
@click.option("--require-key", is_flag=True, help="Answer only requests that carry TIINGO_API_KEY.")
@click.option(
    "--fault", "faults", multiple=True, metavar="NAME[@first=N|@every=N]", help="Inject a fault; may be repeated."
)
@json_option()
@click.pass_obj
def command(
    shared: dict[str, Any],
    /,
    as_of: float | None,
    faults: tuple[str, ...],
    require_key: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Serve candles over HTTP as Tiingo does, until Ctrl-C.

    The candles come from any source. Faults can be injected.

    \b
    Faults: rate-limit, rate-limit-long, in-band, html, truncated, wrong-types,
    slow, hang, huge, unauthorized, redirect, broken, empty.
    """
    settings = load_settings(**(shared or {}), data_source=options.pop("data_source"))
    clock = SystemClock() if as_of is None else ReplayClock(as_of)
    key = require_api_key(settings) if require_key else None
    source = open_source(settings.source.name, settings)
    with FakeTiingo(source, clock, key=key, faults=[TiingoFault.parse(text) for text in faults], **options) as server:
        document = {"url": server.url, "source": source.name, "symbol": source.symbol, "faults": list(faults)}
        line = f"Serving {source.name} at {server.url} (TIINGO_URL={server.url}, DATA_SOURCE=tiingo). Ctrl-C stops it."
        click.echo(json.dumps(document) if as_json else line)
        _wait_for_signal()
    requests, size = format_count(server.request_count, "request"), format_count(server.bytes_sent, "byte")
    click.echo(f"Served {requests}, sent {size}", err=True)


def _wait_for_signal() -> None:
    """Wait for SIGINT or SIGTERM."""
    stop_event = threading.Event()
    previous_handlers = {
        number: signal.signal(number, lambda *_: stop_event.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    stop_event.wait()
    for number, handler in previous_handlers.items():
        signal.signal(number, handler)
