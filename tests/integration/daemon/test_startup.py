"""A daemon that cannot start: what it reports, and which files it leaves unchanged."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from forecastd.chain.wallet import open_wallet
from forecastd.clock import SystemClock
from forecastd.daemon import resources
from forecastd.daemon.loop import Daemon
from forecastd.runtime.locks import WalletLock
from forecastd.settings import Settings, load_settings
from forecastd.submission.connect import chain_id_for


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a daemon on the embedded node; its alert command appends to a file."""
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "alert"
    script.write_text(f"#!/bin/sh\n(cat; echo) >> {tmp_path}/alerts\n")
    script.chmod(0o700)
    return load_settings(state_dir=tmp_path / "state", log_dir=tmp_path / "logs", alert_command=str(script))


def run(settings: Settings, *settings_errors: str) -> int:
    return Daemon(lambda: ([settings], list(settings_errors)), SystemClock()).run()


def read_alerts(directory: Path) -> list[dict[str, Any]]:
    path = directory / "alerts"
    return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []


def test_startup_failure_is_alerted_once(settings: Settings, tmp_path: Path) -> None:
    for _ in range(2):
        assert run(settings, "THIS is wrong.") == 5
    assert [(alert["event"], alert["kind"]) for alert in read_alerts(tmp_path)] == [("firing", "needs_human")]
    assert "cannot start: THIS is wrong." in read_alerts(tmp_path)[0]["text"]


def test_second_daemon_keeps_the_files_of_the_first(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resources, "WalletLock", partial(WalletLock, timeout=0.1))
    settings.state_path.mkdir(parents=True)
    files = [settings.state_path / name for name in ("daemon.json", "alerts.json")]
    for file in files:
        file.write_text('{"of": "the first"}')
    with WalletLock(chain_id_for(settings), open_wallet(settings).address, SystemClock()):
        assert run(settings) == 6
    assert [file.read_text() for file in files] == ['{"of": "the first"}'] * 2
    assert "Another forecastd process on this host uses" in caplog.text


def test_unknown_setting_name_is_reported(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setenv("SUBMISSION_DEADLIN", "2030-01-01")
    assert run(settings, "THIS is wrong.") == 5
    assert (
        "SUBMISSION_DEADLIN in the environment is not a setting and is ignored. Rename it to SUBMISSION_DEADLINE."
        in caplog.text
    )
