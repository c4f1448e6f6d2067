"""Which fleet alerts notify an operator immediately, by the webhook and the command that the daemon uses too.

Invariant: an operator can read ten messages, not a thousand. Each server sends one message, however many of its
conditions are critical; when many servers fail together, one message covers all of them. `forecastd.alerts` decides
when a message is repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from forecastd.fleet.conditions.alert import FleetAlert
from forecastd.fleet.formatting import join_words

SERVER_KIND, FLEET_KIND = "server_critical", "fleet_critical"
FLEET = "fleet"
# With more critical servers than AGGREGATE_ABOVE one message covers all, until there are AGGREGATE_UNTIL or fewer.
AGGREGATE_ABOVE, AGGREGATE_UNTIL = 10, 5
MAX_NAMES = 3  # alerts of a server, or servers of the fleet, that a message lists


class OperatorNotifier(Protocol):
    """Sends notifications; `forecastd.alerts` has the implementation. Both methods return immediately.

    `resolve` of an alert that was never sent does nothing.
    """

    def fire(self, kind: str, key: str, text: str) -> None: ...

    def resolve(self, kind: str, key: str, text: str) -> None: ...


class AlertNotifier:
    """Notifies an operator once when a server needs attention, and once when it has recovered.

    A server needs attention when one of its alerts is critical, or is a warning whose forecast reaches the critical
    threshold. It has recovered when that alert has fallen below warning, so that a fluctuating value notifies once.
    """

    def __init__(self, notifier: OperatorNotifier, open_alerts: Sequence[FleetAlert] = ()) -> None:
        """`open_alerts`: alerts that are already open, of which the operator was notified."""
        self._notifier = notifier
        self._serious_ids = {alert.id for alert in open_alerts if _is_serious(alert)}
        self._notified_servers = set(self._group_by_server(open_alerts))
        self._is_aggregated = len(self._notified_servers) > AGGREGATE_ABOVE

    def update(self, alerts: Sequence[FleetAlert]) -> None:
        """Process the alerts that are open now. Call it after every update of the alert tracker."""
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
            self._notifier.resolve(SERVER_KIND, server, f"{server} has recovered.")
        self._notified_servers = set(by_server)

    def _notify_fleet(self, by_server: Mapping[str, Sequence[FleetAlert]]) -> None:
        """Start or end the single message for the whole fleet."""
        more = [f"{len(by_server) - MAX_NAMES} more"] if len(by_server) > MAX_NAMES else []
        names = join_words([*sorted(by_server)[:MAX_NAMES], *more])
        if not self._is_aggregated and len(by_server) > AGGREGATE_ABOVE:
            self._is_aggregated = True
            first = next(iter(by_server.values()))[0]
            text = f"{len(by_server)} servers need attention: {names}. The worst: {first.message}."
            self._notifier.fire(FLEET_KIND, FLEET, text)
        elif self._is_aggregated and len(by_server) <= AGGREGATE_UNTIL:
            self._is_aggregated = False
            need = "server still needs" if len(by_server) == 1 else "servers still need"
            remaining = f"{len(by_server)} {need} attention: {names}" if by_server else "no server needs attention"
            self._notifier.resolve(FLEET_KIND, FLEET, f"The fleet has recovered; {remaining}.")

    def _group_by_server(self, alerts: Sequence[FleetAlert]) -> dict[str, list[FleetAlert]]:
        """The serious alerts by server, in their order."""
        by_server: dict[str, list[FleetAlert]] = {}
        for alert in alerts:
            if alert.id in self._serious_ids:
                by_server.setdefault(alert.server, []).append(alert)
        return by_server


def _is_serious(alert: FleetAlert) -> bool:
    return alert.severity == "critical" or (alert.severity == "warning" and alert.minutes_ahead is not None)
