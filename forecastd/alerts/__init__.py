"""Alerts to the operator (a missed epoch, a condition that needs a person) by a webhook or a command of theirs."""

from forecastd.alerts.dispatcher import AlertDispatcher
from forecastd.alerts.rules import AlertMessage

__all__ = ["AlertDispatcher", "AlertMessage"]
