"""`fleet serve`: options in, log lines out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from cli.main import setting_option

if TYPE_CHECKING:
    from forecastd.clock import ScaledClock
    from forecastd.fleet.demo import DemoOptions


@click.command(name="serve")
@setting_option("--host", "FLEET_HOST", "Where to listen; beyond this machine only with API keys.", metavar="ADDRESS")
@setting_option("--port", "FLEET_PORT", "The port; 0 takes a free one.", type=click.IntRange(0, 65535))
@setting_option("--model", "FLEET_MODEL", "The bundle that forecasts.", type=click.Path(path_type=Path), metavar="DIR")
@setting_option(
    "--engine", "FLEET_ENGINE", "How it is run.", type=click.Choice(["auto", "library", "fused", "stream", "onnx"])
)
@setting_option("--step", "FLEET_STEP", "Seconds a tick; the model's own.", type=click.IntRange(1, 3600))
@setting_option("--state-dir", "STATE_DIR", "Where state is kept.", type=click.Path(path_type=Path), metavar="DIR")
@setting_option("--log-dir", "LOG_DIR", "Where the log is written.", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--demo", is_flag=True, help="Make the servers up; nothing of it is kept.")
@click.option("--servers", type=click.IntRange(1, 5000), metavar="N", help="With --demo: how many; 20 by default.")
@click.option("--scenario", type=click.Choice(["healthy", "degrading", "critical", "cascade", "varied"]),
              help="With --demo: what happens to them; degrading by default.")  # fmt: skip
@click.option("--speed", type=click.FloatRange(0, 1000, min_open=True), default=1.0, show_default=True,
              help="How fast time goes, for rehearsals; with a state of its own.")  # fmt: skip
@click.option("--since", metavar="ISO", help="With --speed: when both clocks showed the same. Default: now.")
@click.option("-v", "--verbose", is_flag=True, help="Tell more, tracebacks included.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Serve a fleet until SIGTERM or Ctrl-C: rows in at POST /feed, a forecast after each tick.

    The API is described at /docs and /openapi.json of the address that it prints.
    """
    demo, clock, verbose = _make_demo(ctx, options), _make_clock(ctx, options), options.pop("verbose")
    shared = {name: value for name, value in (ctx.obj or {}).items() if options.get(name) is None}
    _serve({**options, **shared}, clock, demo, verbose=verbose)


def _make_demo(ctx: click.Context, options: dict[str, Any]) -> DemoOptions | None:
    """What is made up, taken out of the options; None without --demo."""
    from forecastd.fleet.demo import DemoOptions

    is_demo = options.pop("demo")
    demo_options = {name: value for name in ("servers", "scenario") if (value := options.pop(name)) is not None}
    if demo_options and not is_demo:
        raise click.UsageError(
            f"{', '.join(f'--{name}' for name in demo_options)} would do nothing without --demo.", ctx
        )
    return DemoOptions(**demo_options) if is_demo else None


def _make_clock(ctx: click.Context, options: dict[str, Any]) -> ScaledClock:
    """The clock, taken out of the options."""
    from forecastd.clock import ScaledClock, from_iso

    speed, since = options.pop("speed"), options.pop("since")
    if since is not None and speed == 1:
        raise click.UsageError("--since would do nothing without --speed.", ctx)
    try:
        return ScaledClock(speed, since=None if since is None else from_iso(since))
    except ValueError as error:
        raise click.UsageError(f"--speed, --since: {error}.", ctx) from None


def _serve(options: dict[str, Any], clock: ScaledClock, demo: DemoOptions | None, *, verbose: bool) -> NoReturn:
    import logging
    import os

    from forecastd.fleet.serve import LOG_NAME, serve
    from forecastd.logs import configure, install_hooks
    from forecastd.settings import load_settings

    settings = load_settings(**options)
    configure(
        settings.log_path, verbose=verbose, secrets=settings.secret_values, json=settings.log_format == "json",
        console_level=logging.INFO, timestamps=True, file_name=LOG_NAME,
    )  # fmt: skip
    install_hooks()
    code = serve(settings, clock, demo)
    logging.shutdown()
    os._exit(code)  # nothing is left to do, and to free a large fleet's memory takes the interpreter half a second
