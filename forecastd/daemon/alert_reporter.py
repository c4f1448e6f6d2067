"""Reports the results of the workers to the log and, as alerts, to a person."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock

from forecastd.alerts import AlertDispatcher
from forecastd.daemon.balance import WalletBalance
from forecastd.daemon.status_registry import TopicKey
from forecastd.runtime.formatting import format_count

log = logging.getLogger(__name__)

NEEDS_HUMAN, STARTUP = "needs_human", "start"


class AlertReporter:
    """Logs and sends alerts. Thread-safe; every method but `start` and `close` returns immediately."""

    def __init__(self, alerts: AlertDispatcher) -> None:
        self._alerts = alerts
        self._lock = Lock()
        self._attention: dict[TopicKey, str] = {}

    def start(self, open_alerts: Callable[[], AlertDispatcher]) -> None:
        """Start, or replace, the dispatcher. The old one saves its state before the new one reads it."""
        self._alerts.close(1.0)
        self._alerts = open_alerts()
        self._alerts.start()

    def close(self, seconds: float) -> None:
        """Send the queued alerts, for at most `seconds`."""
        self._alerts.close(seconds)

    @property
    def attention(self) -> str:
        """What needs a person now, of all topics; empty if nothing does."""
        with self._lock:
            return " ".join(dict.fromkeys(self._attention.values()))

    def report_missed(self, key: TopicKey, nonce: int, reason: str) -> None:
        """An epoch was missed."""
        topic_id, wallet = key
        log.error("missed epoch: topic %d nonce %d: %s", topic_id, nonce, reason, extra={"action": "missed"})
        self._alerts.epoch_missed(topic_id, nonce, reason, wallet=wallet)

    def report_balance(self, key: TopicKey, balance: WalletBalance) -> None:
        """The balance of a wallet; a low one fires an alert."""
        if balance.is_low:
            epochs = format_count(balance.epochs or 0, "epoch")
            text = f"{key[1]} has {balance.uallo} uallo left, enough for {epochs}. Send ALLO to this address."
            log.warning("%s", text, extra={"action": "balance"})
            self._alerts.fire("low_balance", key[1], text)
        else:
            self._alerts.resolve("low_balance", key[1], f"{key[1]} has {balance.uallo} uallo.")

    def report_served(self, key: TopicKey, nonce: int) -> None:
        """An epoch was submitted."""
        self._alerts.epoch_served(key[0], nonce, wallet=key[1])

    def set_startup_error(self, reason: str) -> None:
        """The daemon cannot start without a person; an empty `reason` ends this condition."""
        if reason:
            self._alerts.fire(NEEDS_HUMAN, STARTUP, f"The daemon cannot start: {reason}")
        else:
            self._alerts.resolve(NEEDS_HUMAN, STARTUP, "The daemon runs again.")

    def set_attention(self, key: TopicKey, reason: str) -> None:
        """The topic needs a person; an empty `reason` ends this condition."""
        name = f"topic {key[0]}, {key[1]}"
        with self._lock:
            previous = self._attention.pop(key, "")
            if reason:
                self._attention[key] = reason
        if reason and reason != previous:
            log.error("Topic %d needs a person: %s", key[0], reason, extra={"action": NEEDS_HUMAN})
            self._alerts.fire(NEEDS_HUMAN, name, f"Topic {key[0]} needs a person: {reason}")
        elif previous and not reason:
            self._alerts.resolve(NEEDS_HUMAN, name, f"Topic {key[0]} no longer needs a person.")
