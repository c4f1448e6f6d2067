"""`forecastd status` next to a daemon that is healthy, unhealthy, killed, stopped, or never ran."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Command
from tests.support.terminal import TIMEOUT_SECONDS, TerminalReader

DAEMON = """
import os, sys
from dataclasses import replace
from pathlib import Path
from forecastd.clock import SystemClock
from forecastd.ledger.outcome import Outcome
from forecastd.status.file import StatusFile
from forecastd.status.model import DaemonStatus, TopicStatus, WindowStatus

now = SystemClock().now()
topic = TopicStatus(67, "allo1abc", active=True, height=5040738, height_age=1.0, epoch_length=720, newest_nonce=5040720,
                    window=WindowStatus(False, None, 5041440, 5041500, 702, 3510.0))
topic = topic.with_outcome(Outcome("submitted", nonce=5040720, height=5040723, stages={"data": 1.5}), now - 60)
status = DaemonStatus(os.getpid(), now - 3600, now + 1e9, 3600.0, "daemon", "running", "local", topics=(topic,))
file = StatusFile(Path(sys.argv[1]))
file.write(status)
print("written", flush=True)
for line in sys.stdin:
    file.write(replace(status, state=line.strip()))
    print("written", flush=True)
"""


class FakeDaemon:
    """A process that writes the status file as the daemon does, with the state that a test sets."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._wait_for_write()

    def set_state(self, state: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{state}\n")
        self.process.stdin.flush()
        self._wait_for_write()

    def _wait_for_write(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "written\n"


@pytest.fixture
def daemon(root: Path, tmp_path: Path, environment: dict[str, str]) -> Iterator[FakeDaemon]:
    state = tmp_path / "state"
    arguments = [sys.executable, "-c", DAEMON, str(state)]
    with subprocess.Popen(
        arguments, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield FakeDaemon(process)
        process.kill()


@pytest.mark.lean
def test_healthy_daemon_exits_0(command: Command, daemon: FakeDaemon) -> None:
    result = command("status")
    assert (result.code, result.err) == (0, "")
    assert re.search(r"^health +good$", result.out, re.MULTILINE)
    assert re.search(r"^topic 67 +allo1abc$", result.out, re.MULTILINE)
    assert max(map(len, result.out.splitlines())) <= 80


def test_json_is_one_document(command: Command, daemon: FakeDaemon) -> None:
    result = command("status", "--json")
    assert (result.code, result.err) == (0, "")
    document = result.document
    assert (document["running"], document["alive"], document["exit_code"], document["epochs"]) == (True, True, 0, [])
    assert document["health"] == {"ok": True, "reasons": []}
    assert document["status"]["pid"] == daemon.process.pid
    assert document["status"]["topics"][0]["last_submitted"]["nonce"] == 5040720


def test_unhealthy_daemon_exits_6(command: Command, daemon: FakeDaemon) -> None:
    daemon.set_state("stopping")
    assert command("status").code == 6
    document = command("status", "--json").document
    assert (document["running"], document["health"], document["exit_code"]) == (
        True, {"ok": False, "reasons": ["The daemon is shutting down."]}, 6,
    )  # fmt: skip


def test_killed_daemon_shows_last_status(command: Command, daemon: FakeDaemon) -> None:
    daemon.process.kill()
    daemon.process.wait()
    result = command("status")
    assert (result.code, result.err) == (3, "")
    assert f"The daemon's process {daemon.process.pid} exited unexpectedly" in result.out
    assert "nonce 5040720, in block 5040723" in result.out


def test_stopped_daemon_with_live_process_is_not_running(command: Command, daemon: FakeDaemon) -> None:
    daemon.set_state("ended")
    result = command("status", "--json")
    assert (result.code, result.document["running"], result.document["alive"]) == (3, False, False)


@pytest.mark.lean
def test_no_daemon_exits_3(command: Command, tmp_path: Path) -> None:
    result = command("status")
    assert (result.code, result.err) == (3, "")
    assert "none has run with the state directory" in result.out
    assert not (tmp_path / "state").exists()
    document = command("status", "--json").document
    assert (document["running"], document["status"], document["alive"], document["exit_code"]) == (False, None, None, 3)


@pytest.mark.usefixtures("one_epoch")
@pytest.mark.lean
def test_single_cycles_without_daemon_show_the_ledger(command: Command) -> None:
    assert command("--once").code == 0
    result = command("status")
    assert result.code == 3
    assert re.search(r"^ledger +\S+  \S+, topic 67, nonce \d+: (included|admitted)$", result.out, re.MULTILINE)
    epochs = command("status", "--json").document["epochs"]
    assert [epoch["topic_id"] for epoch in epochs] == [67]


def test_unrelated_invalid_settings_are_ignored(command: Command, daemon: FakeDaemon) -> None:
    assert command("status", TOPIC_ID="none", HEALTH_PORT="x").code == 0


def test_damaged_status_file_is_an_error_with_fix(command: Command, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "daemon.json").write_text("{", encoding="utf-8")
    result = command("status")
    assert result.code == 5
    assert "is invalid" in result.err
    assert "Delete it" in result.err
    assert command("status", "--json").document["exit_code"] == 5


@contextmanager
def watching(
    root: Path, environment: dict[str, str], *options: str, **streams: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """`status --watch` in a separate process."""
    arguments = [sys.executable, str(root / "submit_prediction.py"), "status", "--watch", "--interval", "0.1", *options]
    with subprocess.Popen(arguments, cwd=root.parent, env=environment, stderr=subprocess.PIPE, **streams) as process:
        yield process
        process.kill()


def test_watch_without_terminal_prints_snapshots(root: Path, environment: dict[str, str], daemon: FakeDaemon) -> None:
    with watching(root, environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        snapshots = 0
        while snapshots < 3:
            line = process.stdout.readline()
            assert line
            assert b"\x1b" not in line
            snapshots += line.startswith(b"health")
        daemon.set_state("stopping")
        while not line.startswith(b"health     The daemon is shutting down"):
            line = process.stdout.readline()
            assert line
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_SECONDS)
        assert (process.returncode, err) == (6, b"")


def test_watch_json_prints_one_object_per_line(root: Path, environment: dict[str, str], daemon: FakeDaemon) -> None:
    with watching(root, environment, "--json", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert [json.loads(process.stdout.readline())["running"] for _ in range(3)] == [True] * 3


def test_watch_closed_pipe_ends(root: Path, environment: dict[str, str], daemon: FakeDaemon) -> None:
    with watching(root, environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert (process.wait(TIMEOUT_SECONDS), process.stderr.read()) == (1, b"")


def test_watch_on_terminal_is_live_and_ctrl_c_keeps_last_state(
    root: Path, environment: dict[str, str], daemon: FakeDaemon
) -> None:
    with ExitStack() as stack:
        parent_descriptor, child_descriptor = pty.openpty()
        stack.callback(os.close, parent_descriptor)
        terminal = environment | {"TERM": "xterm", "LINES": "40"}
        process = stack.enter_context(
            watching(root, terminal, stdin=child_descriptor, stdout=child_descriptor, start_new_session=True)
        )
        os.close(child_descriptor)
        screen = TerminalReader(parent_descriptor)
        screen.read_until(b"good")
        daemon.set_state("stopping")
        screen.read_until(b"The daemon is shutting down")
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr is not None
        screen.read_until(None)
        assert (process.wait(TIMEOUT_SECONDS), process.stderr.read()) == (6, b"")
        assert b"\x1b[?25h" in screen.output  # the cursor is visible again


def test_status_takes_no_locks(command: Command, daemon: FakeDaemon, tmp_path: Path) -> None:
    """While a daemon holds all locks, `status` works and changes no file."""
    state = tmp_path / "state"
    (state / "ledger.sqlite").write_bytes(b"held")
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    with ExitStack() as stack:
        for path in state.iterdir():
            stream = stack.enter_context(path.open("rb+"))
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert command("status").code == 0
    assert {path.name: path.read_bytes() for path in state.iterdir()} == before


def test_status_imports_nothing_heavy(root: Path, environment: dict[str, str], daemon: FakeDaemon) -> None:
    program = (
        "import sys; from cli.main import main; code = main(['status']);"
        "heavy = {'torch', 'lightning', 'pandas', 'grpc', 'ccxt', 'requests', 'google.protobuf', 'prometheus_client'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
