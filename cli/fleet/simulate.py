"""`fleet simulate`: send the rows of a simulated fleet to a service over HTTP, at the pace of its clock."""

from __future__ import annotations

from typing import Any

import click

from cli.options import SettingOption

EPILOG = """\b
Exit codes:
  0  every row had its expected result; also when stopped by Ctrl-C
  2  wrong usage
  4  good rows were refused, or bad rows accepted
  5  a person is needed (address, API key, speed)
  6  no response for as long as --patience
"""


@click.command(name="simulate", epilog=EPILOG)
@click.option("--url", metavar="URL", help="The URL of the fleet (default: this machine, at FLEET_PORT).")
@click.option("--servers", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Number of servers.")
@click.option("--scenario", type=click.Choice(["healthy", "degrading", "critical", "cascade", "varied"]),
              default="healthy", show_default=True, help="The faults of the servers.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The seed of the fleet.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), metavar="X",
              help="Require that the service's clock runs at speed X (default: any speed).")  # fmt: skip
@click.option("--backfill", type=click.FloatRange(min=0), default=0.0, metavar="MINUTES",
              help="Send this much of the past first.")  # fmt: skip
@click.option("--duration", type=click.FloatRange(min=0), metavar="SECONDS",
              help="Stop this long after the backfill; 0: right after it (default: run until Ctrl-C).")  # fmt: skip
@click.option("--format", "kind", type=click.Choice(["json", "ndjson"]), default="json", show_default=True,
              help="One JSON object per feed, or one record per line.")  # fmt: skip
@click.option("--api-key", cls=SettingOption, metavar="KEY", help="The API key (default: the first of FLEET_API_KEYS).")
@click.option("--join-leave", type=click.FloatRange(min=0), default=0.0, metavar="RATE",
              help="Servers per minute that leave and come back.")  # fmt: skip
@click.option("--bad", type=click.FloatRange(0, 1), default=0.0, metavar="RATE",
              help="Bad rows per good row, 0 to 1; their refusals are compared with the expected ones.")  # fmt: skip
@click.option("--patience", type=click.FloatRange(min=0), default=300.0, show_default=True, metavar="SECONDS",
              help="Give up after this long without a response.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout at the end.")
@click.pass_context
def command(ctx: click.Context, /, url: str | None, api_key: str | None, as_json: bool, **plan: Any) -> None:
    """Send the metrics of a simulated fleet to a service, until Ctrl-C."""
    from cli.fleet.simulate_screen import run_simulation  # with numpy, pydantic and rich, which --help does not need

    ctx.exit(run_simulation(ctx.obj or {}, url, api_key, as_json=as_json, **plan))
