"""A simulation: the made-up fleet's rows sent to a real service, at the pace of the service's own clock.

The one thing to know before changing it: the past is no special case. What is due is everything up to the service's present
tick that was not sent yet; a backfill only begins earlier, and a service that was away is caught up with in the same way.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import Any, TypeVar

from forecastd.clock import Clock
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.fleet.simulator import noise
from forecastd.fleet.simulator.badrows import bad_records
from forecastd.fleet.simulator.client import FleetClient, ServiceTime, TooLarge, Wait
from forecastd.fleet.simulator.faults import Scenario
from forecastd.fleet.simulator.feeds import Format, Record, body, dues, plain_records, records
from forecastd.fleet.simulator.fleet import Simulator
from forecastd.fleet.simulator.presence import Presence
from forecastd.fleet.simulator.tally import Tally

T = TypeVar("T")
MOST_RECORDS = 2_000  # of one feed: well below a megabyte
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0  # seconds before another try
ASK_AGAIN = 60.0  # seconds after which the service's clock is looked at anew


@dataclass(frozen=True)
class Plan:
    """What is to be simulated.

    `speed`: how fast the service's clock has to run, None takes it as it is. `backfill`: minutes of the past that are sent
    first. `duration`: seconds after that, None without end. `join_leave`: servers a minute that leave and come back.
    `bad`: bad rows for each good one, 0 to 1. `patience`: seconds without any answer after which it is given up.
    """

    servers: int = 20
    scenario: Scenario = "healthy"
    seed: int = 0
    speed: float | None = None
    backfill: float = 0.0
    duration: float | None = None
    kind: Format = "json"
    join_leave: float = 0.0
    bad: float = 0.0
    patience: float = 300.0


class Simulation:
    """One run of a plan. `tell` gets sentences for a person, `moved` is called with the time
    up to which rows were sent; `stop` ends it."""

    def __init__(
        self, plan: Plan, client: FleetClient, clock: Clock, stop: Event, *, tell: Callable[[str], None],
        moved: Callable[[Tally, float], None],
    ) -> None:  # fmt: skip
        self.plan, self.tally = plan, Tally()
        self._client, self._clock, self._stop, self._tell, self._moved = client, clock, stop, tell, moved
        self._begun = self._answered = self._asked = clock.monotonic()
        self._there: Any = None

    def run(self) -> Tally:
        """Send until the plan's end or until `stop` is set.

        Raises:
            NeedsHuman: the service refuses for good, or its clock is another than the plan's.
            RetryLater: nothing was answered for as long as the plan's patience.
        """
        with contextlib.suppress(_Stopped):
            self._run()
        self.tally.seconds = self._clock.monotonic() - self._begun
        return self.tally

    def _run(self) -> None:
        plan = self.plan
        self._look()
        if plan.speed is not None and plan.speed != self._service.speed:
            raise NeedsHuman(
                f"The clock of {self._client.name} runs at speed {self._service.speed:g}: rows at {plan.speed:g} would run "
                "away from it. Start the service with the same --speed, or leave it out here to follow the service."
            )
        start = self._present()
        self._fleet = Simulator(plan.seed, plan.servers, plan.scenario, self._service.step, start=start)
        self._presence = Presence(noise.keys(plan.seed, plan.servers), plan.join_leave, self._service.step)
        tick = start - round(plan.backfill * 60 / self._service.step)
        live = start  # the first tick of the present
        live_since: float | None = None
        while not self._stop.is_set():
            if tick >= live and live_since is None:
                live_since = self._clock.monotonic()
            if live_since is not None and self._over(live_since):
                return
            present = self._present()
            if tick > present + 1:
                self._tell("The service's clock was set back; going on from its present.")
                tick = present + 1
            if tick > present:
                self._wait(tick, live_since)
                continue
            past = tick < live
            last = min(live - 1 if past else present, tick + max(1, MOST_RECORDS // plan.servers) - 1)
            self._send(tick, last, past=past)
            tick = last + 1

    def _over(self, since: float) -> bool:
        return self.plan.duration is not None and self._clock.monotonic() - since >= self.plan.duration

    def _present(self) -> int:
        """The tick that the service's clock is in."""
        return int(self._now() // self._service.step)

    def _now(self) -> float:
        return self._service.now + (self._clock.monotonic() - self._asked) * self._service.speed

    def _look(self) -> None:
        self._service: ServiceTime = self._until_answered(self._client.time)
        self._asked = self._clock.monotonic()

    def _wait(self, tick: int, live_since: float | None) -> None:
        """Until the tick begins, or the end comes, or it is time to look at the service's clock again."""
        now = self._clock.monotonic()
        if now - self._asked > ASK_AGAIN:
            self._look()
            return
        seconds = (tick * self._service.step - self._now()) / self._service.speed
        if self.plan.duration is not None and live_since is not None:
            seconds = min(seconds, live_since + self.plan.duration - now)
        self._stop.wait(max(0.001, seconds))

    def _send(self, first: int, last: int, *, past: bool) -> None:
        found: list[Record] = []
        for tick in range(first, last + 1):
            found += self._records(tick)
        for begin in range(0, len(found), MOST_RECORDS):
            self._feed(found[begin : begin + MOST_RECORDS], past=past)
        self.tally.ticks += last - first + 1
        behind = self._now() - (last + 1) * self._service.step
        if not past:
            self.tally.behind = max(self.tally.behind, behind)
        self.tally.seconds = self._clock.monotonic() - self._begun
        self._moved(self.tally, (last + 1) * self._service.step)

    def _records(self, tick: int) -> list[Record]:
        """What is sent of one tick: the servers that are there, and beside them the bad rows."""
        there = self._presence.there(tick)
        if self._there is not None:
            self.tally.joined += int((there & ~self._there).sum())
            self.tally.left += int((~there & self._there).sum())
        self._there = there
        rows = self._fleet.rows(tick).take(there)
        found = records(rows)
        if not self.plan.bad:
            return found
        for place, name, record in reversed(
            bad_records(plain_records(rows), self.plan.bad, self.plan.kind, hash((self.plan.seed, tick)))
        ):
            found.insert(place + 1, record)
            self.tally.bad[name] += 1
        return found

    def _feed(self, found: list[Record], *, past: bool) -> None:
        if not found:
            return
        text, content_type = body(found, self.plan.kind)
        again = _Again()
        try:
            answer = self._until_answered(lambda: self._client.feed(text, content_type), again)
        except TooLarge as refused:
            if len(found) == 1:
                raise NeedsHuman(f"{self._client.name} takes not even one row: {refused}") from None
            half = len(found) // 2
            self._feed(found[:half], past=past)
            self._feed(found[half:], past=past)
            return
        try:
            self.tally.note(dues(found), answer, sent_again=again.unsure, past=past)
        except (KeyError, TypeError, ValueError):
            raise NeedsHuman(f"{self._client.name} answers a feed, but not as a fleet does.") from None
        if again.tries:  # it was away: its clock may be another one now
            self._look()

    def _until_answered(self, ask: Callable[[], T], again: _Again | None = None) -> T:
        """What `ask` gives, tried again with growing pauses."""
        again = again or _Again()
        pause, told = FIRST_PAUSE, ""
        while True:
            try:
                found = ask()
            except Wait as wait:
                again.tries += 1
                again.unsure |= wait.unsure
                self.tally.tries += 1
                failure, seconds = wait, wait.seconds
            else:
                now = self._clock.monotonic()
                if told:
                    self._tell(f"{self._client.name} answers again, after {now - self._answered:.1f} s.")
                self._answered = now
                return found
            if str(failure) != told:
                told = str(failure)
                self._tell(f"{told} Trying again.")
            if self._clock.monotonic() - self._answered > self.plan.patience:
                raise RetryLater(f"{failure} Given up after {self.plan.patience:g} s without an answer.")
            if self._stop.wait(max(seconds or 0.0, pause * random.uniform(0.7, 1.0))):  # noqa: S311 - jitter is no secret
                raise _Stopped
            pause = min(2 * pause, LONGEST_PAUSE)


@dataclass
class _Again:
    """Whether something had to be asked more than once, and may have been done the first time."""

    tries: int = 0
    unsure: bool = False


class _Stopped(Exception):
    """`stop` was set."""
