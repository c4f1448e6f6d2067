"""`fleet simulate`: a made-up fleet, sent to a service over HTTP at the pace of the service's clock."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import click

from cli.options import SettingOption

EPILOG = """\b
Exit codes:
  0  every row came to what it should have; also when stopped by Ctrl-C
  2  wrong usage
  4  good rows were refused, or bad ones taken
  5  a person is needed (address, API key, speed)
  6  nothing answered for as long as --patience
"""
AS_EXPECTED, NOT_AS_EXPECTED = 0, 4


@click.command(name="simulate", epilog=EPILOG)
@click.option("--url", metavar="URL", help="The service. Default: this machine, at FLEET_PORT.")
@click.option("--servers", type=click.IntRange(1, 100_000), default=20, show_default=True, help="How many there are.")
@click.option("--scenario", type=click.Choice(["healthy", "degrading", "critical", "cascade", "varied"]), default="healthy",
              show_default=True, help="What goes wrong, and how.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another seed is another fleet.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), metavar="X",
              help="Require that the service's clock runs X times as fast. Default: follow it at any speed.")  # fmt: skip
@click.option("--backfill", type=click.FloatRange(min=0), default=0.0, metavar="MINUTES", help="Send the past first.")
@click.option("--duration", type=click.FloatRange(min=0), metavar="SECONDS",
              help="End after that; 0 ends after the backfill. Default: until Ctrl-C.")  # fmt: skip
@click.option("--format", "kind", type=click.Choice(["json", "ndjson"]), default="json", show_default=True,
              help="One object a feed, or a record a line.")  # fmt: skip
@click.option("--api-key", cls=SettingOption, metavar="KEY", help="Its API key. Default: the first of FLEET_API_KEYS.")
@click.option("--join-leave", type=click.FloatRange(min=0), default=0.0, metavar="RATE",
              help="Servers a minute that leave, and come back.")  # fmt: skip
@click.option("--bad", type=click.FloatRange(0, 1), default=0.0, metavar="RATE",
              help="Bad rows for each good one, 0 to 1; the refusals are held against what was sent.")  # fmt: skip
@click.option("--patience", type=click.FloatRange(min=0), default=300.0, show_default=True, metavar="SECONDS",
              help="Give up after so long without an answer.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout at the end.")
@click.pass_context
def command(ctx: click.Context, /, url: str | None, api_key: str | None, as_json: bool, **plan: Any) -> None:
    """Send a made-up fleet's metrics to a service, until Ctrl-C."""
    from cli.fleet.client import default_key, default_url
    from cli.fleet.simulate_screen import SimulationScreen
    from forecastd.clock import SystemClock
    from forecastd.fleet.simulator.client import FeedClient
    from forecastd.fleet.simulator.simulation import Simulation, SimulationPlan
    from forecastd.settings import load_settings

    settings = load_settings(**(ctx.obj or {}))
    client = FeedClient(url or default_url(settings), api_key or default_key(settings))
    stop = ctx.with_resource(_stop_on_signal())
    with SimulationScreen(client.name, SimulationPlan(**plan), quiet=as_json) as screen:
        tally = Simulation(
            SimulationPlan(**plan), client, SystemClock(), stop, report=screen.report, on_progress=screen.on_progress
        ).run()
        screen.show_result(tally)
    ctx.exit(AS_EXPECTED if tally.as_expected else NOT_AS_EXPECTED)


@contextmanager
def _stop_on_signal() -> Iterator[Event]:
    """Set by the first Ctrl-C or SIGTERM; another one interrupts at once."""
    stop = Event()

    def end(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
