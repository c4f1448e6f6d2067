"""`status`: show the state of the daemon of this STATE_DIR."""

from __future__ import annotations

import contextlib
from pathlib import Path
from threading import Event
from typing import Any

import click

from cli.live import repeat, show_live
from cli.options import json_option
from cli.signals import single_interrupt
from cli.status_view import StatusViewer
from forecastd.errors import NeedsHuman
from forecastd.settings import load_valid_settings


@click.command(name="status")
@click.option("--watch", is_flag=True, help="Refresh until Ctrl-C.")
@click.option("--interval", type=click.FloatRange(min=0.1), default=2.0, show_default=True, metavar="SECONDS",
              help="Time between two refreshes, with --watch.")  # fmt: skip
@json_option("One JSON object on stdout; with --watch, one per line.")
@click.pass_context
def command(ctx: click.Context, /, watch: bool, interval: float, as_json: bool) -> None:
    """Show the state of the daemon: cycles, windows, endpoints, model, balance and health.

    Reads the files that the daemon writes in STATE_DIR and takes none of its locks. The exit code is 0 when the daemon runs
    and is healthy, 6 when it runs and is unhealthy, and 3 when none runs; with --watch, that of the last refresh.
    """
    viewer, stop_event = StatusViewer(_state(ctx.obj)), Event()
    with contextlib.suppress(KeyboardInterrupt), single_interrupt():
        if not watch:
            viewer.print(as_json=as_json)
        elif as_json:
            repeat(lambda: viewer.print(as_json=True), stop_event, interval)
        else:
            show_live(viewer.render, stop_event, interval)
    ctx.exit(viewer.exit_code)


def _state(shared: dict[str, Any] | None) -> Path:
    """The state directory. Other invalid settings do not matter here."""
    settings, problems = load_valid_settings(**(shared or {}))
    if problem := problems.get("STATE_DIR") or problems.get("STATE_DIRECTORY"):
        raise NeedsHuman(f"STATE_DIR is invalid: {problem}.")
    return settings.state_path
