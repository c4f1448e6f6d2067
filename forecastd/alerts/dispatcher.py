"""Decides which alerts to send and delivers them in its own thread, so that a slow receiver delays no cycle.

Invariant: what was sent is recorded in STATE_DIR/alerts.json, so a restart does not send it again. A message counts
as not sent until it was delivered: after a crash it may be sent twice, but it is never lost.
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
from forecastd.alerts.channels import AlertChannel, CommandChannel, WebhookChannel
from forecastd.alerts.rules import VERSION, AlertCondition, AlertMessage, AlertState
from forecastd.clock import Clock, to_iso
from forecastd.errors import ForecastdError, NeedsHuman, RetryLater
from forecastd.logs import redacted
from forecastd.runtime.closeable import Closeable
from forecastd.runtime.files import read_text_file, write_atomic
from forecastd.settings import AlertSettings

log = logging.getLogger(__name__)

ALERTS_FILE_NAME = "alerts.json"
RETRY_PAUSES = (1.0, 5.0, 25.0)  # seconds before the second, third and fourth attempt of a channel
MAX_QUEUED_MESSAGES = 100  # messages that wait for delivery; later ones are suppressed
MAX_TEXT_CHARACTERS = 2000  # characters of a text
CLOSE_SECONDS = 3.0  # to deliver queued messages, when the daemon exits
MAX_WAIT_SECONDS = 60.0  # of one sleep: the wall clock, which decides what is due, may jump meanwhile
_FIELDS_SINCE_1 = {
    "raised": "firing",
    "told": "notified",  # codespell:ignore
    "at": "last_sent_at",
    "untold": "suppressed",
    "about": "labels",
}  # fields of a condition that were renamed after version 1 of the state file


class AlertDispatcher(Closeable):
    """Sends alerts by webhook, by command, or by both; only to the log when neither is set.

    Use it as a context manager. Every method returns immediately and is thread-safe.
    """

    def __init__(
        self,
        settings: AlertSettings,
        state_dir: Path,
        clock: Clock,
        *,
        network: str = "",
        pauses: Sequence[float] = RETRY_PAUSES,
    ) -> None:
        """`pauses`: seconds before each further attempt.

        Raises:
            NeedsHuman: the webhook is not an HTTP URL, or the command cannot be parsed.
        """
        channels: list[AlertChannel] = []
        if settings.webhook is not None:
            channels.append(WebhookChannel(settings.webhook.get_secret_value()))
        if settings.command is not None:
            channels.append(CommandChannel(settings.command))
        self._channels, self._clock, self._pauses = tuple(channels), clock, tuple(pauses)
        self._common_fields = {"network": network, "host": socket.gethostname(), "program": f"forecastd {__version__}"}
        self._path = state_dir / ALERTS_FILE_NAME
        self._alert_state = AlertState(settings.repeat_interval, _load(self._path))
        self._queue: deque[AlertMessage] = deque()
        self._changed = self._closing = self._save_failed = False
        self._condition = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def epoch_missed(self, topic_id: int, nonce: int, reason: str, *, wallet: str = "") -> None:
        """An epoch was missed. Each epoch fires one alert, however often it is reported and across restarts."""
        text = f"Topic {topic_id} missed epoch {nonce}: {reason}"
        self._fire(_missed_condition(topic_id, wallet), text, topic_id=topic_id, nonce=nonce, wallet=wallet)

    def epoch_served(self, topic_id: int, nonce: int, *, wallet: str = "") -> None:
        """An epoch was submitted. Resolves the alert of an earlier missed epoch."""
        text = f"Topic {topic_id} is served again: epoch {nonce} was submitted."
        self._resolve(_missed_condition(topic_id, wallet), text, topic_id=topic_id, nonce=nonce, wallet=wallet)

    def fire(self, kind: str, key: str, text: str) -> None:
        """A condition holds that a person should know of: `kind` (`needs_human`) of the object `key` (`topic 67`)."""
        self._fire((kind, key), text)

    def resolve(self, kind: str, key: str, text: str) -> None:
        """The condition has ended. Sends one message if an alert was sent; otherwise does nothing."""
        self._resolve((kind, key), text)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Deliver the queued messages, for at most `seconds`. The next daemon sends the rest."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        if not self._thread.is_alive():
            return
        self._thread.join(seconds)
        self._stop.set()
        for channel in self._channels:
            channel.stop()
        self._thread.join(seconds / 10)
        self._save()

    def _fire(self, condition: tuple[str, str], text: str, **labels: Any) -> None:
        with self._condition:
            alert_state, message = self._alert_state.fire(condition, _sanitize(text), self._clock.now(), **labels)
            self._enqueue(alert_state, [message] if message else [])

    def _resolve(self, condition: tuple[str, str], text: str, **labels: Any) -> None:
        with self._condition:
            alert_state, message = self._alert_state.resolve(condition, _sanitize(text), self._clock.now(), **labels)
            self._enqueue(alert_state, [message] if message else [])

    def _enqueue(self, alert_state: AlertState, messages: Sequence[AlertMessage]) -> None:
        """Queue the messages to send now. Call it with the lock held."""
        self._changed = self._changed or alert_state is not self._alert_state
        self._alert_state = alert_state
        for message in messages:
            level = logging.WARNING if message.event == "firing" else logging.INFO
            log.log(level, "%s: %s", message.event, _message_text(message), extra={"action": "alert"})
            if len(self._queue) < MAX_QUEUED_MESSAGES:
                self._queue.append(message)
            else:
                self._alert_state = self._alert_state.mark_undelivered(message, self._clock.now())
        self._condition.notify_all()

    def _run(self) -> None:
        """The delivery thread: deliver, save, wait."""
        while True:
            with self._condition:
                self._enqueue(*self._alert_state.take_due_messages(self._clock.now()))
                message = self._queue[0] if self._queue else None
                changed, self._changed = self._changed, False
                if message is None and not changed:
                    if self._closing:
                        return
                    wait = self._alert_state.seconds_until_due(self._clock.now())
                    self._condition.wait(None if wait is None else min(max(wait, 0.01), MAX_WAIT_SECONDS))
                    continue
            if changed:
                self._save()
            if message is not None:
                self._finish_delivery(message, delivered=self._deliver(message))
                if self._stop.is_set():
                    return

    def _finish_delivery(self, message: AlertMessage, *, delivered: bool) -> None:
        """Take a message off the queue. An undelivered one is merged into a later message, or sent again later."""
        with self._condition:
            self._queue.popleft()
            self._changed = True
            if delivered:
                return
            for index, queued in enumerate(self._queue):
                if queued.condition == message.condition:
                    self._queue[index] = queued.absorb(message)
                    return
            self._alert_state = self._alert_state.mark_undelivered(
                message, None if self._stop.is_set() else self._clock.now()
            )

    def _deliver(self, message: AlertMessage) -> bool:
        """Whether any channel delivered the message. Each channel gets one attempt more than there are pauses."""
        body = json.dumps(self.to_document(message)).encode() + b"\n"
        remaining, delivered = list(self._channels), not self._channels
        for pause in (0.0, *self._pauses):
            if self._stop.wait(pause):
                break
            for channel in tuple(remaining):
                try:
                    channel.send(body)
                except ForecastdError as error:
                    log.warning("An alert was not delivered: %s", error, extra={"action": "alert"})
                    if isinstance(error, RetryLater):
                        continue
                else:
                    delivered = True
                remaining.remove(channel)
            if not remaining:
                break
        return delivered

    def to_document(self, message: AlertMessage) -> dict[str, object]:
        """The JSON object that is sent for a message; docs/monitoring.md has an example."""
        return {
            "version": VERSION,
            "event": message.event,
            "kind": message.kind,
            "key": message.key,
            "text": _message_text(message),
            "sent_at": to_iso(message.sent_at),
            "since": to_iso(message.since),
            "suppressed": message.suppressed,
            **self._common_fields,
            **message.labels,
        }

    def _save(self) -> None:
        """Write the state file. A failure is logged once, until a write succeeds."""
        with self._condition:
            alert_state = self._alert_state.without_messages(self._queue)
        document = {
            "version": VERSION,
            "conditions": _adapter().dump_python(tuple(alert_state.conditions.values()), mode="json"),
        }
        try:
            write_atomic(self._path, json.dumps(document).encode())
        except NeedsHuman as error:
            if not self._save_failed:
                log.warning(
                    "Cannot save sent alerts; a restart would send them again: %s", error, extra={"action": "alert"}
                )
            self._save_failed = True
        else:
            self._save_failed = False


def _sanitize(text: str) -> str:
    """`text` without secrets, as valid UTF-8, of at most MAX_TEXT_CHARACTERS characters."""
    return redacted(text).encode("utf-8", "replace").decode()[:MAX_TEXT_CHARACTERS]


def _missed_condition(topic_id: int, wallet: str) -> tuple[str, str]:
    return "missed_epoch", f"topic {topic_id}" + (f", {wallet}" if wallet else "")


def _message_text(message: AlertMessage) -> str:
    """The text, with the number of suppressed alerts that the message stands for."""
    number = message.suppressed
    if not number:
        return message.text
    alerts = "1 alert was" if number == 1 else f"{number} alerts were"
    return f"{message.text.rstrip('.')}. ({alerts} suppressed since the last message.)"


def _load(path: Path) -> dict[tuple[str, str], AlertCondition]:
    """The conditions that an earlier daemon saved; empty when there is no file, or when it is invalid."""
    try:
        document = json.loads(read_text_file(path, "The file", "Delete it."))
        conditions = _adapter().validate_json(json.dumps(_stored_conditions(document)))
    except (NeedsHuman, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return {}
        log.warning("%s is invalid and will be replaced; an alert may be sent again.", path, extra={"action": "alert"})
        return {}
    return {(condition.kind, condition.key): condition for condition in conditions}


def _stored_conditions(document: dict[str, Any]) -> object:
    """The conditions of the state file as this release writes them; None for an unknown version."""
    if document["version"] == 1:
        return [
            {_FIELDS_SINCE_1.get(name, name): value for name, value in old.items()} for old in document["conditions"]
        ]
    return document["conditions"] if document["version"] == VERSION else None


@cache
def _adapter() -> TypeAdapter[tuple[AlertCondition, ...]]:
    return TypeAdapter(tuple[AlertCondition, ...])
