"""Which alerts of the fleet reach a person at once: by the webhook and the command that the daemon uses too.

The one thing to know before changing it: a person can read ten messages, not a thousand. So it is one message a server,
whatever is wrong with it, and where many go down together, one for all of them. What is told again and when is decided in
`forecastd.alerts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from forecastd.fleet.conditions.alert import FleetAlert
from forecastd.fleet.formatting import join_words

SERVER_KIND, FLEET_KIND = "server_critical", "fleet_critical"
FLEET = "fleet"
AGGREGATE_ABOVE, AGGREGATE_UNTIL = (
    10,
    5,
)  # servers in trouble: with more than MANY they are told as one, until there are no more than FEW
MAX_NAMES = 3  # alerts of a server, or servers of the fleet


class OperatorNotifier(Protocol):
    """Who is told; `forecastd.alerts.Alerts` is one. Both return at once; a recovery of what was never told is nothing."""

    def fire(self, kind: str, key: str, text: str) -> None: ...

    def resolve(self, kind: str, key: str, text: str) -> None: ...


class AlertNotifier:
    """Tells a person of servers in trouble, once each, and when it is over.

    A server is in trouble when an alert of it is critical, or a warning whose forecast reaches the critical threshold; and
    it stays so until that alert has fallen below warning, so that nothing is told twice of a value that wavers.
    """

    def __init__(self, notifier: OperatorNotifier, open_alerts: Sequence[FleetAlert] = ()) -> None:
        """`known`: the alerts that are open already, of which the person has heard."""
        self._notifier = notifier
        self._serious_ids = {alert.id for alert in open_alerts if _is_serious(alert)}
        self._notified_servers = set(self._group_by_server(open_alerts))
        self._is_aggregated = len(self._notified_servers) > AGGREGATE_ABOVE

    def update(self, alerts: Sequence[FleetAlert]) -> None:
        """Take in the alerts that are open now. To be called after every update of the book."""
        self._serious_ids = {
            alert.id
            for alert in alerts
            if _is_serious(alert) or (alert.id in self._serious_ids and alert.severity == "warning")
        }
        by_server = self._group_by_server(alerts)
        self._notify_fleet(by_server)
        for server in sorted(by_server.keys() - self._notified_servers):
            if not self._is_aggregated:
                description = "; ".join(alert.description for alert in by_server[server][:MAX_NAMES])
                self._notifier.fire(SERVER_KIND, server, f"{server} ({by_server[server][0].profile}): {description}.")
        for server in sorted(self._notified_servers - by_server.keys()):
            self._notifier.resolve(SERVER_KIND, server, f"{server} is out of trouble.")
        self._notified_servers = set(by_server)

    def _notify_fleet(self, by_server: Mapping[str, Sequence[FleetAlert]]) -> None:
        """Begin or end telling of all of them as one."""
        names = join_words(
            [
                *sorted(by_server)[:MAX_NAMES],
                *([f"{len(by_server) - MAX_NAMES} more"] if len(by_server) > MAX_NAMES else []),
            ]
        )
        if not self._is_aggregated and len(by_server) > AGGREGATE_ABOVE:
            self._is_aggregated = True
            first = next(iter(by_server.values()))[0]
            text = f"{len(by_server)} servers are in trouble: {names}. The gravest: {first.message}."
            self._notifier.fire(FLEET_KIND, FLEET, text)
        elif self._is_aggregated and len(by_server) <= AGGREGATE_UNTIL:
            self._is_aggregated = False
            remaining = (
                f"{len(by_server)} of its servers still in trouble: {names}"
                if by_server
                else "none of its servers in trouble"
            )
            self._notifier.resolve(FLEET_KIND, FLEET, f"The fleet is out of trouble, with {remaining}.")

    def _group_by_server(self, alerts: Sequence[FleetAlert]) -> dict[str, list[FleetAlert]]:
        """The grave alerts by server, in their order."""
        by_server: dict[str, list[FleetAlert]] = {}
        for alert in alerts:
            if alert.id in self._serious_ids:
                by_server.setdefault(alert.server, []).append(alert)
        return by_server


def _is_serious(alert: FleetAlert) -> bool:
    return alert.severity == "critical" or (alert.severity == "warning" and alert.minutes_ahead is not None)
