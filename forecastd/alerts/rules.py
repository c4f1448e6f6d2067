"""Which alert messages are sent, and when: a pure state machine. Times are unix seconds, because they survive a
restart.

Invariant: the rate limit never loses a message. A suppressed alert is counted in the next message and causes that
message when the interval is over; an undelivered message counts as suppressed. When nothing is pending, the last
message that the person received describes the current state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

VERSION = 2
MAX_CONDITIONS = 500
MAX_NONCES = 1000  # remembered missed epochs of a topic: as many as one start can record
REDELIVERY_SECONDS = 300.0  # until an undelivered message is sent again

ConditionKey = tuple[str, str]  # the kind of the condition, and its object
AlertLabels = Mapping[str, int | str]


@dataclass(frozen=True)
class AlertMessage:
    """One message. `suppressed`: alerts of this condition that were not sent since its last message.

    `since`: when the condition began. `is_first`: the alert is the first one that the person gets of this condition.
    """

    event: Literal["firing", "resolved"]
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
        """The number of alerts that the message stands for."""
        return self.suppressed + (self.event == "firing")

    def absorb(self, undelivered: AlertMessage) -> AlertMessage:
        """This message, which also stands for an earlier, undelivered one of the same condition."""
        is_first = self.is_first or (undelivered.event == "firing" and undelivered.is_first)
        return replace(self, suppressed=self.suppressed + undelivered.alert_count, is_first=is_first)


@dataclass(frozen=True)
class AlertCondition:
    """`firing`: the condition holds. `notified`: the last message that was sent of it is an alert. Times in unix
    seconds.

    `last_sent_at`: when the last message was sent. `suppressed`: alerts that were not sent since then. `nonces`: the
    missed epochs that were counted, the newest last.
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
        """Whether no message is pending."""
        return self.notified == self.firing and self.suppressed == 0


@dataclass(frozen=True)
class AlertState:
    """All conditions by their key, and the minimum number of seconds between two alerts of one condition."""

    interval: float
    conditions: Mapping[ConditionKey, AlertCondition] = field(default_factory=dict)

    def fire(
        self, condition: ConditionKey, text: str, now: float, **labels: Any
    ) -> tuple[AlertState, AlertMessage | None]:
        """The condition holds. Returns the new state and the message to send now, if any.

        A `nonce` that was counted before changes nothing.
        """
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
        """The condition has ended. Returns the new state and the message to send now: one if an alert was sent."""
        previous = self.conditions.get(condition)
        if previous is None or not previous.firing:
            return self, None
        newest_nonce = max(previous.nonces, default=None)
        if newest_nonce is not None and labels.get("nonce", newest_nonce + 1) <= newest_nonce:
            return self, None
        updated = replace(previous, text=text, labels=labels, firing=False)
        return self._send(updated, now) if updated.notified else (self._with_condition(updated), None)

    def take_due_messages(self, now: float) -> tuple[AlertState, list[AlertMessage]]:
        """The new state, and the suppressed messages that may be sent now."""
        alert_state, messages = self, []
        for condition in self.conditions.values():
            if not condition.is_settled and self._may_send(condition, now):
                alert_state, message = alert_state._send(condition, now)
                messages.append(message)
        return alert_state, messages

    def seconds_until_due(self, now: float) -> float | None:
        """Seconds until a message is due; None when none is suppressed."""
        waits = [
            0.0 if self._may_send(condition, now) else (condition.last_sent_at or 0.0) + self.interval - now
            for condition in self.conditions.values()
            if not condition.is_settled
        ]
        return min(waits, default=None)

    def mark_undelivered(self, message: AlertMessage, now: float | None) -> AlertState:
        """The message was not delivered: it counts as suppressed and is due later, or immediately if `now` is None."""
        condition = self.conditions.get(message.condition)
        if condition is None:
            return self
        last_sent_at = None if now is None else now - max(0.0, self.interval - REDELIVERY_SECONDS)
        notified = not message.is_first if message.event == "firing" else True
        return self._with_condition(
            replace(
                condition,
                notified=notified,
                suppressed=condition.suppressed + message.alert_count,
                last_sent_at=last_sent_at,
            )
        )

    def without_messages(self, messages: Sequence[AlertMessage]) -> AlertState:
        """The state before `messages` (in the order of their creation): what a later process must know to send them."""
        alert_state = self
        for message in reversed(messages):
            alert_state = alert_state.mark_undelivered(message, None)
        return alert_state

    def _may_send(self, condition: AlertCondition, now: float) -> bool:
        """Whether the interval is over. It counts as over when the clock was set back."""
        return condition.last_sent_at is None or not 0 <= now - condition.last_sent_at < self.interval

    def _send(self, condition: AlertCondition, now: float) -> tuple[AlertState, AlertMessage]:
        """The state after sending the condition's message, and that message. `resolved` does not delay the next alert."""
        message = AlertMessage(
            "firing" if condition.firing else "resolved",
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
        """The state with `condition` as the latest one. Drops the oldest settled condition when there are too many."""
        others = {key: other for key, other in self.conditions.items() if key != (condition.kind, condition.key)}
        if len(others) >= MAX_CONDITIONS:
            removable = (key for key, other in others.items() if other.is_settled and not other.firing)
            del others[next(removable, next(iter(others)))]
        return replace(self, conditions={**others, (condition.kind, condition.key): condition})
