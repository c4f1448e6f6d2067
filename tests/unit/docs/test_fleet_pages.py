"""What docs/fleet.md and docs/configuration.md say of the fleet is what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli.fleet import COMMANDS
from forecastd.fleet.conditions.alert_tracker import CLEAR_TICKS, OPEN_TICKS
from forecastd.fleet.conditions.rules import HYSTERESIS
from forecastd.fleet.contract import METRICS, UNIT_FACTORS
from forecastd.fleet.risk.assessment import LEVEL_MIN_SCORES
from forecastd.fleet.risk.current_values import SILENT_CRITICAL_TICKS, SILENT_WARNING_TICKS
from forecastd.fleet.simulator import SCENARIOS
from forecastd.fleet.simulator.bad_records import BAD_ROW_KINDS
from forecastd.fleet.simulator.feeds import DUPLICATE
from forecastd.fleet.window.readiness import MAX_GAP
from forecastd.settings import Settings


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "fleet.md").read_text(encoding="utf-8")


def test_docs_list_every_metric_with_unit(page: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (.*) \|$", page, flags=re.MULTILINE)
    assert rows == [(metric.name, metric.unit, metric.description) for metric in METRICS]


def test_docs_example_units_are_known(page: str) -> None:
    example = re.search(r'"units": \{(.*?)\}', page)
    assert example
    pairs = re.findall(r'"(\w+)": "([^"]+)"', example[1])
    units = {metric.name: metric.unit for metric in METRICS}
    assert pairs
    assert all(unit in UNIT_FACTORS[units[name]] for name, unit in pairs)


def test_docs_explain_every_refusal_code(page: str) -> None:
    codes = {code for code, _ in BAD_ROW_KINDS.values()} - {DUPLICATE} | {"too_many_servers", "metrics"}
    table = page.partition("| refused as |")[2].partition("\n\n")[0]
    assert codes <= set(re.findall(r"`(\w+)`", table))


def test_docs_list_every_fleet_setting_with_default(root: Path, page: str) -> None:
    text = (root / "docs" / "configuration.md").read_text(encoding="utf-8")
    names = [name for name in Settings.model_fields if name.startswith("fleet_")]
    assert [name for name in names if name.upper() not in text] == []
    for name in re.findall(r"`(FLEET_\w+)`", page):
        assert name.lower() in names, name


def test_docs_numbers_match_rules(page: str) -> None:
    sentences = " ".join(page.split())
    assert f"after {OPEN_TICKS} values in a row" in sentences
    assert f"after {CLEAR_TICKS} values in a row that are more than {100 * HYSTERESIS:g} %" in sentences
    assert f"`watch` from {LEVEL_MIN_SCORES['watch']:g}, `warning` from {LEVEL_MIN_SCORES['warning']:g}" in sentences
    assert f"`critical` from {LEVEL_MIN_SCORES['critical']:g}" in sentences
    assert f"silent for {SILENT_WARNING_TICKS} ticks, and critical after {SILENT_CRITICAL_TICKS}" in sentences
    assert f"up to {('six', MAX_GAP)[MAX_GAP != 6]} ticks carries its last value on" in sentences
    assert all(f"`{scenario}`" in sentences for scenario in SCENARIOS)
    assert all(f"fleet {name}" in sentences for name in COMMANDS)
