"""What a daemon that cannot start tells, and what it leaves alone."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from forecastd.chain.wallet import open_wallet
from forecastd.clock import SystemClock
from forecastd.connect import chain_of
from forecastd.daemon import workshop
from forecastd.daemon.loop import Daemon
from forecastd.lease import Lease
from forecastd.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of a daemon on the embedded node, whose alerts go to a file, a line each."""
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "tell"
    script.write_text(f"#!/bin/sh\n(cat; echo) >> {tmp_path}/told\n")
    script.chmod(0o700)
    return Settings(state_dir=tmp_path / "state", log_dir=tmp_path / "logs", alert_command=str(script))


def run(settings: Settings, *wrong: str) -> int:
    return Daemon(lambda: ([settings], list(wrong)), SystemClock()).run()


def told(place: Path) -> list[dict[str, Any]]:
    path = place / "told"
    return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []


def test_a_person_is_told_once_that_the_daemon_cannot_start(settings: Settings, tmp_path: Path) -> None:
    for _ in range(2):
        assert run(settings, "THIS is wrong.") == 5
    assert [(one["event"], one["kind"]) for one in told(tmp_path)] == [("alarm", "needs_human")]
    assert "cannot start: THIS is wrong." in told(tmp_path)[0]["text"]


def test_a_second_daemon_leaves_the_files_of_the_first_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workshop, "Lease", partial(Lease, wait=0.1))
    settings.state.mkdir(parents=True)
    files = [settings.state / name for name in ("daemon.json", "alerts.json")]
    for file in files:
        file.write_text('{"of": "the first"}')
    with Lease(chain_of(settings), open_wallet(settings).address, SystemClock()):
        assert run(settings) == 6
    assert [file.read_text() for file in files] == ['{"of": "the first"}'] * 2
    assert "Another forecastd on this host works with" in caplog.text


def test_a_name_that_looks_like_a_setting_and_is_none_is_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setenv("SUBMISSION_DEADLIN", "2030-01-01")
    assert run(settings, "THIS is wrong.") == 5
    assert (
        "SUBMISSION_DEADLIN in the environment is no setting and is ignored. Rename it to SUBMISSION_DEADLINE."
        in caplog.text
    )
