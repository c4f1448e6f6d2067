"""What docs/fleet.md and docs/configuration.md say of the fleet is what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli.fleet import COMMANDS
from forecastd.fleet.alerting import CLEAR_TICKS, OPEN_TICKS
from forecastd.fleet.conditions import MARGIN
from forecastd.fleet.contract import METRICS, UNITS
from forecastd.fleet.observed import LOST, SILENT
from forecastd.fleet.readiness import MAX_GAP
from forecastd.fleet.risk import STARTS
from forecastd.fleet.simulator import SCENARIOS
from forecastd.fleet.simulator.badrows import KINDS
from forecastd.fleet.simulator.feeds import DUPLICATE
from forecastd.settings import Settings


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "fleet.md").read_text(encoding="utf-8")


def test_every_metric_stands_there_with_its_unit(page: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (.*) \|$", page, flags=re.MULTILINE)
    assert rows == [(metric.name, metric.unit, metric.text) for metric in METRICS]


def test_the_units_of_the_example_are_known(page: str) -> None:
    example = re.search(r'"units": \{(.*?)\}', page)
    assert example
    pairs = re.findall(r'"(\w+)": "([^"]+)"', example[1])
    units = {metric.name: metric.unit for metric in METRICS}
    assert pairs
    assert all(unit in UNITS[units[name]] for name, unit in pairs)


def test_every_code_of_a_refusal_is_explained(page: str) -> None:
    codes = {code for code, _ in KINDS.values()} - {DUPLICATE} | {"too_many_servers", "metrics"}
    table = page.partition("| refused as |")[2].partition("\n\n")[0]
    assert codes <= set(re.findall(r"`(\w+)`", table))


def test_every_setting_of_the_fleet_is_named_with_its_default(root: Path, page: str) -> None:
    text = (root / "docs" / "configuration.md").read_text(encoding="utf-8")
    names = [name for name in Settings.model_fields if name.startswith("fleet_")]
    assert [name for name in names if name.upper() not in text] == []
    for name in re.findall(r"`(FLEET_\w+)`", page):
        assert name.lower() in names, name


def test_the_rules_are_told_as_they_are(page: str) -> None:
    told = " ".join(page.split())
    assert f"after {OPEN_TICKS} values in a row" in told
    assert f"after {CLEAR_TICKS} values in a row that are more than {100 * MARGIN:g} %" in told
    assert f"`watch` from {STARTS['watch']:g}, `warning` from {STARTS['warning']:g}" in told
    assert f"`critical` from {STARTS['critical']:g}" in told
    assert f"silent for {SILENT} ticks, and critical after {LOST}" in told
    assert f"up to {('six', MAX_GAP)[MAX_GAP != 6]} ticks carries its last value on" in told
    assert all(f"`{scenario}`" in told for scenario in SCENARIOS)
    assert all(f"fleet {name}" in told for name in COMMANDS)
