"""`fleet`: serve, feed, train and inspect forecasts for hundreds of servers."""

from __future__ import annotations

import click

from cli.lazy import LazyGroup

COMMANDS = {
    "serve": ("cli.fleet.serve", "Ingest rows, forecast at each tick, and serve over HTTP."),
    "simulate": ("cli.fleet.simulate", "Send the metrics of simulated servers to a fleet."),
    "status": ("cli.fleet.status", "Show the state of a running fleet."),
    "top": ("cli.fleet.top", "Show the servers at most risk, refreshed live."),
    "train": ("cli.fleet.train", "Train a model on the history of a fleet."),
}


@click.group(cls=LazyGroup, table=COMMANDS, name="fleet")
def command() -> None:
    """Forecast a fleet of servers over HTTP: a rolling window per server, quantiles of every metric, risk and alerts."""
