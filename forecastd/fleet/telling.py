"""Which alerts of the fleet reach a person at once: by the webhook and the command that the daemon uses too.

The one thing to know before changing it: a person can read ten messages, not a thousand. So it is one message a server,
whatever is wrong with it, and where many go down together, one for all of them. What is told again and when is decided in
`forecastd.alerts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from forecastd.fleet.alert import Alert
from forecastd.fleet.words import listed

SERVER_KIND, FLEET_KIND = "server_critical", "fleet_critical"
FLEET = "fleet"
MANY, FEW = 10, 5  # servers in trouble: with more than MANY they are told as one, until there are no more than FEW
NAMED = 3  # alerts of a server, or servers of the fleet


class Person(Protocol):
    """Who is told; `forecastd.alerts.Alerts` is one. Both return at once; a recovery of what was never told is nothing."""

    def raise_alarm(self, kind: str, key: str, text: str) -> None: ...

    def recover(self, kind: str, key: str, text: str) -> None: ...


class Telling:
    """Tells a person of servers in trouble, once each, and when it is over.

    A server is in trouble when an alert of it is critical, or a warning whose forecast reaches the critical threshold; and
    it stays so until that alert has fallen below warning, so that nothing is told twice of a value that wavers.
    """

    def __init__(self, person: Person, known: Sequence[Alert] = ()) -> None:
        """`known`: the alerts that are open already, of which the person has heard."""
        self._person = person
        self._grave = {alert.id for alert in known if _is_grave(alert)}
        self._servers = set(self._by_server(known))
        self._many = len(self._servers) > MANY

    def tell(self, alerts: Sequence[Alert]) -> None:
        """Take in the alerts that are open now. To be called after every update of the book."""
        self._grave = {
            one.id for one in alerts if _is_grave(one) or (one.id in self._grave and one.severity == "warning")
        }
        found = self._by_server(alerts)
        self._tell_many(found)
        for server in sorted(found.keys() - self._servers):
            if not self._many:
                what = "; ".join(alert.what for alert in found[server][:NAMED])
                self._person.raise_alarm(SERVER_KIND, server, f"{server} ({found[server][0].profile}): {what}.")
        for server in sorted(self._servers - found.keys()):
            self._person.recover(SERVER_KIND, server, f"{server} is out of trouble.")
        self._servers = set(found)

    def _tell_many(self, found: Mapping[str, Sequence[Alert]]) -> None:
        """Begin or end telling of all of them as one."""
        names = listed([*sorted(found)[:NAMED], *([f"{len(found) - NAMED} more"] if len(found) > NAMED else [])])
        if not self._many and len(found) > MANY:
            self._many = True
            first = next(iter(found.values()))[0]
            text = f"{len(found)} servers are in trouble: {names}. The gravest: {first.message}."
            self._person.raise_alarm(FLEET_KIND, FLEET, text)
        elif self._many and len(found) <= FEW:
            self._many = False
            left = (
                f"{len(found)} of its servers still in trouble: {names}" if found else "none of its servers in trouble"
            )
            self._person.recover(FLEET_KIND, FLEET, f"The fleet is out of trouble, with {left}.")

    def _by_server(self, alerts: Sequence[Alert]) -> dict[str, list[Alert]]:
        """The grave alerts by server, in their order."""
        found: dict[str, list[Alert]] = {}
        for alert in alerts:
            if alert.id in self._grave:
                found.setdefault(alert.server, []).append(alert)
        return found


def _is_grave(alert: Alert) -> bool:
    return alert.severity == "critical" or (alert.severity == "warning" and alert.minutes_ahead is not None)
