"""One look at a daemon from outside: what it wrote of itself, whether it is well, and what the ledger has when it is gone.

The one thing to know before changing it: the daemon may be in any state, so nothing here waits for it or takes a lock.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Group, RenderableType
from rich.text import Text

from cli.pulse_screen import clock_time, pulse_screen
from cli.screen import console, row
from forecastd.clock import SystemClock, iso
from forecastd.errors import ForecastdError
from forecastd.health import Health, judge
from forecastd.pulsefile import Seen, read_pulse

if TYPE_CHECKING:
    from forecastd.bookkeeping import Epoch

HEALTHY, NOT_RUNNING, UNHEALTHY = 0, 3, 6
EPOCHS = 5  # of the ledger's, the newest


@dataclass(frozen=True)
class Look:
    """What was found at `now` (unix seconds). `epochs` of the ledger are looked up only where no daemon runs."""

    now: float
    seen: Seen | None
    health: Health
    epochs: tuple[Epoch, ...] = ()

    @property
    def running(self) -> bool:
        """Whether a daemon runs, as far as can be told."""
        return self.seen is not None and self.seen.alive is not False

    @property
    def exit_code(self) -> int:
        """What `status` ends with."""
        if not self.running:
            return NOT_RUNNING
        return HEALTHY if self.health.ok else UNHEALTHY

    def as_json(self) -> dict[str, Any]:
        """The whole as one JSON object."""
        return {
            "running": self.running,
            "alive": None if self.seen is None else self.seen.alive,
            "health": asdict(self.health),
            "pulse": None if self.seen is None else self.seen.pulse.as_json(),
            "epochs": [epoch.as_row() for epoch in self.epochs],
            "exit_code": self.exit_code,
        }


class Looking:
    """Looks again and again; `exit_code` is that of the last look."""

    def __init__(self, state: Path) -> None:
        self._state, self._clock = state, SystemClock()
        self.exit_code = HEALTHY

    def print(self, *, as_json: bool) -> None:
        """Look, and print what was found."""
        if as_json:
            click.echo(json.dumps(self._look().as_json()))
        else:
            console().print(self.screen())

    def screen(self) -> RenderableType:
        """Look, and show what was found."""
        look = self._look()
        lines: list[RenderableType] = [row("now", Text(iso(look.now)))]
        if look.seen is None:
            lines.append(row("daemon", Text(f"none has run with the state in {self._state}")))
        else:
            lines.append(pulse_screen(look.seen.pulse, look.now, alive=look.seen.alive))
        if not look.running:
            lines += ["", *(_epoch(place, epoch, look.now) for place, epoch in enumerate(look.epochs))]
            lines.append(row("next", Text("start `forecastd --daemon`, or the service that runs it")))
        return Group(*lines)

    def _look(self) -> Look:
        now, seen = self._clock.now(), read_pulse(self._state)
        if seen is None:
            found = Look(now, None, Health(False, ("No daemon has run with this STATE_DIR.",)))
        else:
            found = Look(now, seen, judge(seen.pulse, now, alive=seen.alive))
        if not found.running:
            found = Look(now, seen, found.health, _newest(self._state))
        self.exit_code = found.exit_code
        return found


def _newest(state: Path) -> tuple[Epoch, ...]:
    """The newest epochs of the ledger; none where it cannot be read: `ledger list` tells why."""
    from forecastd.bookkeeping import epochs
    from forecastd.ledgercopy import read_ledger

    try:
        with read_ledger(state / "ledger.sqlite") as ledger:
            return tuple(epochs(ledger, limit=EPOCHS))
    except ForecastdError:
        return ()


def _epoch(place: int, epoch: Epoch, now: float) -> RenderableType:
    chain_id, topic_id, nonce, _ = epoch.entry.key
    when = clock_time(epoch.entry.first_at, now)
    text = f"{when}  {chain_id}, topic {topic_id}, nonce {nonce}: {epoch.entry.row.state}"
    return row("" if place else "ledger", Text(text))
