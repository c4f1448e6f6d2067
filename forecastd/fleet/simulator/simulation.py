"""A simulation: sends the rows of a simulated fleet to a real service, at the pace of the service's clock.

Invariant: the past is not a special case. Every tick up to the service's current one that was not sent yet is sent; a
backfill only starts earlier, and rows that became due while the service was unavailable are sent in the same way.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import inf
from threading import Event
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from forecastd.clock import Clock, from_iso
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.fleet.client import BodyTooLarge, FleetClient, FleetUnavailable
from forecastd.fleet.documents import StatusResponse
from forecastd.fleet.simulator import noise
from forecastd.fleet.simulator.faults import Scenario
from forecastd.fleet.simulator.feeds import (
    ACCEPTED,
    DUPLICATE,
    EncodedRecord,
    FeedFormat,
    bad_records,
    count_expected,
    encode_body,
    encode_records,
    to_plain_records,
)
from forecastd.fleet.simulator.fleet import Simulator
from forecastd.runtime.formatting import format_count
from forecastd.runtime.retry import backoff_seconds

T = TypeVar("T")
MAX_RECORDS = 2_000  # per feed: well below a megabyte
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.2, 10.0  # between two attempts
CLOCK_SYNC_SECONDS = 60.0  # between two reads of the service's clock
MAX_MISMATCHES = 20
OLD_CODE = "old"
_SLOT_SECONDS, _MAX_DELAY_SECONDS = 1_200, 600  # at most one absence per slot; it begins in the first half of the slot
_MIN_ABSENCE_SECONDS, _MAX_ABSENCE_SECONDS = 60, 580


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


class PresenceModel:
    """About `rate` servers per minute leave, each for one to ten minutes. `key`: the keys of the servers."""

    def __init__(self, key: noise.KeyArray, rate: float, step: int) -> None:
        self._key, self._step = noise.derive(key, 6_000), step
        self._absence_probability = min(0.9, rate * _SLOT_SECONDS / 60 / len(key))

    def present(self, tick: int) -> NDArray[np.bool_]:
        """[S] True for the servers that report at this tick."""
        seconds = tick * self._step
        slot = noise.mix(self._key + np.uint64(seconds // _SLOT_SECONDS))
        departure = noise.uniform(noise.mix(slot ^ np.uint64(1))) * _MAX_DELAY_SECONDS
        longest = _MAX_ABSENCE_SECONDS - _MIN_ABSENCE_SECONDS
        absence = _MIN_ABSENCE_SECONDS + longest * noise.uniform(noise.mix(slot ^ np.uint64(2)))
        elapsed = seconds % _SLOT_SECONDS
        is_absent = (elapsed >= departure) & (elapsed < departure + absence)
        return np.asarray(~((noise.uniform(slot) < self._absence_probability) & is_absent))


@dataclass
class SimulationTally:
    """Counts of one simulation: the responses of the service compared with the expected results.

    `expected`: the rows sent, by expected result. `bad`: the bad rows, by kind. `before_window`: the rows of the past
    that had left the window of the service when they arrived.
    """

    seconds: float = 0.0
    ticks: int = 0
    feeds: int = 0
    rows: int = 0
    accepted: int = 0
    duplicates: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    expected: Counter[str] = field(default_factory=lambda: Counter({ACCEPTED: 0, DUPLICATE: 0}))
    before_window: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    joined: int = 0
    left: int = 0
    max_lag_seconds: float = 0.0
    mismatches: list[str] = field(default_factory=list)
    mismatched_feeds: int = 0

    @property
    def as_expected(self) -> bool:
        """Whether every row had its expected result."""
        return not self.mismatched_feeds

    def record(self, expected: Counter[str], response: Mapping[str, Any], *, resent: bool, is_past: bool) -> None:
        """Record the response to a feed. `is_past`: its ticks are in the past and may have left the window by now.

        The rows of a feed that was sent twice (`resent`) may be duplicates, and so may rows of an earlier simulation.

        Raises:
            KeyError, TypeError, ValueError: the document is not a response to a feed.
        """
        accepted, duplicates, refused_total = (int(response[name]) for name in ("accepted", "duplicates", "refused"))
        reasons = [(str(reason["code"]), str(reason["reason"])) for reason in map(dict, response["reasons"])]
        counts = {str(code): int(count) for code, count in dict(response["counts"]).items()}
        due = Counter({code: count for code, count in expected.items() if code not in {ACCEPTED, DUPLICATE}})
        refused = Counter({code: counts.get(code, 0) for code in {code for code, _ in reasons} | due.keys()})
        valid, taken = expected[ACCEPTED] + expected[DUPLICATE], accepted + duplicates
        missed_duplicates = 0 if resent else expected[DUPLICATE] - duplicates
        sent, answered = expected.total(), taken + refused_total
        self.feeds += 1
        self.rows += sent
        self.accepted += accepted
        self.duplicates += duplicates
        self.expected.update(expected)
        old = refused[OLD_CODE] - due[OLD_CODE]
        missing = (due - refused).total() + valid - taken
        if is_past and taken <= valid and (refused - due).keys() <= {OLD_CODE} and old == missing:
            # Only rows that are too old by now have another result.
            self.before_window += old
            missed_duplicates -= valid - taken
            refused, taken = due, valid
        self.refused.update(+refused)
        mismatches = [
            f"{format_count(due[code], 'row')} should have been refused as {code}, {refused[code]} were"
            for code in sorted(due.keys() | refused.keys())
            if refused[code] != due[code]
        ]
        if missed_duplicates > 0:
            twice = format_count(expected[DUPLICATE], "row")
            mismatches.append(f"{twice} were sent twice, {duplicates} were counted as duplicates")
        if taken != valid:
            mismatches.append(f"{format_count(valid, 'row')} were valid, {taken} were accepted")
        if sent != answered:
            mismatches.append(f"{format_count(sent, 'row')} were sent, the response counts {answered}")
        if mismatches:
            self.mismatched_feeds += 1
            unexpected = [reason for code, reason in reasons if code not in expected][:1]
            new = [line for line in [*mismatches, *unexpected] if line not in self.mismatches]
            self.mismatches += new[: MAX_MISMATCHES - len(self.mismatches)]

    def as_json(self) -> dict[str, Any]:
        """The counts as a JSON document."""
        return {
            "as_expected": self.as_expected,
            **vars(self),
            **{name: dict(sorted(getattr(self, name).items())) for name in ("refused", "expected", "bad")},
            **{name: round(getattr(self, name), 3) for name in ("seconds", "max_lag_seconds")},
        }


@dataclass(frozen=True)
class ServiceTime:
    """The service's clock at a request: `now` in unix seconds, `step` in seconds per tick, and its `speed`."""

    now: float
    step: int
    speed: float


def read_time(client: FleetClient) -> ServiceTime:
    """The service's clock. Raises as the methods of `FleetClient` do."""
    status = client.fetch(StatusResponse, "/status")
    tick, step = status.tick, status.step_seconds
    if tick.newest >= 0 and tick.age_seconds is not None:  # precise to the millisecond, unlike `now`
        return ServiceTime((tick.newest + 1) * step + tick.age_seconds, step, status.speed)
    try:
        return ServiceTime(from_iso(status.now), step, status.speed)
    except ValueError:
        raise client.not_a_fleet("/status: now is not a time.") from None


class Simulation:
    """One run of a plan. `stop` ends it.

    `report` is called with messages for the user, `on_progress` with the counts and the time up to which rows were
    sent.
    """

    def __init__(
        self, plan: SimulationPlan, client: FleetClient, clock: Clock, stop: Event, *, report: Callable[[str], None],
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
        start = self._current_tick()  # the first tick after the backfill
        self._fleet = Simulator(plan.seed, plan.servers, plan.scenario, self._service.step, start=start)
        self._presence = PresenceModel(noise.keys(plan.seed, plan.servers), plan.join_leave, self._service.step)
        tick = start - round(plan.backfill * 60 / self._service.step)
        self._end = inf
        while not self._stop.is_set():
            if tick >= start and self._end == inf and plan.duration is not None:
                self._end = self._clock.monotonic() + plan.duration
            if self._clock.monotonic() >= self._end:
                return
            current = self._current_tick()
            if tick > current + 1:
                self._report("The service's clock was set back; continuing from its current tick.")
                tick = current + 1
            if tick > current:
                self._wait(tick)
                continue
            is_past = tick < start
            last = min(start - 1 if is_past else current, tick + max(1, MAX_RECORDS // plan.servers) - 1)
            self._send(tick, last, is_past=is_past)
            tick = last + 1

    def _current_tick(self) -> int:
        """The current tick of the service's clock."""
        return int(self._now() // self._service.step)

    def _now(self) -> float:
        return self._service.now + (self._clock.monotonic() - self._last_sync_at) * self._service.speed

    def _sync_clock(self) -> None:
        self._service, _ = self._call_with_retries(lambda: read_time(self._client))
        self._last_sync_at = self._clock.monotonic()

    def _wait(self, tick: int) -> None:
        """Wait until the tick begins, the plan ends, or the service's clock must be read again."""
        now = self._clock.monotonic()
        if now - self._last_sync_at > CLOCK_SYNC_SECONDS:
            self._sync_clock()
            return
        seconds = (tick * self._service.step - self._now()) / self._service.speed
        self._stop.wait(max(0.001, min(seconds, self._end - now)))

    def _send(self, first: int, last: int, *, is_past: bool) -> None:
        encoded = [record for tick in range(first, last + 1) for record in self._records(tick)]
        for begin in range(0, len(encoded), MAX_RECORDS):
            self._send_records(encoded[begin : begin + MAX_RECORDS], is_past=is_past)
        end = (last + 1) * self._service.step
        self.tally.ticks += last - first + 1
        if not is_past:
            self.tally.max_lag_seconds = max(self.tally.max_lag_seconds, self._now() - end)
        self.tally.seconds = self._clock.monotonic() - self._started_at
        self._on_progress(self.tally, end)

    def _records(self, tick: int) -> list[EncodedRecord]:
        """The records of one tick: those of the present servers, and the bad rows."""
        present = self._presence.present(tick)
        if self._present_servers is not None:
            self.tally.joined += int((present & ~self._present_servers).sum())
            self.tally.left += int((~present & self._present_servers).sum())
        self._present_servers = present
        plain = to_plain_records(self._fleet.rows(tick).filter(present))
        encoded = encode_records(plain)
        for index, name, record in reversed(
            bad_records(plain, self.plan.bad, self.plan.kind, hash((self.plan.seed, tick)))
        ):
            encoded.insert(index + 1, record)
            self.tally.bad[name] += 1
        return encoded

    def _send_records(self, encoded: list[EncodedRecord], *, is_past: bool) -> None:
        if not encoded:
            return
        try:
            response, failures = self._call_with_retries(
                partial(self._client.feed, *encode_body(encoded, self.plan.kind))
            )
        except BodyTooLarge as error:
            if len(encoded) == 1:
                raise NeedsHuman(f"{self._client.name} refuses even a single row: {error}") from None
            half = len(encoded) // 2
            self._send_records(encoded[:half], is_past=is_past)
            self._send_records(encoded[half:], is_past=is_past)
            return
        resent = any(failure.maybe_accepted for failure in failures)
        try:
            self.tally.record(count_expected(encoded), response, resent=resent, is_past=is_past)
        except (KeyError, TypeError, ValueError):
            raise NeedsHuman(
                f"{self._client.name} responds to a feed, but not as a fleet. Check the address."
            ) from None
        if failures:  # it was unavailable: its clock may have changed
            self._sync_clock()

    def _call_with_retries(self, call: Callable[[], T]) -> tuple[T, list[FleetUnavailable]]:
        """The result of `call`, which is retried with increasing pauses, and its failures."""
        failures: list[FleetUnavailable] = []
        while True:
            try:
                result = call()
            except FleetUnavailable as error:
                if not failures or str(error) != str(failures[-1]):
                    self._report(f"{error} Retrying.")
                failures.append(error)
                self.tally.retries += 1
            else:
                now = self._clock.monotonic()
                if failures:
                    self._report(f"{self._client.name} responds again after {now - self._last_response_at:.1f} s.")
                self._last_response_at = now
                return result, failures
            failure = failures[-1]
            if self._clock.monotonic() - self._last_response_at > self.plan.patience:
                raise RetryLater(f"{failure} Gave up after {self.plan.patience:g} s without a response.")
            pause = backoff_seconds(len(failures), MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS)
            if self._stop.wait(max(failure.retry_after or 0.0, pause)):
                raise _Stopped


class _Stopped(Exception):
    """`stop` was set."""
