"""`fleet`: forecasts for hundreds of servers, served, fed, trained and looked at."""

from __future__ import annotations

import click

from cli.lazy import LazyGroup

COMMANDS = {
    "import": ("cli.fleet.import_window", "Take over a window that another program has pickled."),
    "serve": ("cli.fleet.serve", "Take rows in, forecast at each tick, and serve it over HTTP."),
    "simulate": ("cli.fleet.simulate", "Send made-up servers' metrics to a fleet."),
    "status": ("cli.fleet.status", "Show what a running fleet does."),
    "top": ("cli.fleet.top", "Show the servers at most risk, live."),
    "train": ("cli.fleet.train", "Train a model on the fleet's own history."),
}


@click.group(cls=LazyGroup, table=COMMANDS, name="fleet")
def command() -> None:
    """Forecast a fleet of servers: a rolling window each, quantiles of every metric, risk and alerts, over HTTP."""
