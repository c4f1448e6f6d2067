"""`fleet status`: how a running fleet stands, on one screen or as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from cli.options import SettingOption

if TYPE_CHECKING:
    from cli.fleet.asking import FleetService

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
    from cli.fleet.asking import service_of
    from forecastd.settings import load_fitting

    settings, _ = load_fitting(**(ctx.obj or {}))
    ctx.exit(_tell(service_of(settings, url, api_key), as_json=as_json))


def _tell(service: FleetService, *, as_json: bool) -> int:
    """Print how the service stands; gives the exit code."""
    from cli.fleet.screen import SHOWN, status_screen
    from cli.fleet.told import Alerts, Risks, Status, understood
    from cli.screen import console

    told = {"status": service.get("/status"), "risk": service.get("/risk", top=SHOWN), "alerts": service.get("/alerts")}
    status = understood(service, Status, "/status", told["status"])
    code = HEALTHY if status.health.ok else UNHEALTHY
    if as_json:
        click.echo(json.dumps({**told, "exit_code": code}))
        return code
    risks = understood(service, Risks, "/risk", told["risk"])
    alerts = understood(service, Alerts, "/alerts", told["alerts"])
    console().print(status_screen(service.name, status, risks, alerts))
    return code
