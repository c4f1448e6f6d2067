"""The status file of a process that is running, of one that exited, and of one whose pid was reused."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from forecastd.errors import NeedsHuman
from forecastd.runtime.files import write_atomic
from forecastd.status.file import STATUS_FILE_NAME, StatusFile, StoredStatus, process_identity, read_status
from forecastd.status.model import VERSION, DaemonStatus, SubmissionRecord, TopicStatus, WindowStatus

NOW = 1_790_000_000.0
STATUS = DaemonStatus(os.getpid(), NOW, NOW, 0.0, "daemon", "running", "local", topics=(TopicStatus(67, "allo1abc"),))


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs until the test ends."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def write_file(directory: Path, status: DaemonStatus) -> None:
    (directory / STATUS_FILE_NAME).write_bytes(status.to_json())


def test_own_status_file_is_read_as_alive_and_is_private(tmp_path: Path) -> None:
    StatusFile(tmp_path / "state").write(STATUS)
    assert read_status(tmp_path / "state") == StoredStatus(
        replace(STATUS, process_identity=process_identity(os.getpid())), alive=True
    )
    assert stat.S_IMODE((tmp_path / "state" / STATUS_FILE_NAME).stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "state").iterdir()] == [STATUS_FILE_NAME]


def test_missing_status_file_returns_none(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    assert read_status(tmp_path / "none") is None


def test_killed_process_is_not_alive_before_and_after_reaping(
    tmp_path: Path, other_process: subprocess.Popen[bytes]
) -> None:
    write_file(tmp_path, replace(STATUS, pid=other_process.pid, process_identity=process_identity(other_process.pid)))
    stored = [read_status(tmp_path)]
    other_process.kill()
    os.waitid(os.P_PID, other_process.pid, os.WEXITED | os.WNOWAIT)  # it has exited and is a zombie
    stored.append(read_status(tmp_path))
    other_process.wait()
    stored.append(read_status(tmp_path))
    assert [status and status.alive for status in stored] == [True, False, False]


@pytest.mark.parametrize(
    ("change", "alive"),
    [
        (lambda identity: identity + "0", False),  # the same pid, started at another time
        (lambda identity: identity.replace(identity.partition("/")[0], "0" * 8), False),  # before a reboot
        (lambda identity: identity.replace(identity.split("/")[1], "1"), None),  # in another container
        (lambda _: None, False),
    ],
)
def test_reused_process_id_is_not_alive(
    tmp_path: Path, change: Callable[[str], str | None], alive: bool | None
) -> None:
    write_file(tmp_path, replace(STATUS, process_identity=change(process_identity(os.getpid()) or "")))
    stored = read_status(tmp_path)
    assert stored is not None
    assert stored.alive is alive


def test_ended_daemon_is_not_alive_while_its_process_runs(tmp_path: Path) -> None:
    StatusFile(tmp_path).write(replace(STATUS, state="ended"))
    stored = read_status(tmp_path)
    assert stored is not None
    assert stored.alive is False


def test_process_identity_exists_for_running_processes_only() -> None:
    assert process_identity(1) != process_identity(os.getpid())
    assert process_identity(2**22 + 1) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is invalid"),
        ('{"pid": 1', "is invalid"),
        ("[" * 100_000, "is invalid"),
        ('{"hello": "there"}', "is invalid"),
        (json.dumps({"version": 99, "pid": 1}), "the file has version 99"),
        (json.dumps(STATUS.to_dict() | {"version": 3}), "the file has version 3"),
        (json.dumps(STATUS.to_dict() | {"version": 1, "topics": 5}), "is invalid"),
        ("\udc80", "is not UTF-8 text"),
    ],
)
def test_foreign_file_is_rejected_with_a_fix(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / STATUS_FILE_NAME).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(NeedsHuman, match=message) as caught:
        read_status(tmp_path)
    assert str(tmp_path / STATUS_FILE_NAME) in str(caught.value)


def test_status_of_version_1_is_read_with_the_new_field_names(tmp_path: Path) -> None:
    topic = {
        "topic_id": 67, "lags": {"count": 1, "sum": 3.0, "largest": 3.0}, "oldest_unserved": 720, "watched_from": 5,
        "stages": {"window": {"count": 1, "sum": 0.5, "largest": 0.5}},
        "last_submitted": {"nonce": 1, "at": NOW},
        "last_outcomes": [{"at": NOW, "outcome": "failed", "stages": {"data": 1.0}}],
        "window": {"open": True, "changes_in_blocks": 7, "changes_in_seconds": 35.0},
    }  # fmt: skip
    document = {
        "version": 1, "pid": 1, "started": NOW, "written": NOW, "up": 5.0, "mode": "daemon", "state": "running",
        "network": "local", "birth": "b/1/2", "every": 15.0, "trouble": "Send ALLO.", "log": "/log", "topics": [topic],
        "endpoints": [{"endpoint": "a:1", "state": "ok", "streak": 2}],
        "streams": [{"endpoint": "ws://a", "connected": True, "last_at": NOW}],
        "models": [{"name": "btc", "sha256": "ab", "since": NOW, "most_age": 9.0}],
        "supervision": {"hand_overs": 2, "slow_but_fine": 3}, "watchdog": {"fed_at": NOW, "age": 1.0, "limit": 60.0},
    }  # fmt: skip
    (tmp_path / STATUS_FILE_NAME).write_text(json.dumps(document), encoding="utf-8")
    stored = read_status(tmp_path)
    assert stored is not None
    status = stored.status
    assert (status.version, status.uptime, status.attention, status.log_file) == (VERSION, 5.0, "Send ALLO.", "/log")
    assert (status.topics[0].submission_lag.max, status.topics[0].stages["window"].max) == (3.0, 0.5)
    assert status.topics[0].last_submitted == SubmissionRecord(1, NOW)
    assert status.topics[0].window == WindowStatus(True, blocks_until_change=7, seconds_until_change=35.0)
    assert (status.supervision.failovers, status.supervision.recovered_stalls) == (2, 3)
    assert (status.endpoints[0].consecutive_failures, status.models[0].max_age) == (2, 9.0)


def test_named_pipe_at_the_path_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / STATUS_FILE_NAME)
    with pytest.raises(NeedsHuman, match="not a regular file"):
        read_status(tmp_path)


def test_full_disk_is_reported_once_per_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    full = True

    def failing(path: Path, content: bytes) -> None:
        if full:
            raise NeedsHuman(f"Cannot write {path}: No space left on device.")
        write_atomic(path, content)

    monkeypatch.setattr("forecastd.status.file.write_atomic", failing)
    file = StatusFile(tmp_path)
    for full in (True, True, True, False, False, True, True):  # noqa: B007 - `failing` reads it
        file.write(STATUS)
    messages = [record.message for record in caplog.records]
    assert [("No space" in message, "up to date" in message) for message in messages] == [
        (True, False),
        (False, True),
        (True, False),
    ]


def test_uncreatable_directory_does_not_fail_the_daemon(caplog: pytest.LogCaptureFixture) -> None:
    StatusFile(Path(os.devnull) / "state").write(STATUS)
    assert "Cannot write" in caplog.text
