"""What `fleet serve` refuses before it starts: each in one line, with an exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.main import main

KEY = "a-key-of-good-length"


@pytest.fixture
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A directory and a state of the test's own; tests may add to the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("FLEET_PORT", "0")
    return monkeypatch


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--demo --host 192.0.2.1", 5, "Cannot listen"),
        ("--host 0.0.0.0", 5, "FLEET_API_KEYS_FILE"),
        ("--model nowhere", 5, "nowhere"),
        ("--demo --model nowhere", 5, "nowhere"),
        ("--step 0", 2, "--step"),
        ("--speed 0", 2, "--speed"),
        ("--speed nan", 2, "--speed"),
        ("--since 2026-01-01", 2, "without --speed"),
        ("--speed 2 --since yesterday", 2, "--since"),
        ("--port 70000", 2, "--port"),
        ("--engine x", 2, "--engine"),
        ("--demo --scenario x", 2, "--scenario"),
        ("--servers 3", 2, "without --demo"),
        ("more", 2, "more"),
    ],
)
def test_serve_invalid_options_give_one_line(
    options: str, code: int, message: str, clean_environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if "192.0.2.1" in options:
        clean_environment.setenv("FLEET_API_KEYS", KEY)
    assert main(["fleet", "serve", *options.split()]) == code
    stderr = capfd.readouterr().err
    assert message in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FLEET_API_KEYS", "short", "key 1 is invalid"),
        ("FLEET_SCRAPE", "nothing", "FLEET_SCRAPE"),
        ("FLEET_THRESHOLDS", "nowhere.toml", "nowhere.toml"),
        ("FLEET_PORT", "many", "FLEET_PORT"),
        ("FLEET_HISTORY_HOURS", "0", "FLEET_HISTORY_HOURS"),
        ("FLEET_ENGINE", "x", "FLEET_ENGINE"),
    ],
)
def test_serve_invalid_setting_is_named(
    variable: str, value: str, message: str, clean_environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clean_environment.setenv(variable, value)
    assert main(["fleet", "serve"]) == 5
    assert message in capfd.readouterr().err
