"""Which alerts are open: each opens after some ticks in a row, escalates and eases, and clears with hysteresis.

The one thing to know before changing it: each rank (early, warning, critical) of a condition is a switch of its own. It goes
on after `OPEN_TICKS` values in a row that call for it or for more, and off after `CLEAR_TICKS` in a row that no longer hold
it; the alert has the highest rank that is on. A value counts once, however often it is seen, and a tick without a value says
nothing. All of it goes through a restart: `to_state` and `from_state` are plain JSON.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from dataclasses import dataclass, field, replace
from functools import cache
from math import isnan
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter

from forecastd.fleet.alert import SEVERITIES, SILENCE, Alert, Event, Kind
from forecastd.fleet.conditions import CONDITIONS, MARGIN, PLACES, Evidence, evidence
from forecastd.fleet.observed import Observed
from forecastd.fleet.risk import Assessment
from forecastd.fleet.words import amount, label

OPEN_TICKS = 3  # values in a row that call for a rank, until it is on
CLEAR_TICKS = 12  # values in a row that do not hold it, until it is off
FORGET_TICKS = 60  # without a value, after which what has not opened is forgotten
RECENT_EVENTS = 200
LOGGED_EVENTS = 50  # of one tick; the others are counted
STATE_VERSION = 1
GONE = "the server is gone: nothing has come from it for the whole window"
MAINTENANCE = "the server is in maintenance"
log = logging.getLogger(__name__)

Key = tuple[str, str]  # server, condition
_Counts = Annotated[list[int], Field(min_length=len(SEVERITIES), max_length=len(SEVERITIES))]


@dataclass
class _Watch:
    """One condition that is open or may become so. `seen`: the tick of its newest value.

    `over`, `under`: by rank, how many values in a row called for it or for more, or did not hold it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    server: str
    condition: str
    seen: int
    over: _Counts = field(default_factory=lambda: [0, 0, 0])
    under: _Counts = field(default_factory=lambda: [0, 0, 0])
    rank: Annotated[int, Field(ge=0, le=len(SEVERITIES))] = 0
    alert: Alert | None = None

    def take(self, seen: int, calls: int, holds: int) -> int:
        """Count one more value, of this tick; gives the rank that the condition has now."""
        if seen - self.seen > FORGET_TICKS:  # not in a row with those before
            self.over, self.under = [0, 0, 0], [0, 0, 0]
        self.seen = seen
        ticks = 1 if self.condition == SILENCE else OPEN_TICKS  # silence has been counted already
        for place in range(len(SEVERITIES)):
            self.over[place] = self.over[place] + 1 if calls > place else 0
            self.under[place] = self.under[place] + 1 if holds <= place else 0
            if self.over[place] >= ticks:
                self.rank = max(self.rank, place + 1)
        while self.rank and self.under[self.rank - 1] >= CLEAR_TICKS:
            self.rank -= 1
        return self.rank


@dataclass(frozen=True)
class _State:
    """What is kept through a restart."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    version: int
    tick: int | None
    watches: list[_Watch]
    recent: list[Event]


class AlertBook:
    """All open alerts and the latest events. Not thread-safe: one thread updates it; what it gives out are values.

    Its memory is bounded by the number of servers that are there: those that vanish take their alerts with them.
    """

    def __init__(self) -> None:
        self._watches: dict[Key, _Watch] = {}
        self._recent: deque[Event] = deque(maxlen=RECENT_EVENTS)
        self._tick: int | None = None
        self._started: int | None = None

    @property
    def open(self) -> tuple[Alert, ...]:
        """The gravest first, then the oldest."""
        found = (watch.alert for watch in self._watches.values() if watch.alert is not None)
        return tuple(sorted(found, key=lambda one: (-SEVERITIES.index(one.severity), one.opened_at, one.id)))

    @property
    def recent(self) -> tuple[Event, ...]:
        """The latest events, the newest first."""
        return tuple(reversed(self._recent))

    def update(self, assessment: Assessment) -> tuple[Event, ...]:
        """Take in what is known at a tick, and give what changed by it. The same tick again changes nothing."""
        now = assessment.observed
        if self._started is None:
            self._started = now.tick
        if self._tick is not None and now.tick < self._tick:
            self._put_back(now.tick)
        self._tick = now.tick
        rows = {server: row for row, server in enumerate(now.servers)}
        events = list(self._left_out(now, rows))
        found = evidence(assessment, self._started)
        for row, place in zip(*np.nonzero(found.calls), strict=True):
            key = (now.servers[row], CONDITIONS[place])
            if key not in self._watches and now.statuses[row] != "maintenance":
                self._watches[key] = _Watch(*key, seen=int(found.seen[row, place]) - 1)
        for key, watch in list(self._watches.items()):
            event = self._judge(watch, now, found, (rows[key[0]], PLACES[key[1]]))
            if event is not None:
                events.append(event)
            if watch.alert is None and (not any(watch.over) or now.tick - watch.seen > FORGET_TICKS):
                del self._watches[key]
        _log(events)
        self._recent.extend(events)
        return tuple(events)

    def as_json(self) -> dict[str, Any]:
        """As `GET /alerts` gives it."""
        return {
            "open": [alert.as_json() for alert in self.open],
            "recent": [event.as_json() for event in self.recent],
        }

    def counts(self) -> dict[str, int]:
        """As `GET /status` gives it: how many are open, and how many of them are critical."""
        ranks = [watch.rank for watch in self._watches.values() if watch.alert is not None]
        return {"open": len(ranks), "critical": sum(rank == len(SEVERITIES) for rank in ranks)}

    def to_state(self) -> dict[str, Any]:
        """All that a restart must not forget, as JSON has it."""
        state = _State(STATE_VERSION, self._tick, list(self._watches.values()), list(self._recent))
        kept: dict[str, Any] = _adapter().dump_python(state, mode="json")
        return kept

    @classmethod
    def from_state(cls, state: object) -> AlertBook:
        """The book that `to_state` was asked of.

        Raises:
            ValueError: this is not what `to_state` of this version gives.
        """
        try:
            found = _adapter().validate_json(json.dumps(state))
        except (TypeError, RecursionError) as error:
            raise ValueError(f"no JSON: {error}") from None
        if found.version != STATE_VERSION or any((one.alert is None) != (one.rank == 0) for one in found.watches):
            raise ValueError(f"no alerts of version {STATE_VERSION}")
        book = cls()
        book._watches = {(one.server, one.condition): one for one in found.watches if one.condition in CONDITIONS}
        book._recent.extend(found.recent)
        book._tick = found.tick
        return book

    def _put_back(self, tick: int) -> None:
        """The clock was put back: what was seen in a time that is still to come must not hide what is seen now."""
        self._started = min(self._started or tick, tick)
        for watch in self._watches.values():
            watch.seen = min(watch.seen, tick - 1)

    def _left_out(self, now: Observed, rows: dict[str, int]) -> list[Event]:
        """Clear what is no longer judged: servers that are gone, and those in maintenance."""
        events = []
        for key, watch in list(self._watches.items()):
            row = rows.get(watch.server)
            if row is not None and now.statuses[row] != "maintenance":
                continue
            del self._watches[key]
            if watch.alert is not None:
                reason = GONE if row is None else MAINTENANCE
                events.append(Event("cleared", float(now.tick * now.step), watch.alert, reason))
        return events

    def _judge(self, watch: _Watch, now: Observed, found: Evidence, at: tuple[int, int]) -> Event | None:
        """Take in one condition's value, if it is a new one; gives the event that it makes."""
        seen, before, moment = int(found.seen[at]), watch.rank, float(now.tick * now.step)
        if seen <= watch.seen:
            return None
        rank = watch.take(seen, int(found.calls[at]), int(found.holds[at]))
        if not rank:
            cleared, watch.alert = watch.alert, None
            return None if cleared is None else Event("cleared", moment, _latest(cleared, found, at), _why(cleared))
        alert = watch.alert or Alert(
            watch.server, now.profiles[at[0]], watch.condition, SEVERITIES[rank - 1], moment, moment
        )
        if rank != before:
            alert = replace(alert, severity=SEVERITIES[rank - 1], since=moment)
        watch.alert = _latest(alert, found, at)
        kind: Kind = "opened" if not before else "escalated" if rank > before else "eased"
        return None if rank == before else Event(kind, moment, watch.alert)


def _log(events: list[Event]) -> None:
    for event in events[:LOGGED_EVENTS]:
        log.info("Alert %s.", event.text, extra={"action": "fleet_alert"})
    if len(events) > LOGGED_EVENTS:
        log.info("%d more alerts changed.", len(events) - LOGGED_EVENTS, extra={"action": "fleet_alert"})


def _latest(alert: Alert, found: Evidence, at: tuple[int, int]) -> Alert:
    """The alert with the numbers of this tick."""
    ahead = found.ahead[at][0 if alert.severity == "early" else 1]
    value, warning, critical = (_known(one[at]) for one in (found.value, found.warning, found.critical))
    minutes_ahead = None if alert.severity == "critical" else _known(ahead)
    return replace(alert, value=value, warning=warning, critical=critical, minutes_ahead=minutes_ahead)


def _known(value: float) -> float | None:
    return None if isnan(value) else float(value)


def _why(alert: Alert) -> str:
    """Why an alert that was `alert` is over."""
    if alert.warning is None:
        return "it reports again" if alert.condition == SILENCE else "it says that it is well"
    bound = amount(alert.condition, alert.warning * (1 - MARGIN))
    return f"{label(alert.condition)} and its forecast stayed below {bound}"


@cache
def _adapter() -> TypeAdapter[_State]:
    return TypeAdapter(_State)
