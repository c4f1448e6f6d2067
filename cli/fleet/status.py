"""`fleet status`: the state of a running fleet, on one screen or as JSON."""

from __future__ import annotations

import click

from cli.options import SettingOption

EPILOG = """\b
Exit codes:
  0  the fleet is running and healthy
  3  no fleet is running at this address
  5  the API key is rejected, or the server is not a fleet
  6  the fleet is not healthy, or does not respond in time
"""


@click.command(name="status", epilog=EPILOG)
@click.option("--url", metavar="URL", help="The URL of the fleet (default: this machine, at FLEET_PORT).")
@click.option("--api-key", cls=SettingOption, metavar="KEY", help="The API key (default: the first of FLEET_API_KEYS).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout.")
@click.pass_context
def command(ctx: click.Context, /, url: str | None, api_key: str | None, as_json: bool) -> None:
    """Show the state of a running fleet: health, servers, risk, alerts, forecast, model, window."""
    from cli.fleet.status_screen import show_status  # with pydantic and rich, which --help does not need

    ctx.exit(show_status(ctx.obj or {}, url, api_key, as_json=as_json))
