"""Durations and counts in sentences."""

from __future__ import annotations

import pytest

from forecastd.runtime.formatting import format_count, format_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (0.6, "1 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3605, "1 h"),
        (7260, "2 h 1 min"),
        (86_400, "1 d"),
        (90_061, "1 d 1 h"),
        (400 * 86_400, "400 d"),
        (4e7, "462 d 23 h"),
    ],
)
def test_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [((0, "epoch"), "0 epochs"), ((1, "epoch"), "1 epoch"), ((2, "entry", "entries"), "2 entries")]
)
def test_count_has_its_plural(count: tuple[int, str], text: str) -> None:
    assert format_count(*count) == text
