"""`data`: fetch, inspect and export candles; serve a fake Tiingo."""

from __future__ import annotations

import click

from cli.lazy import LazyGroup

COMMANDS = {
    "export": ("cli.data.export", "Write candles to a file or to stdout."),
    "fake-tiingo": ("cli.data.fake_tiingo", "Serve candles over HTTP as Tiingo does."),
    "fetch": ("cli.data.fetch", "Update the rolling window."),
    "inspect": ("cli.data.inspect", "Describe candles and run the checks of a forecast."),
}


@click.group(cls=LazyGroup, table=COMMANDS, name="data")
def command() -> None:
    """Fetch, inspect and export candles; serve a fake Tiingo."""
