"""Who is told of the fleet's alerts, and how often: one message a server, and one for all where many go down."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from forecastd.fleet.conditions.alert import FleetAlert, Severity
from forecastd.fleet.conditions.notifier import AGGREGATE_ABOVE, AGGREGATE_UNTIL, AlertNotifier


@dataclass
class RecordingNotifier:
    """Keeps what it is told."""

    heard: list[tuple[str, str, str]] = field(default_factory=list)

    def fire(self, kind: str, key: str, text: str) -> None:
        self.heard.append((kind, key, text))

    def resolve(self, kind: str, key: str, text: str) -> None:
        self.heard.append((f"{kind} over", key, text))

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [(kind, key) for kind, key, _ in self.heard]


def alert(
    server: str = "a", severity: Severity = "critical", minutes: float | None = None, of: str = "cpu_percent"
) -> FleetAlert:
    return FleetAlert(server, "web", of, severity, 5.0, 5.0, 97.0, 80.0, 95.0, minutes)


def test_server_alarm_is_sent_once_and_recovers_once() -> None:
    person = RecordingNotifier()
    telling = AlertNotifier(person)
    telling.update([alert(), alert(of="memory_percent"), alert("b", "warning"), alert("c", "early", 3.0)])
    telling.update([alert(), alert(of="memory_percent"), alert(of="swap_percent")])
    telling.update([alert(of="swap_percent")])
    telling.update([])
    assert person.heard == [
        ("server_critical", "a", "a (web): CPU at 97 %, critical from 95 %; memory at 97 %, critical from 95 %."),
        ("server_critical over", "a", "a is out of trouble."),
    ]


def test_warning_forecast_critical_raises_alarm() -> None:
    person = RecordingNotifier()
    AlertNotifier(person).update([alert(severity="warning", minutes=6.0)])
    assert person.heard[0][2] == "a (web): CPU at 97 %, warning from 80 %, likely above 95 % in 6 min."


@pytest.mark.parametrize(("after", "over"), [
    ([alert(severity="warning")], False), ([alert(severity="early", minutes=1.0)], True), ([], True),
    ([alert(severity="warning", of="disk_percent")], True),
])  # fmt: skip
def test_alarm_recovers_when_alert_is_below_warning(after: list[FleetAlert], over: bool) -> None:
    person = RecordingNotifier()
    telling = AlertNotifier(person)
    telling.update([alert()])
    telling.update(after)
    assert (person.kinds[1:] == [("server_critical over", "a")]) == over
    telling.update([alert()])
    assert len(person.heard) == (3 if over else 1)


def many_alerts(count: int) -> list[FleetAlert]:
    return [alert(f"s{number:02}") for number in range(count)]


def test_many_servers_raise_one_fleet_alarm() -> None:
    person = RecordingNotifier()
    telling = AlertNotifier(person)
    telling.update(many_alerts(AGGREGATE_ABOVE + 1))
    telling.update(many_alerts(AGGREGATE_ABOVE + 20))
    telling.update(many_alerts(AGGREGATE_UNTIL + 1))
    assert person.kinds[0] == ("fleet_critical", "fleet")
    assert person.heard[0][2] == (
        "11 servers are in trouble: s00, s01, s02 and 8 more. The gravest: s00: CPU at 97 %, critical from 95 %."
    )
    assert all(kind == "server_critical over" for kind, _ in person.kinds[1:])  # of none was told: that says nothing
    telling.update(many_alerts(2))
    (text,) = (text for kind, _, text in person.heard if kind == "fleet_critical over")
    assert text == "The fleet is out of trouble, with 2 of its servers still in trouble: s00 and s01."
    telling.update([])
    telling.update([alert("late")])
    assert person.kinds[-1] == ("server_critical", "late")


def test_servers_alarmed_individually_recover_individually() -> None:
    person = RecordingNotifier()
    telling = AlertNotifier(person)
    telling.update(many_alerts(3))
    telling.update(many_alerts(AGGREGATE_ABOVE + 1))
    telling.update([])
    assert person.kinds[:4] == [
        *(("server_critical", f"s0{number}") for number in range(3)),
        ("fleet_critical", "fleet"),
    ]
    assert person.kinds[4] == ("fleet_critical over", "fleet")
    assert ("server_critical over", "s00") in person.kinds


@pytest.mark.parametrize("count", [1, AGGREGATE_ABOVE + 1])
def test_alarm_before_restart_is_not_repeated(count: int) -> None:
    person = RecordingNotifier()
    telling = AlertNotifier(person, many_alerts(count))
    telling.update([replace(one, value=98.0) for one in many_alerts(count)])
    assert person.heard == []
    telling.update([])
    assert ("server_critical over", "s00") in person.kinds
