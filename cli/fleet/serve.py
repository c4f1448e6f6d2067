"""`fleet serve`: options in, log lines out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.main import setting

if TYPE_CHECKING:
    from forecastd.fleet.demo import Demo


@click.command(name="serve")
@setting("--host", "FLEET_HOST", "Where to listen; beyond this machine only with API keys.", metavar="ADDRESS")
@setting("--port", "FLEET_PORT", "The port; 0 takes a free one.", type=click.IntRange(0, 65535))
@setting("--model", "FLEET_MODEL", "The bundle that forecasts.", type=click.Path(path_type=Path), metavar="DIR")
@setting(
    "--engine", "FLEET_ENGINE", "How it is run.", type=click.Choice(["auto", "library", "fused", "stream", "onnx"])
)
@setting("--step", "FLEET_STEP", "Seconds a tick; the model's own.", type=click.IntRange(1, 3600))
@setting("--state-dir", "STATE_DIR", "Where state is kept.", type=click.Path(path_type=Path), metavar="DIR")
@setting("--log-dir", "LOG_DIR", "Where the log is written.", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--demo", is_flag=True, help="Make the servers up; nothing of it is kept.")
@click.option("--servers", type=click.IntRange(1, 5000), default=20, show_default=True, help="With --demo: how many.")
@click.option("--scenario", type=click.Choice(["healthy", "degrading", "critical", "cascade", "varied"]),
              default="degrading", show_default=True, help="With --demo: what happens to them.")  # fmt: skip
@click.option("--speed", type=click.FloatRange(0, 1000, min_open=True), default=1.0, show_default=True,
              help="How fast time goes, for rehearsals.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Tell more, tracebacks included.")
@click.pass_context
def command(
    ctx: click.Context, /, demo: bool, servers: int, scenario: Any, speed: float, verbose: bool, **options: Any
) -> None:
    """Serve a fleet until SIGTERM or Ctrl-C: rows in at POST /feed, a forecast after each tick.

    The API is described at /docs and /openapi.json of the address that it prints.
    """
    from forecastd.fleet.demo import Demo

    shared = {name: value for name, value in (ctx.obj or {}).items() if options.get(name) is None}
    made_up = Demo(servers, scenario) if demo else None
    ctx.exit(_serve({**options, **shared}, made_up, speed=speed, verbose=verbose))


def _serve(options: dict[str, Any], demo: Demo | None, *, speed: float, verbose: bool) -> int:
    import logging

    from forecastd.clock import ScaledClock
    from forecastd.fleet.server import LOG_NAME, serve
    from forecastd.logs import configure, install_hooks
    from forecastd.settings import load_settings

    settings = load_settings(**options)
    configure(
        settings.logs, verbose=verbose, secrets=settings.secrets, json=settings.log_format == "json",
        console=logging.INFO, times=True, name=LOG_NAME,
    )  # fmt: skip
    install_hooks()
    return serve(settings, ScaledClock(speed), demo)
