"""Decides at once what a person is told, and tells it in a thread of its own, so that a slow receiver delays no cycle.

The one thing to know before changing it: what was told is kept in STATE_DIR/alerts.json, so that a restart does not tell it
again. A message is saved as not yet told until it was delivered: after a crash it is rather told twice than never.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections import deque
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from forecastd import __version__
from forecastd.alerts.book import VERSION, Book, Condition, Message
from forecastd.alerts.sinks import Command, Sink, Webhook
from forecastd.clock import Clock, iso
from forecastd.errors import ForecastdError, NeedsHuman, RetryLater
from forecastd.logs import redacted
from forecastd.textfile import read_text_file
from forecastd.wholefile import write_whole

log = logging.getLogger(__name__)

NAME = "alerts.json"
PAUSES = (1.0, 5.0, 25.0)  # seconds before the second, third and fourth attempt
MOST_WAITING = 100  # messages that wait for delivery; what comes then is held back
MOST_TEXT = 2000  # characters of a text
CLOSE_SECONDS = 3.0  # for what is waiting, when the daemon ends
LONGEST_WAIT = 60.0  # seconds of sleep: the wall clock, which says what is due, may jump meanwhile


class Alerts:
    """Tells a person by webhook, by command, or by both; by the log alone where neither is set.

    Use as a context manager. Every method returns at once and may be called from any thread.
    """

    def __init__(
        self,
        webhook: str | None,
        command: str | None,
        *,
        interval: float,
        clock: Clock,
        state_dir: Path,
        network: str = "",
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        """`interval`: seconds between two alarms of one kind and key. `pauses`: seconds before each further attempt.

        Raises:
            NeedsHuman: the webhook is no address, or the command cannot be read.
        """
        sinks: list[Sink] = [] if webhook is None else [Webhook(webhook)]
        sinks += [] if command is None else [Command(command)]
        self._sinks, self._clock, self._pauses = tuple(sinks), clock, tuple(pauses)
        self._common = {"network": network, "host": socket.gethostname(), "program": f"forecastd {__version__}"}
        self._path = state_dir / NAME
        self._book = Book(interval, _load(self._path))
        self._waiting: deque[Message] = deque()
        self._changed = self._closing = self._unsaved = False
        self._condition = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)

    def __enter__(self) -> Alerts:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def missed(self, topic_id: int, nonce: int, reason: str, *, wallet: str = "") -> None:
        """An epoch was missed. The same one is an alarm once, however often it is told and after any restart."""
        text = f"Topic {topic_id} missed epoch {nonce}: {reason}"
        self._alarm(_missed(topic_id, wallet), text, topic_id=topic_id, nonce=nonce, wallet=wallet)

    def served(self, topic_id: int, nonce: int, *, wallet: str = "") -> None:
        """An epoch was submitted: the end of an alarm for an earlier one."""
        text = f"Topic {topic_id} is served again: epoch {nonce} was submitted."
        self._recover(_missed(topic_id, wallet), text, topic_id=topic_id, nonce=nonce, wallet=wallet)

    def raise_alarm(self, kind: str, key: str, text: str) -> None:
        """A condition that a person should know of is so: `kind` says what (`needs_human`), `key` of what (`topic 67`)."""
        self._alarm((kind, key), text)

    def recover(self, kind: str, key: str, text: str) -> None:
        """It is over. Told once if it had been told; to call it when nothing was wrong costs nothing."""
        self._recover((kind, key), text)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Deliver what is waiting, for at most `seconds`. The rest is told by the next daemon."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        if not self._thread.is_alive():
            return
        self._thread.join(seconds)
        self._stop.set()
        for sink in self._sinks:
            sink.stop()
        self._thread.join(seconds / 10)
        self._save()

    def _alarm(self, condition: tuple[str, str], text: str, **about: Any) -> None:
        with self._condition:
            book, message = self._book.alarm(condition, _clean(text), self._clock.now(), **about)
            self._take(book, [message] if message else [])

    def _recover(self, condition: tuple[str, str], text: str, **about: Any) -> None:
        with self._condition:
            book, message = self._book.recovery(condition, _clean(text), self._clock.now(), **about)
            self._take(book, [message] if message else [])

    def _take(self, book: Book, messages: Sequence[Message]) -> None:
        """Under the lock: what there is to tell now."""
        self._changed = self._changed or book is not self._book
        self._book = book
        for message in messages:
            level = logging.WARNING if message.event == "alarm" else logging.INFO
            log.log(level, "%s: %s", message.event, _sentence(message), extra={"action": "alert"})
            if len(self._waiting) < MOST_WAITING:
                self._waiting.append(message)
            else:
                self._book = self._book.undelivered(message, self._clock.now())
        self._condition.notify_all()

    def _run(self) -> None:
        """The thread: deliver, save, wait."""
        while True:
            with self._condition:
                self._take(*self._book.due(self._clock.now()))
                message = self._waiting[0] if self._waiting else None
                changed, self._changed = self._changed, False
                if message is None and not changed:
                    if self._closing:
                        return
                    wait = self._book.wait(self._clock.now())
                    self._condition.wait(None if wait is None else min(max(wait, 0.01), LONGEST_WAIT))
                    continue
            if changed:
                self._save()
            if message is not None:
                self._settle(message, delivered=self._deliver(message))
                if self._stop.is_set():
                    return

    def _settle(self, message: Message, *, delivered: bool) -> None:
        """Take a message off the queue; one that was not delivered is left to a later one, or to a later time."""
        with self._condition:
            self._waiting.popleft()
            self._changed = True
            if delivered:
                return
            for place, later in enumerate(self._waiting):
                if later.condition == message.condition:
                    self._waiting[place] = later.instead_of(message)
                    return
            self._book = self._book.undelivered(message, None if self._stop.is_set() else self._clock.now())

    def _deliver(self, message: Message) -> bool:
        """Whether a person got it, by any way there is. Every way is tried as often as the pauses say."""
        body = json.dumps(self.document(message)).encode() + b"\n"
        left, delivered = list(self._sinks), not self._sinks
        for pause in (0.0, *self._pauses):
            if self._stop.wait(pause):
                break
            for sink in tuple(left):
                try:
                    sink.send(body)
                except ForecastdError as error:
                    log.warning("An alert was not delivered: %s", error, extra={"action": "alert"})
                    if isinstance(error, RetryLater):
                        continue
                else:
                    delivered = True
                left.remove(sink)
            if not left:
                break
        return delivered

    def document(self, message: Message) -> dict[str, object]:
        """A message as the JSON object that is sent; docs/monitoring.md has an example."""
        return {
            "version": VERSION,
            "event": message.event,
            "kind": message.kind,
            "key": message.key,
            "text": _sentence(message),
            "at": iso(message.at),
            "since": iso(message.since),
            "held_back": message.held_back,
            **self._common,
            **message.about,
        }

    def _save(self) -> None:
        """Keep what was told. That it cannot be written is told once."""
        with self._condition:
            book = self._book.unsaid(self._waiting)
        document = {
            "version": VERSION,
            "conditions": _adapter().dump_python(tuple(book.conditions.values()), mode="json"),
        }
        try:
            write_whole(self._path, json.dumps(document).encode())
        except NeedsHuman as error:
            if not self._unsaved:
                log.warning("A restart would tell alarms again: %s", error, extra={"action": "alert"})
            self._unsaved = True
        else:
            self._unsaved = False


def _clean(text: str) -> str:
    """A text as any receiver can take it: without secrets, in proper characters, and not endless."""
    return redacted(text).encode("utf-8", "replace").decode()[:MOST_TEXT]


def _missed(topic_id: int, wallet: str) -> tuple[str, str]:
    return "missed_epoch", f"topic {topic_id}" + (f", {wallet}" if wallet else "")


def _sentence(message: Message) -> str:
    """The text, with how much it stands for."""
    number = message.held_back
    if not number:
        return message.text
    alarms = "1 alarm was" if number == 1 else f"{number} alarms were"
    return f"{message.text.rstrip('.')}. ({alarms} held back since the last message.)"


def _load(path: Path) -> dict[tuple[str, str], Condition]:
    """What an earlier daemon told; nothing where there is no such file, or none that makes sense."""
    try:
        document = json.loads(read_text_file(path, "The file", "Delete it."))
        kept = document["conditions"] if document["version"] == VERSION else None
        found = _adapter().validate_json(json.dumps(kept))
    except (NeedsHuman, ValueError, LookupError, TypeError, RecursionError) as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return {}
        log.warning(
            "%s makes no sense and is written anew; an alarm may be told again.", path, extra={"action": "alert"}
        )
        return {}
    return {(one.kind, one.key): one for one in found}


@cache
def _adapter() -> TypeAdapter[tuple[Condition, ...]]:
    return TypeAdapter(tuple[Condition, ...])
