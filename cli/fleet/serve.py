"""`fleet serve`: serve a fleet over HTTP until it is stopped."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, NoReturn

import click

from cli.options import setting_option
from forecastd.clock import ScaledClock, from_iso
from forecastd.errors import require_extra
from forecastd.logs import configure, install_hooks

if TYPE_CHECKING:
    from forecastd.fleet.demo import DemoOptions  # with numpy and the simulator


@click.command(name="serve")
@setting_option("--host", "FLEET_HOST", "Address to listen on; other machines need an API key.", metavar="ADDRESS")
@setting_option("--port", "FLEET_PORT", "Port to listen on; 0 takes a free one.", type=click.IntRange(0, 65535))
@setting_option("--model", "FLEET_MODEL")
@setting_option("--engine", "FLEET_ENGINE", "The engine that runs the model.",
                type=click.Choice(["auto", "library", "fused", "stream", "onnx"]))  # fmt: skip
@setting_option("--step", "FLEET_STEP", "Seconds per tick; must be that of the model.", type=click.IntRange(1, 3600))
@setting_option("--state-dir")
@setting_option("--log-dir")
@click.option("--demo", is_flag=True, help="Simulate the servers; no state is kept.")
@click.option(
    "--servers", type=click.IntRange(1, 5000), metavar="N", help="With --demo: number of servers (default: 20)."
)
@click.option("--scenario", type=click.Choice(["healthy", "degrading", "critical", "cascade", "varied"]),
              help="With --demo: what happens to them (default: degrading).")  # fmt: skip
@click.option("--speed", type=click.FloatRange(0, 1000, min_open=True), default=1.0, show_default=True,
              help="Speed of the clock, for rehearsals; uses its own state.")  # fmt: skip
@click.option("--since", metavar="ISO", help="With --speed: the time at which both clocks agree (default: now).")
@click.option("-v", "--verbose", is_flag=True, help="Log more, with tracebacks.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Serve a fleet until SIGTERM or Ctrl-C: POST /feed ingests rows, each tick is forecast.

    The API documentation is at /docs and /openapi.json of the printed address.
    """
    demo, clock, verbose = _make_demo(ctx, options), _make_clock(ctx, options), options.pop("verbose")
    shared = {name: value for name, value in (ctx.obj or {}).items() if options.get(name) is None}
    _serve({**options, **shared}, clock, demo, verbose=verbose)


def _make_demo(ctx: click.Context, options: dict[str, Any]) -> DemoOptions | None:
    """The options of the simulation, removed from `options`; None without --demo."""
    from forecastd.fleet.demo import DemoOptions

    is_demo = options.pop("demo")
    demo_options = {name: value for name in ("servers", "scenario") if (value := options.pop(name)) is not None}
    if demo_options and not is_demo:
        flags = [f"--{name}" for name in demo_options]
        effect = "has no effect" if len(flags) == 1 else "have no effect"
        raise click.UsageError(f"{', '.join(flags)} {effect} without --demo.", ctx)
    return DemoOptions(**demo_options) if is_demo else None


def _make_clock(ctx: click.Context, options: dict[str, Any]) -> ScaledClock:
    """The clock, with its options removed from `options`."""
    speed, since = options.pop("speed"), options.pop("since")
    if since is not None and speed == 1:
        raise click.UsageError("--since has no effect without --speed.", ctx)
    try:
        return ScaledClock(speed, since=None if since is None else from_iso(since))
    except ValueError as error:
        raise click.UsageError(f"--speed, --since: {error}.", ctx) from None


def _serve(options: dict[str, Any], clock: ScaledClock, demo: DemoOptions | None, *, verbose: bool) -> NoReturn:
    require_extra("fleet", "The HTTP server of the fleet")
    from forecastd.fleet.serve import LOG_NAME, serve  # with FastAPI and uvicorn
    from forecastd.settings import load_settings

    settings = load_settings(**options)
    configure(
        settings.log_path, verbose=verbose, secrets=settings.secret_values, json=settings.files.log_format == "json",
        console_level=logging.INFO, timestamps=True, file_name=LOG_NAME,
    )  # fmt: skip
    install_hooks()
    code = serve(settings, clock, demo)
    logging.shutdown()
    os._exit(code)  # skip the interpreter's shutdown: freeing the memory of a large fleet takes half a second
