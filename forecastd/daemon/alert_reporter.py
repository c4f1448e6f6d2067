"""Whom the workers report to: the alerts, which reach a person, and the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock

from forecastd.alerts import AlertDispatcher
from forecastd.daemon.balance import WalletBalance
from forecastd.daemon.status_registry import TopicKey

log = logging.getLogger(__name__)

NEEDS_HUMAN, STARTUP = "needs_human", "start"


class AlertReporter:
    """Any thread. Every method returns at once."""

    def __init__(self, alerts: AlertDispatcher) -> None:
        self._alerts = alerts
        self._lock = Lock()
        self._attention: dict[TopicKey, str] = {}

    def start(self, open_alerts: Callable[[], AlertDispatcher]) -> None:
        """Begin to tell, or tell others from now on: the old ones put down what they told before the new ones read it."""
        self._alerts.close(1.0)
        self._alerts = open_alerts()
        self._alerts.__enter__()

    def close(self, seconds: float) -> None:
        """Tell what is waiting, for so long at most."""
        self._alerts.close(seconds)

    @property
    def attention(self) -> str:
        """What needs a person at present, of all topics; empty when nothing does."""
        with self._lock:
            return " ".join(dict.fromkeys(self._attention.values()))

    def report_missed(self, key: TopicKey, nonce: int, reason: str) -> None:
        """An epoch was missed."""
        topic_id, wallet = key
        log.error("missed: topic %d nonce %d: %s", topic_id, nonce, reason, extra={"action": "missed"})
        self._alerts.epoch_missed(topic_id, nonce, reason, wallet=wallet)

    def report_balance(self, key: TopicKey, balance: WalletBalance) -> None:
        """How much is left in a wallet."""
        if balance.is_low:
            text = f"{key[1]} has {balance.uallo} uallo left, enough for {balance.epochs} epochs. Send it some."
            log.warning("%s", text, extra={"action": "balance"})
            self._alerts.fire("low_balance", key[1], text)
        else:
            self._alerts.resolve("low_balance", key[1], f"{key[1]} has {balance.uallo} uallo.")

    def report_served(self, key: TopicKey, nonce: int) -> None:
        """An epoch has its submission."""
        self._alerts.epoch_served(key[0], nonce, wallet=key[1])

    def set_startup_error(self, reason: str) -> None:
        """A person is needed before the daemon can run at all; with an empty reason, not any more."""
        if reason:
            self._alerts.fire(NEEDS_HUMAN, STARTUP, f"The daemon cannot start: {reason}")
        else:
            self._alerts.resolve(NEEDS_HUMAN, STARTUP, "The daemon runs again.")

    def set_attention(self, key: TopicKey, reason: str) -> None:
        """A person is needed for this topic; with an empty reason, not any more."""
        name = f"topic {key[0]}, {key[1]}"
        with self._lock:
            previous = self._attention.pop(key, "")
            if reason:
                self._attention[key] = reason
        if reason and reason != previous:
            log.error("A person is needed for topic %d: %s", key[0], reason, extra={"action": NEEDS_HUMAN})
            self._alerts.fire(NEEDS_HUMAN, name, f"Topic {key[0]} needs a person: {reason}")
        elif previous and not reason:
            self._alerts.resolve(NEEDS_HUMAN, name, f"Topic {key[0]} goes on by itself again.")
