"""`status`: show the state of the daemon of this STATE_DIR, from its status file, and from the ledger when none runs.

Invariant: the daemon may be in any state, so nothing here waits for it or takes a lock.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.text import Text

from cli.live import repeat, show_live
from cli.options import json_option
from cli.rows import console, row
from cli.signals import single_interrupt
from cli.status_screen import format_time, status_screen
from forecastd.clock import SystemClock, to_iso
from forecastd.errors import ExitCode, ForecastdError, NeedsHuman
from forecastd.ledger.export import LedgerEpoch, find_epochs
from forecastd.ledger.snapshot import open_snapshot
from forecastd.settings import load_valid_settings
from forecastd.status import DaemonHealth, check_health
from forecastd.status.file import StoredStatus, read_status

MAX_EPOCHS = 5  # the newest of the ledger


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


@dataclass(frozen=True)
class DaemonView:
    """What was read at `now` (unix seconds). `is_running` is true when that cannot be determined.

    `epochs` of the ledger are read only when no daemon runs.
    """

    now: float
    daemon: StoredStatus | None
    health: DaemonHealth
    is_running: bool
    epochs: tuple[LedgerEpoch, ...]

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of `status`."""
        if not self.is_running:
            return ExitCode.NOTHING_TO_DO
        return ExitCode.SUCCESS if self.health.ok else ExitCode.TEMPORARY

    def as_json(self) -> dict[str, Any]:
        """The view as one JSON object."""
        return {
            "running": self.is_running,
            "alive": None if self.daemon is None else self.daemon.alive,
            "health": asdict(self.health),
            "status": None if self.daemon is None else self.daemon.status.to_dict(),
            "epochs": [epoch.as_row() for epoch in self.epochs],
            "exit_code": self.exit_code,
        }


class StatusViewer:
    """Reads and shows the state repeatedly; `exit_code` is that of the last time."""

    def __init__(self, state: Path) -> None:
        self._state, self._clock = state, SystemClock()
        self.exit_code = ExitCode.SUCCESS

    def print(self, *, as_json: bool) -> None:
        """Read the state and print it."""
        if as_json:
            click.echo(json.dumps(self._read().as_json()))
        else:
            console().print(self.render())

    def render(self) -> RenderableType:
        """Read the state and render it."""
        view = self._read()
        lines: list[RenderableType] = [row("now", Text(to_iso(view.now)))]
        if view.daemon is None:
            lines.append(row("daemon", Text(f"none has run with the state directory {self._state}")))
        else:
            lines.append(status_screen(view.daemon.status, view.now, alive=view.daemon.alive))
        if not view.is_running:
            lines += ["", *(_epoch_row(index, epoch, view.now) for index, epoch in enumerate(view.epochs))]
            lines.append(row("next", Text("start `forecastd --daemon` or its service")))
        return Group(*lines)

    def _read(self) -> DaemonView:
        now, daemon = self._clock.now(), read_status(self._state)
        health = DaemonHealth(False, ("No daemon has run with this STATE_DIR.",))
        if daemon is not None:
            health = check_health(daemon.status, now, alive=daemon.alive)
        is_running = daemon is not None and daemon.alive is not False
        view = DaemonView(now, daemon, health, is_running, () if is_running else _newest_epochs(self._state))
        self.exit_code = view.exit_code
        return view


def _newest_epochs(state: Path) -> tuple[LedgerEpoch, ...]:
    """The newest epochs of the ledger; empty when it cannot be read (`ledger list` prints the reason)."""
    try:
        with open_snapshot(state / "ledger.sqlite") as ledger:
            return tuple(find_epochs(ledger, limit=MAX_EPOCHS))
    except ForecastdError:
        return ()


def _epoch_row(index: int, epoch: LedgerEpoch, now: float) -> RenderableType:
    chain_id, topic_id, nonce, _ = epoch.entry.key
    time_text = format_time(epoch.entry.first_at, now)
    text = f"{time_text}  {chain_id}, topic {topic_id}, nonce {nonce}: {epoch.entry.row.state}"
    return row("" if index else "ledger", Text(text))
