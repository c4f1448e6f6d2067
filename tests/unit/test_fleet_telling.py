"""Who is told of the fleet's alerts, and how often: one message a server, and one for all where many go down."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from forecastd.fleet.alert import Alert, Severity
from forecastd.fleet.telling import FEW, MANY, Telling


@dataclass
class Person:
    """Keeps what it is told."""

    heard: list[tuple[str, str, str]] = field(default_factory=list)

    def raise_alarm(self, kind: str, key: str, text: str) -> None:
        self.heard.append((kind, key, text))

    def recover(self, kind: str, key: str, text: str) -> None:
        self.heard.append((f"{kind} over", key, text))

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [(kind, key) for kind, key, _ in self.heard]


def alert(
    server: str = "a", severity: Severity = "critical", minutes: float | None = None, of: str = "cpu_percent"
) -> Alert:
    return Alert(server, "web", of, severity, 5.0, 5.0, 97.0, 80.0, 95.0, minutes)


def test_a_server_in_trouble_is_one_message_whatever_is_wrong_with_it_and_one_when_it_is_over() -> None:
    person = Person()
    telling = Telling(person)
    telling.tell([alert(), alert(of="memory_percent"), alert("b", "warning"), alert("c", "early", 3.0)])
    telling.tell([alert(), alert(of="memory_percent"), alert(of="swap_percent")])
    telling.tell([alert(of="swap_percent")])
    telling.tell([])
    assert person.heard == [
        ("server_critical", "a", "a (web): CPU at 97 %, critical from 95 %; memory at 97 %, critical from 95 %."),
        ("server_critical over", "a", "a is out of trouble."),
    ]


def test_a_warning_that_is_going_to_be_critical_is_trouble_already() -> None:
    person = Person()
    Telling(person).tell([alert(severity="warning", minutes=6.0)])
    assert person.heard[0][2] == "a (web): CPU at 97 %, warning from 80 %, likely above 95 % in 6 min."


@pytest.mark.parametrize(("after", "over"), [
    ([alert(severity="warning")], False), ([alert(severity="early", minutes=1.0)], True), ([], True),
    ([alert(severity="warning", of="disk_percent")], True),
])  # fmt: skip
def test_trouble_is_over_when_that_alert_is_below_warning(after: list[Alert], over: bool) -> None:
    person = Person()
    telling = Telling(person)
    telling.tell([alert()])
    telling.tell(after)
    assert (person.kinds[1:] == [("server_critical over", "a")]) == over
    telling.tell([alert()])
    assert len(person.heard) == (3 if over else 1)


def many(count: int) -> list[Alert]:
    return [alert(f"s{number:02}") for number in range(count)]


def test_where_many_go_down_together_they_are_told_as_one() -> None:
    person = Person()
    telling = Telling(person)
    telling.tell(many(MANY + 1))
    telling.tell(many(MANY + 20))
    telling.tell(many(FEW + 1))
    assert person.kinds[0] == ("fleet_critical", "fleet")
    assert person.heard[0][2] == (
        "11 servers are in trouble: s00, s01, s02 and 8 more. The gravest: s00: CPU at 97 %, critical from 95 %."
    )
    assert all(kind == "server_critical over" for kind, _ in person.kinds[1:])  # of none was told: that says nothing
    telling.tell(many(2))
    (text,) = (text for kind, _, text in person.heard if kind == "fleet_critical over")
    assert text == "The fleet is out of trouble, with 2 of its servers still in trouble: s00 and s01."
    telling.tell([])
    telling.tell([alert("late")])
    assert person.kinds[-1] == ("server_critical", "late")


def test_those_that_were_told_one_by_one_before_it_became_many_recover_one_by_one() -> None:
    person = Person()
    telling = Telling(person)
    telling.tell(many(3))
    telling.tell(many(MANY + 1))
    telling.tell([])
    assert person.kinds[:4] == [
        *(("server_critical", f"s0{number}") for number in range(3)),
        ("fleet_critical", "fleet"),
    ]
    assert person.kinds[4] == ("fleet_critical over", "fleet")
    assert ("server_critical over", "s00") in person.kinds


@pytest.mark.parametrize("count", [1, MANY + 1])
def test_what_was_told_before_a_restart_is_not_told_again(count: int) -> None:
    person = Person()
    telling = Telling(person, many(count))
    telling.tell([replace(one, value=98.0) for one in many(count)])
    assert person.heard == []
    telling.tell([])
    assert ("server_critical over", "s00") in person.kinds
