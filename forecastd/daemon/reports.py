"""Whom the workers report to: the alerts, which reach a person, and the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock

from forecastd.alerts import Alerts
from forecastd.daemon.book import Key
from forecastd.daemon.money import Money

log = logging.getLogger(__name__)

NEEDS_HUMAN, START = "needs_human", "start"


class Desk:
    """Any thread. Every method returns at once."""

    def __init__(self, alerts: Alerts) -> None:
        self._alerts = alerts
        self._lock = Lock()
        self._troubles: dict[Key, str] = {}

    def open(self, make: Callable[[], Alerts]) -> None:
        """Begin to tell, or tell others from now on: the old ones put down what they told before the new ones read it."""
        self._alerts.close(1.0)
        self._alerts = make()
        self._alerts.__enter__()

    def close(self, seconds: float) -> None:
        """Tell what is waiting, for so long at most."""
        self._alerts.close(seconds)

    @property
    def trouble(self) -> str:
        """What needs a person at present, of all topics; empty when nothing does."""
        with self._lock:
            return " ".join(dict.fromkeys(self._troubles.values()))

    def missed(self, key: Key, nonce: int, reason: str) -> None:
        """An epoch was missed."""
        topic_id, wallet = key
        log.error("missed: topic %d nonce %d: %s", topic_id, nonce, reason, extra={"action": "missed"})
        self._alerts.missed(topic_id, nonce, reason, wallet=wallet)

    def money(self, key: Key, money: Money) -> None:
        """How much is left in a wallet."""
        if money.low:
            text = f"{key[1]} has {money.balance} uallo left, enough for {money.epochs} epochs. Send it some."
            log.warning("%s", text, extra={"action": "balance"})
            self._alerts.raise_alarm("low_balance", key[1], text)
        else:
            self._alerts.recover("low_balance", key[1], f"{key[1]} has {money.balance} uallo.")

    def served(self, key: Key, nonce: int) -> None:
        """An epoch has its submission."""
        self._alerts.served(key[0], nonce, wallet=key[1])

    def start_trouble(self, reason: str) -> None:
        """A person is needed before the daemon can run at all; with an empty reason, not any more."""
        if reason:
            self._alerts.raise_alarm(NEEDS_HUMAN, START, f"The daemon cannot start: {reason}")
        else:
            self._alerts.recover(NEEDS_HUMAN, START, "The daemon runs again.")

    def trouble_of(self, key: Key, reason: str) -> None:
        """A person is needed for this topic; with an empty reason, not any more."""
        name = f"topic {key[0]}, {key[1]}"
        with self._lock:
            before = self._troubles.pop(key, "")
            if reason:
                self._troubles[key] = reason
        if reason and reason != before:
            log.error("A person is needed for topic %d: %s", key[0], reason, extra={"action": NEEDS_HUMAN})
            self._alerts.raise_alarm(NEEDS_HUMAN, name, f"Topic {key[0]} needs a person: {reason}")
        elif before and not reason:
            self._alerts.recover(NEEDS_HUMAN, name, f"Topic {key[0]} goes on by itself again.")
