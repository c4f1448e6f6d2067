"""What a person is told, and when. Pure: values and transitions, times are unix seconds, for they outlive a restart.

The one thing to know before changing it: a limit on messages must not lose one. What is held back is counted, goes with the
next message, and has that message sent for its own sake when the interval is over; what could not be delivered counts as
held back. At rest, what the person believes is what is so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

VERSION = 1
MAX_CONDITIONS = 500
MAX_NONCES = 1000  # a topic's missed epochs that are remembered as told: as many as may be found at once
REDELIVERY_SECONDS = 300.0  # after which a message that could not be delivered is tried once more

ConditionKey = tuple[str, str]  # the kind of condition, and what it is a condition of
AlertLabels = Mapping[str, int | str]


@dataclass(frozen=True)
class AlertMessage:
    """One message. `held_back`: alarms of this condition that were not told since the last message about it.

    `since` is when the condition began. `first`: of an alarm, that the person did not know of the condition before.
    """

    event: Literal["alarm", "recovery"]
    kind: str
    key: str
    text: str
    sent_at: float
    since: float
    suppressed: int = 0
    labels: AlertLabels = field(default_factory=dict)
    is_first: bool = True

    @property
    def condition(self) -> ConditionKey:
        return self.kind, self.key

    @property
    def alert_count(self) -> int:
        """How many alarms it stands for."""
        return self.suppressed + (self.event == "alarm")

    def absorb(self, undelivered: AlertMessage) -> AlertMessage:
        """The same, standing for an earlier one of its condition as well, which could not be delivered."""
        is_first = self.is_first or (undelivered.event == "alarm" and undelivered.is_first)
        return replace(self, suppressed=self.suppressed + undelivered.alert_count, is_first=is_first)


@dataclass(frozen=True)
class AlertCondition:
    """`raised`: it is so now. `told`: the person was told an alarm and no recovery since. `at`: of the last message.

    `untold` alarms were held back since then. `nonces` are the missed epochs that were counted, the newest last.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    kind: str
    key: str
    text: str
    since: float
    firing: bool
    notified: bool = False
    last_sent_at: float | None = None
    suppressed: int = 0
    labels: AlertLabels = field(default_factory=dict)
    nonces: tuple[int, ...] = ()

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to tell."""
        return self.notified == self.firing and self.suppressed == 0


@dataclass(frozen=True)
class AlertState:
    """All conditions by their key, and the least number of seconds between two alarms of one."""

    interval: float
    conditions: Mapping[ConditionKey, AlertCondition] = field(default_factory=dict)

    def fire(
        self, condition: ConditionKey, text: str, now: float, **labels: Any
    ) -> tuple[AlertState, AlertMessage | None]:
        """The condition is so; with the message to send now, if any. A `nonce` that was counted before changes nothing."""
        kind, key = condition
        previous = self.conditions.get(condition, AlertCondition(kind, key, text, now, firing=False))
        nonces = previous.nonces
        if "nonce" in labels:
            if labels["nonce"] in nonces:
                return self, None
            nonces = (*nonces, labels["nonce"])[-MAX_NONCES:]
        updated = replace(
            previous,
            text=text,
            labels=labels,
            nonces=nonces,
            firing=True,
            since=previous.since if previous.firing else now,
            suppressed=previous.suppressed + 1,
        )
        return self._send(updated, now) if self._may_send(updated, now) else (self._with_condition(updated), None)

    def resolve(
        self, condition: ConditionKey, text: str, now: float, **labels: Any
    ) -> tuple[AlertState, AlertMessage | None]:
        """The condition is over; with the message to send now, if any: there is one for each alarm that was told."""
        previous = self.conditions.get(condition)
        if previous is None or not previous.firing:
            return self, None
        newest_nonce = max(previous.nonces, default=None)
        if newest_nonce is not None and labels.get("nonce", newest_nonce + 1) <= newest_nonce:
            return self, None
        updated = replace(previous, text=text, labels=labels, firing=False)
        return self._send(updated, now) if updated.notified else (self._with_condition(updated), None)

    def take_due_messages(self, now: float) -> tuple[AlertState, list[AlertMessage]]:
        """What was held back and may be told now."""
        alert_state, messages = self, []
        for condition in self.conditions.values():
            if not condition.is_settled and self._may_send(condition, now):
                alert_state, message = alert_state._send(condition, now)
                messages.append(message)
        return alert_state, messages

    def seconds_until_due(self, now: float) -> float | None:
        """Seconds until something is due, None when nothing is held back."""
        waits = [
            0.0 if self._may_send(condition, now) else (condition.last_sent_at or 0.0) + self.interval - now
            for condition in self.conditions.values()
            if not condition.is_settled
        ]
        return min(waits, default=None)

    def mark_undelivered(self, message: AlertMessage, now: float | None) -> AlertState:
        """It did not reach the person: it counts as held back, and is due in a while; `now` None: due at once."""
        condition = self.conditions.get(message.condition)
        if condition is None:
            return self
        last_sent_at = None if now is None else now - max(0.0, self.interval - REDELIVERY_SECONDS)
        notified = not message.is_first if message.event == "alarm" else True
        return self._with_condition(
            replace(
                condition,
                notified=notified,
                suppressed=condition.suppressed + message.alert_count,
                last_sent_at=last_sent_at,
            )
        )

    def without_messages(self, messages: Sequence[AlertMessage]) -> AlertState:
        """As if none of `messages`, in the order they were made, had been made: what a later process has to know."""
        alert_state = self
        for message in reversed(messages):
            alert_state = alert_state.mark_undelivered(message, None)
        return alert_state

    def _may_send(self, condition: AlertCondition, now: float) -> bool:
        """Whether the interval is over. A clock that was put back says that it is."""
        return condition.last_sent_at is None or not 0 <= now - condition.last_sent_at < self.interval

    def _send(self, condition: AlertCondition, now: float) -> tuple[AlertState, AlertMessage]:
        """What there is to say of it, said. The recovery of an alarm does not put the next alarm off."""
        message = AlertMessage(
            "alarm" if condition.firing else "recovery",
            condition.kind,
            condition.key,
            condition.text,
            now,
            condition.since,
            condition.suppressed - condition.firing if condition.suppressed else 0,
            condition.labels,
            is_first=not condition.notified,
        )
        last_sent_at = condition.last_sent_at if condition.notified and not condition.firing else now
        return self._with_condition(
            replace(condition, notified=condition.firing, suppressed=0, last_sent_at=last_sent_at)
        ), message

    def _with_condition(self, condition: AlertCondition) -> AlertState:
        """With the condition as the latest; the oldest that has nothing to tell goes where there are too many."""
        others = {key: other for key, other in self.conditions.items() if key != (condition.kind, condition.key)}
        if len(others) >= MAX_CONDITIONS:
            removable = (key for key, other in others.items() if other.is_settled and not other.firing)
            del others[next(removable, next(iter(others)))]
        return replace(self, conditions={**others, (condition.kind, condition.key): condition})
