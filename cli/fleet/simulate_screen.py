"""How a simulation looks: one line that changes on a terminal, a line a minute elsewhere, and what came of it at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping

import click
from rich.console import Console
from rich.status import Status
from rich.text import Text

from cli.rows import console, row
from forecastd.clock import to_iso
from forecastd.fleet.simulator.feeds import ACCEPTED, DUPLICATE
from forecastd.fleet.simulator.simulation import SimulationPlan
from forecastd.fleet.simulator.tally import SimulationTally

LINE_INTERVAL_SECONDS = 60.0  # seconds between two lines where there is no terminal


class SimulationScreen:
    """Tells how far a simulation is, on stderr, and what came of it, on stdout. With `quiet` that is one JSON object."""

    def __init__(self, service: str, plan: SimulationPlan, *, quiet: bool) -> None:
        self._service, self._plan, self._quiet = service, plan, quiet
        self._stdout, self._stderr = console(), Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._last_line_seconds = 0.0

    def __enter__(self) -> SimulationScreen:
        plan = self._plan
        line = f"{plan.servers} servers, {plan.scenario}, seed {plan.seed}, to {self._service}"
        if not self._quiet:
            self._stderr.print(row("sending", Text(line)))
            if self._stderr.is_terminal:
                self._status = Status("", console=self._stderr, spinner="line")
                self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def report(self, text: str) -> None:
        """A sentence on the service: also beside a JSON object, as it is no part of it."""
        self._stderr.print(row("service", Text(text)))

    def on_progress(self, tally: SimulationTally, until: float) -> None:
        """Rows up to this time were sent."""
        if self._quiet:
            return
        line = f"up to {to_iso(until)}, {tally.rows:,} rows in {tally.seconds:.0f} s"
        if self._status is not None:
            self._status.update(Text(line))
        elif tally.seconds - self._last_line_seconds >= LINE_INTERVAL_SECONDS:
            self._last_line_seconds = tally.seconds
            self._stderr.print(row("sent", Text(line)))

    def show_result(self, tally: SimulationTally) -> None:
        """What was sent, what came of it, and whether that is what should have."""
        if self._status is not None:
            self._status.stop()
        if self._quiet:
            click.echo(json.dumps(tally.as_json()))
            return
        for label, text in _lines(tally):
            self._stdout.print(row(label, Text(text)))


def _lines(tally: SimulationTally) -> list[tuple[str, str]]:
    speed = tally.rows / tally.seconds if tally.seconds else 0.0
    lines = [
        ("sent", f"{tally.rows:,} rows of {tally.ticks:,} ticks in {tally.feeds:,} feeds, {speed:,.0f} rows a second"),
        ("taken", f"{tally.accepted:,}, and {tally.duplicates:,} that were there already"),
    ]
    if tally.joined or tally.left:
        lines.append(("servers", f"{tally.left} left, {tally.joined} came"))
    if tally.before_window:
        lines.append(("too old", f"{tally.before_window:,} rows of the past were before the service's window"))
    if tally.retries:
        lines.append(("again", f"{tally.retries} requests had to be made again"))
    refused = {code: count for code, count in tally.refused.items() if count}
    expected = {code: count for code, count in tally.expected.items() if code not in {ACCEPTED, DUPLICATE}}
    if tally.bad or refused:
        lines += [("refused", _format_counts(refused)), ("expected", _format_counts(expected))]
    if tally.bad:
        lines.append(("bad rows", _format_counts(tally.bad)))
    lines += [("surprise", line) for line in tally.mismatches]
    lines.append(
        (
            "result",
            "as expected"
            if tally.as_expected
            else f"{tally.mismatched_feeds} feeds were judged otherwise than expected",
        )
    )
    return lines


def _format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none"
