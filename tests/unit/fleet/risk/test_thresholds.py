"""Thresholds of the fleet: what a file of the user's says goes first; what does not fit is told with place, cause and fix."""

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
    found = load_thresholds()
    assert {"web", "database", "cache", "worker", "batch"} <= set(found.profiles)
    for profile in (*found.profiles, "generic"):
        for metric in METRICS:
            limits = found.get(profile, metric.name)
            assert metric.low < limits.warning < limits.critical <= metric.high, (profile, metric.name)


def test_simulated_profiles_have_thresholds() -> None:
    simulator = pytest.importorskip("forecastd.fleet.simulator.profiles")
    assert set(simulator.BY_NAME) <= set(load_thresholds().profiles)


def test_user_file_and_profile_take_precedence(thresholds_file: Path) -> None:
    thresholds_file.write_text(
        "[default]\ncpu_percent = { warning = 10, critical = 20 }\nlatency_ms = { warning = 1, critical = 2.5 }\n"
        "[profile.web]\ncpu_percent = { warning = 30, critical = 40 }\n"
        "[profile.'odd-1']\nswap_percent = {warning=1, critical=2}\n"
    )
    found, embedded = load_thresholds(thresholds_file), load_thresholds()
    assert found.get("web", "cpu_percent") == MetricThresholds(30, 40)  # the user's profile
    assert found.get("database", "cpu_percent") == MetricThresholds(
        10, 20
    )  # the user's default before the embedded profile
    assert found.get("web", "latency_ms") == MetricThresholds(1, 2.5)
    assert found.get("odd-1", "swap_percent") == MetricThresholds(1, 2)
    assert found.get("web", "error_percent") == embedded.get("web", "error_percent")  # the embedded profile
    assert found.get("nobody", "disk_percent") == embedded.get("", "disk_percent")  # the embedded default


def test_threshold_arrays_equal_table(thresholds_file: Path) -> None:
    thresholds_file.write_text("[profile.web]\ncpu_percent = { warning = 30, critical = 40 }\n")
    found, profiles = load_thresholds(thresholds_file), ["web", "unheard-of", "database", "web"]
    warning, critical = found.arrays(profiles)
    assert warning.shape == critical.shape == (4, len(METRIC_NAMES))
    for row, profile in enumerate(profiles):
        assert [MetricThresholds(*pair) for pair in zip(warning[row], critical[row], strict=True)] == [
            found.get(profile, name) for name in METRIC_NAMES
        ]
    assert found.arrays([])[0].shape == (0, len(METRIC_NAMES))
    assert found.as_json()["web"]["cpu_percent"] == {"warning": 30.0, "critical": 40.0}
    assert found.as_json()["default"]["memory_percent"] == vars(found.get("", "memory_percent"))


def test_empty_thresholds_file_changes_nothing(thresholds_file: Path) -> None:
    thresholds_file.write_text("")
    assert load_thresholds(thresholds_file).as_json() == load_thresholds().as_json()


BAD = {
    "no TOML": ("cpu = = 3", "is not TOML", "line 1"),
    "an unknown table": ("\n[profiles.web]\n", "'profiles' has no place", "line 2"),
    "a number at the top": ("cpu_percent = 3\n", "'cpu_percent' has no place", "line 1"),
    "default is no table": ("default = 3\n", "it is no table", "[default]"),
    "profile is no table": ("profile = 3\n", "`profile` is no table", "line 1"),
    "a profile is no table": ("[profile]\nweb = 3\n", "it is no table", "[profile.web]"),
    "a bad profile name": ("[default]\n[profile.'Web 1']\n", "'Web 1' cannot be a profile's name", "[profile.Web 1]"),
    "an unknown metric": ("[default]\n\ncpu = { warning = 1, critical = 2 }", "no such metric. Known are", "line 3"),
    "one of two": ("[profile.web]\ncpu_percent = { warning = 1 }", "with both and nothing else", "line 2, [profile.web]"),
    "one too many": ("[default]\ncpu_percent = { warning = 1, critical = 2, info = 0 }", "nothing else", "line 2"),
    "a bare number": ("[default]\ncpu_percent = 80", "{ warning = NUMBER", "line 2"),
    "text": ("[default]\ncpu_percent = { warning = '80', critical = 90 }", "warning is '80', which is not a", "line 2"),
    "true": ("[default]\ncpu_percent = { warning = 8, critical = true }", "critical is True, which is", "line 2"),
    "nan": ("[default]\ncpu_percent = { warning = nan, critical = 90 }", "not a number", "line 2"),
    "infinite": ("[default]\nlatency_ms = { warning = 5, critical = inf }", "not a number", "line 2"),
    "endless digits": (f"[default]\nlatency_ms = {{ warning = 5, critical = 1{'0' * 400} }}", "not a number", "line 2"),
    "upside down": ("[default]\ncpu_percent = { warning = 90, critical = 80 }", "90 is not below critical 80", "line 2"),
    "the same": ("[default]\ncpu_percent = { warning = 90, critical = 90 }", "not below critical", "line 2"),
    "a fraction for a percentage": ("[default]\nmemory_percent = { warning = 0.8, critical = 0.9 }", "the unit", "line 2"),
    "above the highest": ("[default]\ncpu_percent = { warning = 90, critical = 101 }", "at most 100 %", "line 2"),
    "the second of two sections": (
        "[default]\ncpu_percent = { warning = 1, critical = 2 }\n[profile.web]\ncpu_percent = 4", "must be", "line 4",
    ),
    "nested": (f"[default]\nx = {'[' * 2000}{']' * 2000}", "nested too deeply", ""),
}  # fmt: skip


@pytest.mark.parametrize(("text", "cause", "place"), BAD.values(), ids=BAD.keys())
def test_invalid_thresholds_name_file_line_and_cause(thresholds_file: Path, text: str, cause: str, place: str) -> None:
    thresholds_file.write_text(text)
    with pytest.raises(NeedsHuman) as caught:
        load_thresholds(thresholds_file)
    message = str(caught.value)
    assert str(thresholds_file) in message
    assert cause in message
    assert place in message
    assert len(message) < 600


@pytest.mark.parametrize("kind", ["missing", "a directory", "a pipe", "binary"])
def test_unreadable_thresholds_file_is_refused(thresholds_file: Path, kind: str) -> None:
    if kind == "a directory":
        thresholds_file.mkdir()
    elif kind == "a pipe":
        os.mkfifo(thresholds_file)
    elif kind == "binary":
        thresholds_file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(NeedsHuman, match="FLEET_THRESHOLDS") as caught:
        load_thresholds(thresholds_file)
    assert str(thresholds_file) in str(caught.value)


def test_critical_threshold_at_maximum_is_allowed(thresholds_file: Path) -> None:
    thresholds_file.write_text("[default]\ncpu_percent = { warning = 99, critical = 100 }")
    assert load_thresholds(thresholds_file).arrays(["x"])[1][0, METRIC_INDEX["cpu_percent"]] == 100
