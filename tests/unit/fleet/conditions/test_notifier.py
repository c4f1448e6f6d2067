"""The alert notifier: one message per server, and one for all when many servers fail together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from forecastd.fleet.conditions.alert import FleetAlert, Severity
from forecastd.fleet.conditions.notifier import AGGREGATE_ABOVE, AGGREGATE_UNTIL, AlertNotifier


@dataclass
class RecordingNotifier:
    """Keeps the messages."""

    messages: list[tuple[str, str, str]] = field(default_factory=list)

    def fire(self, kind: str, key: str, text: str) -> None:
        self.messages.append((kind, key, text))

    def resolve(self, kind: str, key: str, text: str) -> None:
        self.messages.append((f"{kind} over", key, text))

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [(kind, key) for kind, key, _ in self.messages]


def alert(
    server: str = "a", severity: Severity = "critical", minutes: float | None = None, condition: str = "cpu_percent"
) -> FleetAlert:
    return FleetAlert(server, "web", condition, severity, 5.0, 5.0, 97.0, 80.0, 95.0, minutes)


def test_server_alarm_is_sent_once_and_recovers_once() -> None:
    operator = RecordingNotifier()
    notifier = AlertNotifier(operator)
    notifier.update([alert(), alert(condition="memory_percent"), alert("b", "warning"), alert("c", "early", 3.0)])
    notifier.update([alert(), alert(condition="memory_percent"), alert(condition="swap_percent")])
    notifier.update([alert(condition="swap_percent")])
    notifier.update([])
    assert operator.messages == [
        ("server_critical", "a", "a (web): CPU at 97 %, critical from 95 %; memory at 97 %, critical from 95 %."),
        ("server_critical over", "a", "a has recovered."),
    ]


def test_warning_forecast_critical_raises_alarm() -> None:
    operator = RecordingNotifier()
    AlertNotifier(operator).update([alert(severity="warning", minutes=6.0)])
    assert operator.messages[0][2] == "a (web): CPU at 97 %, warning from 80 %, likely above 95 % in 6 min."


@pytest.mark.parametrize(("after", "over"), [
    ([alert(severity="warning")], False), ([alert(severity="early", minutes=1.0)], True), ([], True),
    ([alert(severity="warning", condition="disk_percent")], True),
])  # fmt: skip
def test_alarm_recovers_when_alert_is_below_warning(after: list[FleetAlert], over: bool) -> None:
    operator = RecordingNotifier()
    notifier = AlertNotifier(operator)
    notifier.update([alert()])
    notifier.update(after)
    assert (operator.kinds[1:] == [("server_critical over", "a")]) == over
    notifier.update([alert()])
    assert len(operator.messages) == (3 if over else 1)


def many_alerts(count: int) -> list[FleetAlert]:
    return [alert(f"s{number:02}") for number in range(count)]


def test_many_servers_raise_one_fleet_alarm() -> None:
    operator = RecordingNotifier()
    notifier = AlertNotifier(operator)
    notifier.update(many_alerts(AGGREGATE_ABOVE + 1))
    notifier.update(many_alerts(AGGREGATE_ABOVE + 20))
    notifier.update(many_alerts(AGGREGATE_UNTIL + 1))
    assert operator.kinds[0] == ("fleet_critical", "fleet")
    assert operator.messages[0][2] == (
        "11 servers need attention: s00, s01, s02 and 8 more. The worst: s00: CPU at 97 %, critical from 95 %."
    )
    assert all(
        kind == "server_critical over" for kind, _ in operator.kinds[1:]
    )  # none was sent: the dispatcher ignores these
    notifier.update(many_alerts(2))
    (text,) = (text for kind, _, text in operator.messages if kind == "fleet_critical over")
    assert text == "The fleet has recovered; 2 servers still need attention: s00 and s01."
    notifier.update([])
    notifier.update([alert("late")])
    assert operator.kinds[-1] == ("server_critical", "late")


def test_servers_alarmed_individually_recover_individually() -> None:
    operator = RecordingNotifier()
    notifier = AlertNotifier(operator)
    notifier.update(many_alerts(3))
    notifier.update(many_alerts(AGGREGATE_ABOVE + 1))
    notifier.update([])
    assert operator.kinds[:4] == [
        *(("server_critical", f"s0{number}") for number in range(3)),
        ("fleet_critical", "fleet"),
    ]
    assert operator.kinds[4] == ("fleet_critical over", "fleet")
    assert ("server_critical over", "s00") in operator.kinds


@pytest.mark.parametrize("count", [1, AGGREGATE_ABOVE + 1])
def test_alarm_before_restart_is_not_repeated(count: int) -> None:
    operator = RecordingNotifier()
    notifier = AlertNotifier(operator, many_alerts(count))
    notifier.update([replace(open_alert, value=98.0) for open_alert in many_alerts(count)])
    assert operator.messages == []
    notifier.update([])
    assert ("server_critical over", "s00") in operator.kinds
