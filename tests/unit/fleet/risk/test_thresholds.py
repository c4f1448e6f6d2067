"""Thresholds: a user's file takes precedence; an invalid one is an error with line, cause and fix."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forecastd.errors import NeedsHuman
from forecastd.fleet.contract import METRIC_INDEX, METRIC_NAMES, METRICS
from forecastd.fleet.risk.thresholds import MetricThresholds, load_thresholds


@pytest.fixture
def thresholds_file(tmp_path: Path) -> Path:
    return tmp_path / "limits.toml"


def test_builtin_thresholds_are_within_bounds() -> None:
    thresholds = load_thresholds()
    assert {"web", "database", "cache", "worker", "batch"} <= set(thresholds.table)
    for profile in (*thresholds.table, "generic"):
        for metric in METRICS:
            limits = thresholds.get(profile, metric.name)
            assert metric.low < limits.warning < limits.critical <= metric.high, (profile, metric.name)


def test_simulated_profiles_have_thresholds() -> None:
    simulator = pytest.importorskip("forecastd.fleet.simulator.profiles")
    assert {profile.name for profile in simulator.PROFILES} <= set(load_thresholds().table)


def test_user_file_and_profile_take_precedence(thresholds_file: Path) -> None:
    thresholds_file.write_text(
        "[default]\ncpu_percent = { warning = 10, critical = 20 }\nlatency_ms = { warning = 1, critical = 2.5 }\n"
        "[profile.web]\ncpu_percent = { warning = 30, critical = 40 }\n"
        "[profile.'odd-1']\nswap_percent = {warning=1, critical=2}\n"
    )
    thresholds, builtin = load_thresholds(thresholds_file), load_thresholds()
    assert thresholds.get("web", "cpu_percent") == MetricThresholds(30, 40)  # the user's profile
    assert thresholds.get("database", "cpu_percent") == MetricThresholds(
        10, 20
    )  # the user's default before the built-in profile
    assert thresholds.get("web", "latency_ms") == MetricThresholds(1, 2.5)
    assert thresholds.get("odd-1", "swap_percent") == MetricThresholds(1, 2)
    assert thresholds.get("web", "error_percent") == builtin.get("web", "error_percent")  # the built-in profile
    assert thresholds.get("nobody", "disk_percent") == builtin.get("", "disk_percent")  # the built-in default


def test_threshold_arrays_equal_table(thresholds_file: Path) -> None:
    thresholds_file.write_text("[profile.web]\ncpu_percent = { warning = 30, critical = 40 }\n")
    thresholds, profiles = load_thresholds(thresholds_file), ["web", "unheard-of", "database", "web"]
    warning, critical = thresholds.arrays(profiles)
    assert warning.shape == critical.shape == (4, len(METRIC_NAMES))
    for row, profile in enumerate(profiles):
        assert [MetricThresholds(*pair) for pair in zip(warning[row], critical[row], strict=True)] == [
            thresholds.get(profile, name) for name in METRIC_NAMES
        ]
    assert thresholds.arrays([])[0].shape == (0, len(METRIC_NAMES))
    assert thresholds.table["web"]["cpu_percent"] == MetricThresholds(30.0, 40.0)
    assert thresholds.get("", "memory_percent") == load_thresholds().get("unheard-of", "memory_percent")


def test_empty_thresholds_file_changes_nothing(thresholds_file: Path) -> None:
    thresholds_file.write_text("")
    assert load_thresholds(thresholds_file).table == load_thresholds().table


INVALID_FILES = {
    "not_toml": ("cpu = = 3", "is not valid TOML", "line 1"),
    "unknown_table": ("\n[profiles.web]\n", "unknown key 'profiles'", "line 2"),
    "number_at_top": ("cpu_percent = 3\n", "unknown key 'cpu_percent'", "line 1"),
    "default_no_table": ("default = 3\n", "not a table", "[default]"),
    "profile_no_table": ("profile = 3\n", "`profile` is not a table", "line 1"),
    "web_no_table": ("[profile]\nweb = 3\n", "not a table", "[profile.web]"),
    "bad_profile_name": ("[default]\n[profile.'Web 1']\n", "invalid profile name 'Web 1'", "[profile.Web 1]"),
    "unknown_metric": ("[default]\n\ncpu = { warning = 1, critical = 2 }", "unknown metric. Use one of", "line 3"),
    "critical_missing": ("[profile.web]\ncpu_percent = { warning = 1 }", "with both numbers", "line 2, [profile.web]"),
    "extra_key": ("[default]\ncpu_percent = { warning = 1, critical = 2, info = 0 }", "no other key", "line 2"),
    "bare_number": ("[default]\ncpu_percent = 80", "{ warning = NUMBER", "line 2"),
    "text": ("[default]\ncpu_percent = { warning = '80', critical = 90 }", "warning is '80', which is not a", "line 2"),
    "true": ("[default]\ncpu_percent = { warning = 8, critical = true }", "critical is True, which is", "line 2"),
    "nan": ("[default]\ncpu_percent = { warning = nan, critical = 90 }", "not a number", "line 2"),
    "infinite": ("[default]\nlatency_ms = { warning = 5, critical = inf }", "not a number", "line 2"),
    "400_digits": (f"[default]\nlatency_ms = {{ warning = 5, critical = 1{'0' * 400} }}", "not a number", "line 2"),
    "reversed": ("[default]\ncpu_percent = { warning = 90, critical = 80 }", "90 is not below critical 80", "line 2"),
    "equal": ("[default]\ncpu_percent = { warning = 90, critical = 90 }", "not below critical", "line 2"),
    "fraction_for_percent": ("[default]\nmemory_percent = { warning = 0.8, critical = 0.9 }", "Check the unit", "line 2"),
    "above_maximum": ("[default]\ncpu_percent = { warning = 90, critical = 101 }", "at most 100 %", "line 2"),
    "second_section": (
        "[default]\ncpu_percent = { warning = 1, critical = 2 }\n[profile.web]\ncpu_percent = 4", "write it as", "line 4",
    ),
    "nested": (f"[default]\nx = {'[' * 2000}{']' * 2000}", "nested too deeply", ""),
}  # fmt: skip


@pytest.mark.parametrize(("text", "cause", "location"), INVALID_FILES.values(), ids=INVALID_FILES.keys())
def test_invalid_thresholds_name_file_line_and_cause(
    thresholds_file: Path, text: str, cause: str, location: str
) -> None:
    thresholds_file.write_text(text)
    with pytest.raises(NeedsHuman) as caught:
        load_thresholds(thresholds_file)
    message = str(caught.value)
    assert str(thresholds_file) in message
    assert cause in message
    assert location in message
    assert len(message) < 600


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe", "binary"])
def test_unreadable_thresholds_file_is_refused(thresholds_file: Path, kind: str) -> None:
    if kind == "directory":
        thresholds_file.mkdir()
    elif kind == "pipe":
        os.mkfifo(thresholds_file)
    elif kind == "binary":
        thresholds_file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(NeedsHuman, match="FLEET_THRESHOLDS") as caught:
        load_thresholds(thresholds_file)
    assert str(thresholds_file) in str(caught.value)


def test_critical_threshold_at_maximum_is_allowed(thresholds_file: Path) -> None:
    thresholds_file.write_text("[default]\ncpu_percent = { warning = 99, critical = 100 }")
    assert load_thresholds(thresholds_file).arrays(["x"])[1][0, METRIC_INDEX["cpu_percent"]] == 100
