"""`fleet status`: how a running fleet stands, on one screen or as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from cli.options import SettingOption

if TYPE_CHECKING:
    from cli.fleet.client import FleetClient

HEALTHY, UNHEALTHY = 0, 6
EPILOG = """\b
Exit codes:
  0  it runs and is healthy
  3  nobody listens there
  5  it refuses the API key, or is no fleet
  6  it runs and is not healthy, or does not answer in time
"""


@click.command(name="status", epilog=EPILOG)
@click.option("--url", metavar="URL", help="The service. Default: this machine, at FLEET_PORT.")
@click.option("--api-key", cls=SettingOption, metavar="KEY", help="Its API key. Default: the first of FLEET_API_KEYS.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def command(ctx: click.Context, /, url: str | None, api_key: str | None, as_json: bool) -> None:
    """How a running fleet stands: health, servers, risk, alerts, forecast, model, window."""
    from cli.fleet.client import make_client
    from forecastd.settings import load_valid_settings

    settings, _ = load_valid_settings(**(ctx.obj or {}))
    ctx.exit(_show_status(make_client(settings, url, api_key), as_json=as_json))


def _show_status(client: FleetClient, *, as_json: bool) -> int:
    """Print how the service stands; gives the exit code."""
    from cli.fleet.schemas import AlertsView, RisksView, StatusView, parse_response
    from cli.fleet.status_screen import MAX_ROWS, status_screen
    from cli.rows import console

    documents = {
        "status": client.get("/status"),
        "risk": client.get("/risk", top=MAX_ROWS),
        "alerts": client.get("/alerts"),
    }
    status = parse_response(client, StatusView, "/status", documents["status"])
    code = HEALTHY if status.health.ok else UNHEALTHY
    if as_json:
        click.echo(json.dumps({**documents, "exit_code": code}))
        return code
    risks = parse_response(client, RisksView, "/risk", documents["risk"])
    alerts = parse_response(client, AlertsView, "/alerts", documents["alerts"])
    console().print(status_screen(client.name, status, risks, alerts))
    return code
