"""Which alerts are open: each opens after some ticks in a row, escalates and eases, and clears with hysteresis.

Invariant: each rank (early, warning, critical) of a condition is an independent switch. A rank turns on after
`OPEN_TICKS` consecutive values that require it or a higher rank, and off after `CLEAR_TICKS` consecutive values that
no longer hold it; the severity of the alert is the highest rank that is on. A value counts once, however often it is
read, and a tick without a value changes nothing. The whole state survives a restart: `to_json` and `from_json`.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field, replace
from functools import cache
from math import isnan
from typing import Annotated, ClassVar

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter

from forecastd.fleet.conditions.alert import SEVERITIES, SILENCE, AlertEvent, EventKind, FleetAlert
from forecastd.fleet.conditions.rules import (
    CONDITION_INDEX,
    CONDITIONS,
    HYSTERESIS,
    ConditionTable,
    evaluate_conditions,
)
from forecastd.fleet.documents import AlertCounts, AlertsResponse
from forecastd.fleet.formatting import format_value, metric_label
from forecastd.fleet.risk.assessment import RiskAssessment
from forecastd.fleet.risk.current_values import CurrentValues
from forecastd.runtime.formatting import format_count

OPEN_TICKS = 3  # consecutive values that require a rank before it turns on
CLEAR_TICKS = 12  # consecutive values that do not hold a rank before it turns off
FORGET_TICKS = 60  # ticks without a value after which the counts of a condition are dropped
MAX_RECENT_EVENTS = 200
MAX_LOGGED_EVENTS = 50  # per tick; further events are only counted
STATE_VERSION = 1
SERVER_REMOVED = "the server was removed: no data for the whole window"
SERVER_IN_MAINTENANCE = "the server is in maintenance"
log = logging.getLogger(__name__)

AlertKey = tuple[str, str]  # server, condition
_Counts = Annotated[list[int], Field(min_length=len(SEVERITIES), max_length=len(SEVERITIES))]


@dataclass
class _ConditionTracker:
    """One condition with an open alert, or one that may open. `seen`: the tick of its newest value.

    `over`, `under` (one entry per rank): consecutive values that required this rank or a higher one, and consecutive
    values that did not hold it. The field names are the keys of the state file.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    server: str
    condition: str
    seen: int
    over: _Counts = field(default_factory=lambda: [0, 0, 0])
    under: _Counts = field(default_factory=lambda: [0, 0, 0])
    rank: Annotated[int, Field(ge=0, le=len(SEVERITIES))] = 0
    alert: FleetAlert | None = None

    def record(self, tick: int, open_rank: int, hold_rank: int) -> int:
        """Count the value of this tick and return the new rank of the condition."""
        if tick - self.seen > FORGET_TICKS:  # not consecutive with the values before the gap
            self.over, self.under = [0, 0, 0], [0, 0, 0]
        self.seen = tick
        required = 1 if self.condition == SILENCE else OPEN_TICKS  # the length of the silence is the count
        for index in range(len(SEVERITIES)):
            self.over[index] = self.over[index] + 1 if open_rank > index else 0
            self.under[index] = self.under[index] + 1 if hold_rank <= index else 0
            if self.over[index] >= required:
                self.rank = max(self.rank, index + 1)
        while self.rank and self.under[self.rank - 1] >= CLEAR_TICKS:
            self.rank -= 1
        return self.rank


@dataclass(frozen=True)
class _SavedState:
    """The state that survives a restart. The field names are the keys of the state file."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    version: int
    tick: int | None
    watches: list[_ConditionTracker]
    recent: list[AlertEvent]


class AlertTracker:
    """All open alerts and the latest events. Not thread-safe: one thread updates it; it returns immutable values.

    Memory is bounded by the number of servers in the window: a removed server takes its alerts with it.
    """

    def __init__(self) -> None:
        self._trackers: dict[AlertKey, _ConditionTracker] = {}
        self._recent: deque[AlertEvent] = deque(maxlen=MAX_RECENT_EVENTS)
        self._tick: int | None = None
        self._started: int | None = None

    @property
    def open_alerts(self) -> tuple[FleetAlert, ...]:
        """The open alerts, the most severe first, then the oldest."""
        alerts = (tracker.alert for tracker in self._trackers.values() if tracker.alert is not None)
        return tuple(sorted(alerts, key=lambda alert: (-SEVERITIES.index(alert.severity), alert.opened_at, alert.id)))

    @property
    def recent_events(self) -> tuple[AlertEvent, ...]:
        """The latest events, the newest first."""
        return tuple(reversed(self._recent))

    def update(self, assessment: RiskAssessment) -> tuple[AlertEvent, ...]:
        """Process the assessment of a tick and return the alert changes. The same tick again changes nothing."""
        observed = assessment.observed
        if self._started is None:
            self._started = observed.tick
        if self._tick is not None and observed.tick < self._tick:
            self._rewind(observed.tick)
        self._tick = observed.tick
        rows = {server: row for row, server in enumerate(observed.servers)}
        events = list(self._clear_unmonitored(observed, rows))
        conditions = evaluate_conditions(assessment, self._started)
        for row, column in zip(*np.nonzero(conditions.open_ranks), strict=True):
            key = (observed.servers[row], CONDITIONS[column])
            if key not in self._trackers and observed.statuses[row] != "maintenance":
                self._trackers[key] = _ConditionTracker(*key, seen=int(conditions.value_ticks[row, column]) - 1)
        for key, tracker in list(self._trackers.items()):
            event = self._evaluate(tracker, observed, conditions, (rows[key[0]], CONDITION_INDEX[key[1]]))
            if event is not None:
                events.append(event)
            if tracker.alert is None and (not any(tracker.over) or observed.tick - tracker.seen > FORGET_TICKS):
                del self._trackers[key]
        _log_events(events)
        self._recent.extend(events)
        return tuple(events)

    def document(self) -> AlertsResponse:
        """Open alerts and recent events as `GET /alerts` returns them."""
        return AlertsResponse(
            tuple(alert.document() for alert in self.open_alerts),
            tuple(event.document() for event in self.recent_events),
        )

    def counts(self) -> AlertCounts:
        """Counts of open and of critical alerts, as `GET /status` returns them."""
        ranks = [tracker.rank for tracker in self._trackers.values() if tracker.alert is not None]
        return AlertCounts(len(ranks), ranks.count(len(SEVERITIES)))

    def to_json(self) -> bytes:
        """The state that must survive a restart."""
        state = _SavedState(STATE_VERSION, self._tick, list(self._trackers.values()), list(self._recent))
        return _state_adapter().dump_json(state)

    @classmethod
    def from_json(cls, text: bytes) -> AlertTracker:
        """The tracker whose `to_json` returned this text.

        Raises:
            ValueError: the text is not a state of this version.
        """
        saved = _state_adapter().validate_json(text)
        is_consistent = all((tracker.alert is None) == (tracker.rank == 0) for tracker in saved.watches)
        if saved.version != STATE_VERSION or not is_consistent:
            raise ValueError(f"not an alert state of version {STATE_VERSION}")
        restored = cls()
        restored._trackers = {
            (tracker.server, tracker.condition): tracker for tracker in saved.watches if tracker.condition in CONDITIONS
        }
        restored._recent.extend(saved.recent)
        restored._tick = saved.tick
        return restored

    def _rewind(self, tick: int) -> None:
        """The clock was set back: ticks recorded in the future must not hide the values of the present."""
        self._started = min(self._started or tick, tick)
        for tracker in self._trackers.values():
            tracker.seen = min(tracker.seen, tick - 1)

    def _clear_unmonitored(self, observed: CurrentValues, rows: dict[str, int]) -> list[AlertEvent]:
        """Clear the alerts of servers that were removed or are in maintenance."""
        events = []
        for key, tracker in list(self._trackers.items()):
            row = rows.get(tracker.server)
            if row is not None and observed.statuses[row] != "maintenance":
                continue
            del self._trackers[key]
            if tracker.alert is not None:
                reason = SERVER_REMOVED if row is None else SERVER_IN_MAINTENANCE
                events.append(AlertEvent("cleared", float(observed.tick * observed.step), tracker.alert, reason))
        return events

    def _evaluate(
        self, tracker: _ConditionTracker, observed: CurrentValues, conditions: ConditionTable, cell: tuple[int, int]
    ) -> AlertEvent | None:
        """Process the value of one condition if it is new; return the event that it causes, if any."""
        value_tick, previous_rank = int(conditions.value_ticks[cell]), tracker.rank
        if value_tick <= tracker.seen:
            return None
        rank = tracker.record(value_tick, int(conditions.open_ranks[cell]), int(conditions.hold_ranks[cell]))
        if not rank and tracker.alert is None:
            return None
        time, severity = float(observed.tick * observed.step), SEVERITIES[max(rank, 1) - 1]
        alert = tracker.alert or FleetAlert(
            tracker.server, observed.profiles[cell[0]], tracker.condition, severity, time, time
        )
        if rank and rank != previous_rank:
            alert = replace(alert, severity=severity, since=time)
        alert = _with_latest_values(alert, conditions, cell)
        tracker.alert = alert if rank else None
        if rank == previous_rank:
            return None
        kind: EventKind = "opened" if not previous_rank else "escalated" if rank > previous_rank else "eased"
        return AlertEvent(kind, time, alert) if rank else AlertEvent("cleared", time, alert, _clear_reason(alert))


def _log_events(events: list[AlertEvent]) -> None:
    for event in events[:MAX_LOGGED_EVENTS]:
        log.info("Alert %s.", event.text, extra={"action": "fleet_alert"})
    if (more := len(events) - MAX_LOGGED_EVENTS) > 0:
        log.info("%s changed.", format_count(more, "more alert"), extra={"action": "fleet_alert"})


def _with_latest_values(alert: FleetAlert, conditions: ConditionTable, cell: tuple[int, int]) -> FleetAlert:
    """The alert with the values of this tick."""
    minutes = conditions.minutes_ahead[cell][0 if alert.severity == "early" else 1]
    return replace(
        alert,
        value=_none_if_nan(conditions.value[cell]),
        warning=_none_if_nan(conditions.warning[cell]),
        critical=_none_if_nan(conditions.critical[cell]),
        minutes_ahead=None if alert.severity == "critical" else _none_if_nan(minutes),
    )


def _none_if_nan(value: float) -> float | None:
    return None if isnan(value) else float(value)


def _clear_reason(alert: FleetAlert) -> str:
    """Why this alert was cleared."""
    if alert.warning is None:
        return "it reports again" if alert.condition == SILENCE else "it reports status ok"
    limit = format_value(alert.condition, alert.warning * (1 - HYSTERESIS))
    return f"{metric_label(alert.condition)} and its forecast stayed below {limit}"


@cache
def _state_adapter() -> TypeAdapter[_SavedState]:
    return TypeAdapter(_SavedState)
