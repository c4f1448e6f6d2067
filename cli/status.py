"""`status`: what the daemon of this state directory does, from any other shell."""

from __future__ import annotations

import contextlib
from pathlib import Path
from threading import Event
from typing import Any

import click


@click.command(name="status")
@click.option("--watch", is_flag=True, help="Show it anew all the time, until Ctrl-C.")
@click.option("--interval", type=click.FloatRange(min=0.1), default=2.0, show_default=True, metavar="SECONDS",
              help="How often, with --watch.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout; with --watch, one a line.")
@click.pass_context
def command(ctx: click.Context, /, watch: bool, interval: float, as_json: bool) -> None:
    """What the daemon does: cycles, windows, endpoints, model, balance, health.

    Reads what the daemon writes below STATE_DIR and touches none of its locks. Ends with 0 when it runs and is healthy, 6
    when it runs and is not, 3 when none runs; with --watch by what was seen last.
    """
    from cli.live import repeat, show_live
    from cli.signals import single_interrupt
    from cli.status_view import StatusViewer

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
    """Where state is kept; what else is wrong with the settings does not matter here."""
    from forecastd.errors import NeedsHuman
    from forecastd.settings import load_valid_settings

    settings, problems = load_valid_settings(**(shared or {}))
    if problem := problems.get("STATE_DIR") or problems.get("STATE_DIRECTORY"):
        raise NeedsHuman(f"STATE_DIR does not fit: {problem}.")
    return settings.state_path
