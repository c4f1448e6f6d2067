"""The names and numbers of the fleet in docs/fleet.md and docs/configuration.md are those of the program."""

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
    text = " ".join(page.split())
    gap = {6: "(six|6)"}.get(MAX_GAP, str(MAX_GAP))
    patterns = [
        rf"\bopens\b[^|]*\| [^|]*\b{OPEN_TICKS} ",
        rf"\bclears\b[^|]*\| [^|]*\b{CLEAR_TICKS} [^|]*\b{100 * HYSTERESIS:g} %",
        *(rf"`{level}`[^`.]*\b{score:g}\b" for level, score in LEVEL_MIN_SCORES.items()),
        rf"\b{SILENT_WARNING_TICKS} ticks\b[^.]*\b{SILENT_CRITICAL_TICKS}\b",
        rf"\b{gap} ticks\b",
    ]
    assert [pattern for pattern in patterns if not re.search(pattern, text)] == []
    assert all(f"`{scenario}`" in text for scenario in SCENARIOS)
    assert all(f"fleet {name}" in text for name in COMMANDS)
