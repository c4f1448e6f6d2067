"""How a simulation looks: one line that changes on a terminal, a line a minute elsewhere, and what came of it at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click
from rich.console import Console
from rich.status import Status
from rich.text import Text

from cli.screen import console, row
from forecastd.clock import iso
from forecastd.fleet.simulator.feeds import DUPLICATE, TAKEN
from forecastd.fleet.simulator.simulation import Plan
from forecastd.fleet.simulator.tally import Tally

EVERY = 60.0  # seconds between two lines where there is no terminal


class SimulationScreen:
    """Tells how far a simulation is, on stderr, and what came of it, on stdout. With `quiet` that is one JSON object."""

    def __init__(self, service: str, plan: Plan, *, quiet: bool) -> None:
        self._service, self._plan, self._quiet = service, plan, quiet
        self._out, self._beside = console(), Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._told = 0.0

    def __enter__(self) -> SimulationScreen:
        plan = self._plan
        told = f"{plan.servers} servers, {plan.scenario}, seed {plan.seed}, to {self._service}"
        if not self._quiet:
            self._beside.print(row("sending", Text(told)))
            if self._beside.is_terminal:
                self._status = Status("", console=self._beside, spinner="line")
                self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def tell(self, text: str) -> None:
        """A sentence on the service: also beside a JSON object, as it is no part of it."""
        self._beside.print(row("service", Text(text)))

    def moved(self, tally: Tally, until: float) -> None:
        """Rows up to this time were sent."""
        if self._quiet:
            return
        told = f"up to {iso(until)}, {tally.rows:,} rows in {tally.seconds:.0f} s"
        if self._status is not None:
            self._status.update(Text(told))
        elif tally.seconds - self._told >= EVERY:
            self._told = tally.seconds
            self._beside.print(row("sent", Text(told)))

    def result(self, tally: Tally) -> None:
        """What was sent, what came of it, and whether that is what should have."""
        if self._status is not None:
            self._status.stop()
        if self._quiet:
            click.echo(json.dumps(tally.as_json()))
            return
        for label, text in _lines(tally):
            self._out.print(row(label, Text(text)))


def _lines(tally: Tally) -> list[tuple[str, str]]:
    speed = tally.rows / tally.seconds if tally.seconds else 0.0
    found = [
        ("sent", f"{tally.rows:,} rows of {tally.ticks:,} ticks in {tally.feeds:,} feeds, {speed:,.0f} rows a second"),
        ("taken", f"{tally.taken:,}, and {tally.duplicates:,} that were there already"),
    ]
    if tally.joined or tally.left:
        found.append(("servers", f"{tally.left} left, {tally.joined} came"))
    if tally.before_window:
        found.append(("too old", f"{tally.before_window:,} rows of the past were before the service's window"))
    if tally.tries:
        found.append(("again", f"{tally.tries} requests had to be made again"))
    refused = {code: count for code, count in tally.refused.items() if count}
    due = {code: count for code, count in tally.due.items() if code not in {TAKEN, DUPLICATE}}
    if tally.bad or refused:
        found += [("refused", _counts(refused)), ("expected", _counts(due))]
    if tally.bad:
        found.append(("bad rows", _counts(tally.bad)))
    found += [("surprise", told) for told in tally.surprises]
    found.append(
        (
            "result",
            "as expected" if tally.as_expected else f"{tally.surprised} feeds were judged otherwise than expected",
        )
    )
    return found


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(found.items())) or "none"
