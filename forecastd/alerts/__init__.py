"""Tells a person that an epoch was missed, or that something needs them: by a webhook or a command of the user's."""

from forecastd.alerts.alerts import Alerts
from forecastd.alerts.book import Message

__all__ = ["Alerts", "Message"]
