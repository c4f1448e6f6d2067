"""Runs a simulation and shows it: a live line on a terminal, else a line per minute, and the result at the end."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Event
from typing import Any

import click
from rich.console import Console
from rich.status import Status
from rich.text import Text

from cli.fleet.client import make_client
from cli.rows import console, row
from forecastd.clock import SystemClock, to_iso
from forecastd.errors import ExitCode
from forecastd.fleet.simulator.feeds import ACCEPTED, DUPLICATE
from forecastd.fleet.simulator.simulation import Simulation, SimulationPlan, SimulationTally
from forecastd.settings import load_settings

FEED_SECONDS = 30.0  # for a request and its response
LINE_INTERVAL_SECONDS = 60.0  # between two lines without a terminal


def run_simulation(
    options: Mapping[str, Any], url: str | None, api_key: str | None, *, as_json: bool, **plan_options: Any
) -> int:
    """Run a simulation until its end or a signal; return the exit code. `options`: overrides of the settings."""
    settings, plan = load_settings(**options), SimulationPlan(**plan_options)
    client = make_client(settings, url, api_key, seconds=FEED_SECONDS, keep_alive=True)
    with _stop_on_signal() as stop, SimulationScreen(client.name, plan, quiet=as_json) as screen:
        simulation = Simulation(
            plan, client, SystemClock(), stop, report=screen.report, on_progress=screen.on_progress
        )  # fmt: skip
        tally = simulation.run()
        screen.show_result(tally)
    return ExitCode.SUCCESS if tally.as_expected else ExitCode.REFUSED


class SimulationScreen:
    """Shows the progress of a simulation on stderr and its result on stdout.

    With `quiet`, the result is one JSON object.
    """

    def __init__(self, service: str, plan: SimulationPlan, *, quiet: bool) -> None:
        self._service, self._plan, self._quiet = service, plan, quiet
        self._stderr = Console(stderr=True, highlight=False)
        self._status = Status("", console=self._stderr, spinner="line")
        self._is_live = self._stderr.is_terminal and not quiet
        self._last_line_seconds = 0.0

    def __enter__(self) -> SimulationScreen:
        plan = self._plan
        if not self._quiet:
            line = f"{plan.servers} servers, {plan.scenario}, seed {plan.seed}, to {self._service}"
            self._stderr.print(row("sending", Text(line)))
        if self._is_live:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def report(self, text: str) -> None:
        """Print a message about the service to stderr, also with `quiet`."""
        self._stderr.print(row("service", Text(text)))

    def on_progress(self, tally: SimulationTally, until: float) -> None:
        """Show that all rows up to the time `until` were sent."""
        if self._quiet:
            return
        line = f"up to {to_iso(until)}, {tally.rows:,} rows in {tally.seconds:.0f} s"
        if self._is_live:
            self._status.update(Text(line))
        elif tally.seconds - self._last_line_seconds >= LINE_INTERVAL_SECONDS:
            self._last_line_seconds = tally.seconds
            self._stderr.print(row("sent", Text(line)))

    def show_result(self, tally: SimulationTally) -> None:
        """Print what was sent, the responses, and whether they are as expected."""
        self._status.stop()
        if self._quiet:
            click.echo(json.dumps(tally.as_json()))
            return
        for label, text in _lines(tally):
            if text:
                console().print(row(label, Text(text)))


def _lines(tally: SimulationTally) -> Iterator[tuple[str, str]]:
    """The labels and texts of the result; a text without content is empty."""
    speed = tally.rows / tally.seconds if tally.seconds else 0.0
    yield "sent", f"{tally.rows:,} rows of {tally.ticks:,} ticks in {tally.feeds:,} feeds, {speed:,.0f} rows/s"
    yield "accepted", f"{tally.accepted:,}, and {tally.duplicates:,} duplicates"
    yield "servers", f"{tally.left} left, {tally.joined} joined" if tally.joined or tally.left else ""
    old = f"{tally.before_window:,} rows were older than the service's window"
    yield "too old", old if tally.before_window else ""
    yield "retries", str(tally.retries or "")
    refused = {code: count for code, count in tally.refused.items() if count}
    if tally.bad or refused:
        expected = {code: count for code, count in tally.expected.items() if code not in {ACCEPTED, DUPLICATE}}
        yield "refused", _format_counts(refused)
        yield "expected", _format_counts(expected)
    yield "bad rows", _format_counts(tally.bad) if tally.bad else ""
    yield from (("mismatch", line) for line in tally.mismatches)
    feeds = "feed has" if tally.mismatched_feeds == 1 else "feeds have"
    yield "result", "as expected" if tally.as_expected else f"{tally.mismatched_feeds} {feeds} unexpected results"


def _format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none"


@contextmanager
def _stop_on_signal() -> Iterator[Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second one interrupts immediately."""
    stop = Event()

    def handle(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
