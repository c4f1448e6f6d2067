"""A simulation: sends the rows of a simulated fleet to a real service, at the pace of the service's clock.

Invariant: the past is not a special case. Every tick up to the service's current one that was not sent yet is sent; a
backfill only starts earlier, and rows that became due while the service was unavailable are sent in the same way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import Any, TypeVar

from forecastd.clock import Clock
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.fleet.simulator import noise
from forecastd.fleet.simulator.bad_records import bad_records
from forecastd.fleet.simulator.client import BodyTooLarge, FeedClient, FleetUnavailable, ServiceTime
from forecastd.fleet.simulator.faults import Scenario
from forecastd.fleet.simulator.feeds import (
    EncodedRecord,
    FeedFormat,
    count_expected,
    encode_body,
    encode_records,
    to_plain_records,
)
from forecastd.fleet.simulator.fleet import Simulator
from forecastd.fleet.simulator.presence import PresenceModel
from forecastd.fleet.simulator.tally import SimulationTally
from forecastd.runtime.retry import backoff_seconds

T = TypeVar("T")
MAX_RECORDS = 2_000  # per feed: well below a megabyte
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.2, 10.0  # between two attempts
CLOCK_SYNC_SECONDS = 60.0  # between two reads of the service's clock


@dataclass(frozen=True)
class SimulationPlan:
    """The parameters of a simulation.

    `speed`: the required speed of the service's clock; None accepts any. `backfill`: minutes of the past that are
    sent first. `duration`: seconds after the backfill; None for no end. `join_leave`: servers per minute that leave
    and come back. `bad`: bad rows per good row, 0 to 1. `patience`: seconds without a response after which the
    simulation gives up.
    """

    servers: int = 20
    scenario: Scenario = "healthy"
    seed: int = 0
    speed: float | None = None
    backfill: float = 0.0
    duration: float | None = None
    kind: FeedFormat = "json"
    join_leave: float = 0.0
    bad: float = 0.0
    patience: float = 300.0


class Simulation:
    """One run of a plan. `stop` ends it.

    `report` is called with messages for the user, `on_progress` with the counts and the time up to which rows were
    sent.
    """

    def __init__(
        self, plan: SimulationPlan, client: FeedClient, clock: Clock, stop: Event, *, report: Callable[[str], None],
        on_progress: Callable[[SimulationTally, float], None],
    ) -> None:  # fmt: skip
        self.plan, self.tally = plan, SimulationTally()
        self._client, self._clock, self._stop = client, clock, stop
        self._report, self._on_progress = report, on_progress
        self._started_at = self._last_response_at = self._last_sync_at = clock.monotonic()
        self._present_servers: Any = None

    def run(self) -> SimulationTally:
        """Send until the end of the plan or until `stop` is set.

        Raises:
            NeedsHuman: the service refuses permanently, or its clock has another speed than the plan.
            RetryLater: the service did not respond for the patience of the plan.
        """
        with contextlib.suppress(_Stopped):
            self._run()
        self.tally.seconds = self._clock.monotonic() - self._started_at
        return self.tally

    def _run(self) -> None:
        plan = self.plan
        self._sync_clock()
        if plan.speed is not None and plan.speed != self._service.speed:
            raise NeedsHuman(
                f"The clock of {self._client.name} runs at speed {self._service.speed:g}, not {plan.speed:g}. "
                "Start the service with the same --speed, or omit --speed here to follow the service."
            )
        start = self._current_tick()
        self._fleet = Simulator(plan.seed, plan.servers, plan.scenario, self._service.step, start=start)
        self._presence = PresenceModel(noise.keys(plan.seed, plan.servers), plan.join_leave, self._service.step)
        tick = start - round(plan.backfill * 60 / self._service.step)
        live = start  # the first tick after the backfill
        live_since: float | None = None
        while not self._stop.is_set():
            if tick >= live and live_since is None:
                live_since = self._clock.monotonic()
            if live_since is not None and self._is_over(live_since):
                return
            current = self._current_tick()
            if tick > current + 1:
                self._report("The service's clock was set back; continuing from its current tick.")
                tick = current + 1
            if tick > current:
                self._wait(tick, live_since)
                continue
            is_past = tick < live
            last = min(live - 1 if is_past else current, tick + max(1, MAX_RECORDS // plan.servers) - 1)
            self._send(tick, last, is_past=is_past)
            tick = last + 1

    def _is_over(self, since: float) -> bool:
        return self.plan.duration is not None and self._clock.monotonic() - since >= self.plan.duration

    def _current_tick(self) -> int:
        """The current tick of the service's clock."""
        return int(self._now() // self._service.step)

    def _now(self) -> float:
        return self._service.now + (self._clock.monotonic() - self._last_sync_at) * self._service.speed

    def _sync_clock(self) -> None:
        self._service: ServiceTime = self._call_with_retries(self._client.get_time)
        self._last_sync_at = self._clock.monotonic()

    def _wait(self, tick: int, live_since: float | None) -> None:
        """Wait until the tick begins, the plan ends, or the service's clock must be read again."""
        now = self._clock.monotonic()
        if now - self._last_sync_at > CLOCK_SYNC_SECONDS:
            self._sync_clock()
            return
        seconds = (tick * self._service.step - self._now()) / self._service.speed
        if self.plan.duration is not None and live_since is not None:
            seconds = min(seconds, live_since + self.plan.duration - now)
        self._stop.wait(max(0.001, seconds))

    def _send(self, first: int, last: int, *, is_past: bool) -> None:
        encoded: list[EncodedRecord] = []
        for tick in range(first, last + 1):
            encoded += self._records(tick)
        for begin in range(0, len(encoded), MAX_RECORDS):
            self._send_records(encoded[begin : begin + MAX_RECORDS], is_past=is_past)
        self.tally.ticks += last - first + 1
        lag_seconds = self._now() - (last + 1) * self._service.step
        if not is_past:
            self.tally.max_lag_seconds = max(self.tally.max_lag_seconds, lag_seconds)
        self.tally.seconds = self._clock.monotonic() - self._started_at
        self._on_progress(self.tally, (last + 1) * self._service.step)

    def _records(self, tick: int) -> list[EncodedRecord]:
        """The records of one tick: those of the present servers, and the bad rows."""
        present = self._presence.present(tick)
        if self._present_servers is not None:
            self.tally.joined += int((present & ~self._present_servers).sum())
            self.tally.left += int((~present & self._present_servers).sum())
        self._present_servers = present
        rows = self._fleet.rows(tick).filter(present)
        encoded = encode_records(rows)
        if not self.plan.bad:
            return encoded
        for index, name, record in reversed(
            bad_records(to_plain_records(rows), self.plan.bad, self.plan.kind, hash((self.plan.seed, tick)))
        ):
            encoded.insert(index + 1, record)
            self.tally.bad[name] += 1
        return encoded

    def _send_records(self, encoded: list[EncodedRecord], *, is_past: bool) -> None:
        if not encoded:
            return
        text, content_type = encode_body(encoded, self.plan.kind)
        retry = _RetryState()
        try:
            response = self._call_with_retries(lambda: self._client.send(text, content_type), retry)
        except BodyTooLarge as error:
            if len(encoded) == 1:
                raise NeedsHuman(f"{self._client.name} refuses even a single row: {error}") from None
            half = len(encoded) // 2
            self._send_records(encoded[:half], is_past=is_past)
            self._send_records(encoded[half:], is_past=is_past)
            return
        try:
            self.tally.record(count_expected(encoded), response, resent=retry.maybe_accepted, is_past=is_past)
        except (KeyError, TypeError, ValueError):
            raise NeedsHuman(
                f"{self._client.name} responds to a feed, but not as a fleet. Check the address."
            ) from None
        if retry.retries:  # it was unavailable: its clock may have changed
            self._sync_clock()

    def _call_with_retries(self, call: Callable[[], T], retry: _RetryState | None = None) -> T:
        """The result of `call`, which is retried with increasing pauses."""
        retry = retry or _RetryState()
        failures, last_message = 0, ""
        while True:
            try:
                result = call()
            except FleetUnavailable as error:
                retry.retries += 1
                retry.maybe_accepted |= error.maybe_accepted
                self.tally.retries += 1
                failure, seconds = error, error.retry_after_seconds
            else:
                now = self._clock.monotonic()
                if last_message:
                    self._report(f"{self._client.name} responds again after {now - self._last_response_at:.1f} s.")
                self._last_response_at = now
                return result
            if str(failure) != last_message:
                last_message = str(failure)
                self._report(f"{last_message} Retrying.")
            if self._clock.monotonic() - self._last_response_at > self.plan.patience:
                raise RetryLater(f"{failure} Gave up after {self.plan.patience:g} s without a response.")
            failures += 1
            if self._stop.wait(max(seconds or 0.0, backoff_seconds(failures, MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS))):
                raise _Stopped


@dataclass
class _RetryState:
    """The retries of a request, and whether an earlier attempt may have been accepted."""

    retries: int = 0
    maybe_accepted: bool = False


class _Stopped(Exception):
    """`stop` was set."""
