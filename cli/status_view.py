"""The state of a daemon as seen from another process: its status file, its health, and the ledger when none runs.

Invariant: the daemon may be in any state, so nothing here waits for it or takes a lock.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.text import Text

from cli.rows import console, row
from cli.status_screen import format_time, status_screen
from forecastd.clock import SystemClock, to_iso
from forecastd.errors import ExitCode, ForecastdError
from forecastd.ledger.export import LedgerEpoch, find_epochs
from forecastd.ledger.snapshot import open_snapshot
from forecastd.status import DaemonHealth, check_health
from forecastd.status.file import StoredStatus, read_status

MAX_EPOCHS = 5  # the newest of the ledger


@dataclass(frozen=True)
class DaemonView:
    """What was read at `now` (unix seconds). `epochs` of the ledger are read only when no daemon runs."""

    now: float
    daemon: StoredStatus | None
    health: DaemonHealth
    epochs: tuple[LedgerEpoch, ...] = ()

    @property
    def is_running(self) -> bool:
        """Whether a daemon runs; True when that cannot be determined."""
        return self.daemon is not None and self.daemon.alive is not False

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
        if daemon is None:
            view = DaemonView(now, None, DaemonHealth(False, ("No daemon has run with this STATE_DIR.",)))
        else:
            view = DaemonView(now, daemon, check_health(daemon.status, now, alive=daemon.alive))
        if not view.is_running:
            view = DaemonView(now, daemon, view.health, _newest_epochs(self._state))
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
