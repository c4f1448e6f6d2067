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
MOST_CONDITIONS = 500
MOST_NONCES = 1000  # a topic's missed epochs that are remembered as told: as many as may be found at once
AGAIN_SECONDS = 300.0  # after which a message that could not be delivered is tried once more

Key = tuple[str, str]  # the kind of condition, and what it is a condition of
About = Mapping[str, int | str]


@dataclass(frozen=True)
class Message:
    """One message. `held_back`: alarms of this condition that were not told since the last message about it.

    `since` is when the condition began. `first`: of an alarm, that the person did not know of the condition before.
    """

    event: Literal["alarm", "recovery"]
    kind: str
    key: str
    text: str
    at: float
    since: float
    held_back: int = 0
    about: About = field(default_factory=dict)
    first: bool = True

    @property
    def condition(self) -> Key:
        return self.kind, self.key

    @property
    def alarms(self) -> int:
        """How many alarms it stands for."""
        return self.held_back + (self.event == "alarm")

    def instead_of(self, lost: Message) -> Message:
        """The same, standing for an earlier one of its condition as well, which could not be delivered."""
        unknown = self.first or (lost.event == "alarm" and lost.first)
        return replace(self, held_back=self.held_back + lost.alarms, first=unknown)


@dataclass(frozen=True)
class Condition:
    """`raised`: it is so now. `told`: the person was told an alarm and no recovery since. `at`: of the last message.

    `untold` alarms were held back since then. `nonces` are the missed epochs that were counted, the newest last.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    kind: str
    key: str
    text: str
    since: float
    raised: bool
    told: bool = False
    at: float | None = None
    untold: int = 0
    about: About = field(default_factory=dict)
    nonces: tuple[int, ...] = ()

    @property
    def settled(self) -> bool:
        """Whether there is nothing to tell."""
        return self.told == self.raised and self.untold == 0


@dataclass(frozen=True)
class Book:
    """All conditions by their key, and the least number of seconds between two alarms of one."""

    interval: float
    conditions: Mapping[Key, Condition] = field(default_factory=dict)

    def alarm(self, condition: Key, text: str, now: float, **about: Any) -> tuple[Book, Message | None]:
        """The condition is so; with the message to send now, if any. A `nonce` that was counted before changes nothing."""
        kind, key = condition
        before = self.conditions.get(condition, Condition(kind, key, text, now, raised=False))
        nonces = before.nonces
        if "nonce" in about:
            if about["nonce"] in nonces:
                return self, None
            nonces = (*nonces, about["nonce"])[-MOST_NONCES:]
        seen = replace(
            before,
            text=text,
            about=about,
            nonces=nonces,
            raised=True,
            since=before.since if before.raised else now,
            untold=before.untold + 1,
        )
        return self._told(seen, now) if self._may(seen, now) else (self._with(seen), None)

    def recovery(self, condition: Key, text: str, now: float, **about: Any) -> tuple[Book, Message | None]:
        """The condition is over; with the message to send now, if any: there is one for each alarm that was told."""
        before = self.conditions.get(condition)
        if before is None or not before.raised:
            return self, None
        last = max(before.nonces, default=None)
        if last is not None and about.get("nonce", last + 1) <= last:
            return self, None
        seen = replace(before, text=text, about=about, raised=False)
        return self._told(seen, now) if seen.told else (self._with(seen), None)

    def due(self, now: float) -> tuple[Book, list[Message]]:
        """What was held back and may be told now."""
        book, messages = self, []
        for condition in self.conditions.values():
            if not condition.settled and self._may(condition, now):
                book, message = book._told(condition, now)
                messages.append(message)
        return book, messages

    def wait(self, now: float) -> float | None:
        """Seconds until something is due, None when nothing is held back."""
        waits = [
            0.0 if self._may(one, now) else (one.at or 0.0) + self.interval - now
            for one in self.conditions.values()
            if not one.settled
        ]
        return min(waits, default=None)

    def undelivered(self, message: Message, now: float | None) -> Book:
        """It did not reach the person: it counts as held back, and is due in a while; `now` None: due at once."""
        condition = self.conditions.get(message.condition)
        if condition is None:
            return self
        at = None if now is None else now - max(0.0, self.interval - AGAIN_SECONDS)
        told = not message.first if message.event == "alarm" else True
        return self._with(replace(condition, told=told, untold=condition.untold + message.alarms, at=at))

    def unsaid(self, messages: Sequence[Message]) -> Book:
        """As if none of `messages`, in the order they were made, had been made: what a later process has to know."""
        book = self
        for message in reversed(messages):
            book = book.undelivered(message, None)
        return book

    def _may(self, condition: Condition, now: float) -> bool:
        """Whether the interval is over. A clock that was put back says that it is."""
        return condition.at is None or not 0 <= now - condition.at < self.interval

    def _told(self, condition: Condition, now: float) -> tuple[Book, Message]:
        """What there is to say of it, said. The recovery of an alarm does not put the next alarm off."""
        message = Message(
            "alarm" if condition.raised else "recovery",
            condition.kind,
            condition.key,
            condition.text,
            now,
            condition.since,
            condition.untold - condition.raised if condition.untold else 0,
            condition.about,
            first=not condition.told,
        )
        at = condition.at if condition.told and not condition.raised else now
        return self._with(replace(condition, told=condition.raised, untold=0, at=at)), message

    def _with(self, condition: Condition) -> Book:
        """With the condition as the latest; the oldest that has nothing to tell goes where there are too many."""
        rest = {key: one for key, one in self.conditions.items() if key != (condition.kind, condition.key)}
        if len(rest) >= MOST_CONDITIONS:
            done = (key for key, one in rest.items() if one.settled and not one.raised)
            del rest[next(done, next(iter(rest)))]
        return replace(self, conditions={**rest, (condition.kind, condition.key): condition})
