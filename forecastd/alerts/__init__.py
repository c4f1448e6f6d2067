"""Tells a person that an epoch was missed, or that something needs them: by a webhook or a command of the user's."""

from forecastd.alerts.dispatcher import AlertDispatcher
from forecastd.alerts.rules import AlertMessage

__all__ = ["AlertDispatcher", "AlertMessage"]
