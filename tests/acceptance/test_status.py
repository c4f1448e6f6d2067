"""`forecastd status` from another shell: beside a daemon that is well, ill, killed, ended, or was never there."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

PATIENCE = 60.0  # seconds that a busy machine may take

DAEMON = """
import os, sys
from dataclasses import replace
from pathlib import Path
from forecastd.clock import SystemClock
from forecastd.outcome import Outcome
from forecastd.pulse import Pulse, TopicPulse, WindowPulse
from forecastd.pulsefile import PulseFile

now = SystemClock().now()
topic = TopicPulse(67, "allo1abc", active=True, height=5040738, height_age=1.0, epoch_length=720, newest_nonce=5040720,
                   window=WindowPulse(False, None, 5041440, 5041500, 702, 3510.0))
topic = topic.after(Outcome("submitted", nonce=5040720, height=5040723, stages={"data": 1.5}), now - 60)
pulse = Pulse(os.getpid(), now - 3600, now + 1e9, 3600.0, "daemon", "running", "local", topics=(topic,))
file = PulseFile(Path(sys.argv[1]))
file.write(pulse)
print("told", flush=True)
for line in sys.stdin:
    file.write(replace(pulse, state=line.strip()))
    print("told", flush=True)
"""


class Finished(Protocol):
    code: int
    out: str
    err: str

    @property
    def told(self) -> dict[str, Any]: ...


Command = Callable[..., Finished]


class Daemon:
    """A process that tells of itself as the daemon does, and of the state that it is given."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._told()

    def become(self, state: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{state}\n")
        self.process.stdin.flush()
        self._told()

    def _told(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "told\n"


@pytest.fixture
def daemon(root: Path, tmp_path: Path, environment: dict[str, str]) -> Iterator[Daemon]:
    state = tmp_path / "state"
    arguments = [sys.executable, "-c", DAEMON, str(state)]
    with subprocess.Popen(
        arguments, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Daemon(process)
        process.kill()


def test_a_daemon_that_is_well(command: Command, daemon: Daemon) -> None:
    done = command("status")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"^health +good$", done.out, re.MULTILINE)
    assert re.search(r"^topic 67 +allo1abc$", done.out, re.MULTILINE)
    assert max(map(len, done.out.splitlines())) <= 80


def test_as_json(command: Command, daemon: Daemon) -> None:
    done = command("status", "--json")
    assert (done.code, done.err) == (0, "")
    told = done.told
    assert (told["running"], told["alive"], told["exit_code"], told["epochs"]) == (True, True, 0, [])
    assert told["health"] == {"ok": True, "reasons": []}
    assert told["pulse"]["pid"] == daemon.process.pid
    assert told["pulse"]["topics"][0]["last_submitted"]["nonce"] == 5040720


def test_one_that_is_not_well_ends_with_6(command: Command, daemon: Daemon) -> None:
    daemon.become("stopping")
    assert command("status").code == 6
    told = command("status", "--json").told
    assert (told["running"], told["health"], told["exit_code"]) == (
        True, {"ok": False, "reasons": ["The daemon is ending."]}, 6,
    )  # fmt: skip


def test_one_that_was_killed_is_not_running_and_what_is_known_last_is_shown(command: Command, daemon: Daemon) -> None:
    daemon.process.kill()
    daemon.process.wait()
    done = command("status")
    assert (done.code, done.err) == (3, "")
    assert f"The daemon's process {daemon.process.pid} is gone" in done.out
    assert "nonce 5040720, in block 5040723" in done.out


def test_one_that_ended_is_not_running_even_before_its_process_is_gone(command: Command, daemon: Daemon) -> None:
    daemon.become("ended")
    done = command("status", "--json")
    assert (done.code, done.told["running"], done.told["alive"]) == (3, False, False)


def test_where_none_ever_ran(command: Command, tmp_path: Path) -> None:
    done = command("status")
    assert (done.code, done.err) == (3, "")
    assert "none has run with the state in" in done.out
    assert not (tmp_path / "state").exists()
    told = command("status", "--json").told
    assert (told["running"], told["pulse"], told["alive"], told["exit_code"]) == (False, None, None, 3)


@pytest.mark.usefixtures("one_epoch")
def test_where_only_single_cycles_ran_the_ledger_tells(command: Command) -> None:
    assert command("--once").code == 0
    done = command("status")
    assert done.code == 3
    assert re.search(r"^ledger +\S+  \S+, topic 67, nonce \d+: (included|admitted)$", done.out, re.MULTILINE)
    epochs = command("status", "--json").told["epochs"]
    assert [epoch["topic_id"] for epoch in epochs] == [67]


def test_settings_that_do_not_matter_here_may_be_wrong(command: Command, daemon: Daemon) -> None:
    assert command("status", TOPIC_ID="none", HEALTH_PORT="x").code == 0


def test_a_damaged_file_is_told_with_its_fix(command: Command, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "daemon.json").write_text("{", encoding="utf-8")
    done = command("status")
    assert done.code == 5
    assert "makes no sense" in done.err
    assert "delete it" in done.err
    assert command("status", "--json").told["exit_code"] == 5


@contextmanager
def watching(
    root: Path, environment: dict[str, str], *options: str, **streams: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """`status --watch` in a process of its own."""
    arguments = [sys.executable, str(root / "submit_prediction.py"), "status", "--watch", "--interval", "0.1", *options]
    with subprocess.Popen(arguments, cwd=root.parent, env=environment, stderr=subprocess.PIPE, **streams) as process:
        yield process
        process.kill()


def test_watching_without_a_terminal_gives_one_snapshot_after_the_other(
    root: Path, environment: dict[str, str], daemon: Daemon
) -> None:
    with watching(root, environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        seen = 0
        while seen < 3:
            line = process.stdout.readline()
            assert line
            assert b"\x1b" not in line
            seen += line.startswith(b"health")
        daemon.become("stopping")
        while not line.startswith(b"health     The daemon is ending"):
            line = process.stdout.readline()
            assert line
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (6, b"")


def test_watching_as_json_gives_one_object_a_line(root: Path, environment: dict[str, str], daemon: Daemon) -> None:
    with watching(root, environment, "--json", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert [json.loads(process.stdout.readline())["running"] for _ in range(3)] == [True] * 3


def test_watching_ends_when_nobody_reads_any_more(root: Path, environment: dict[str, str], daemon: Daemon) -> None:
    with watching(root, environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert (process.wait(PATIENCE), process.stderr.read()) == (1, b"")


def test_watching_on_a_terminal_is_live_and_ctrl_c_leaves_the_last_state(
    root: Path, environment: dict[str, str], daemon: Daemon
) -> None:
    with ExitStack() as stack:
        ours, theirs = pty.openpty()
        stack.callback(os.close, ours)
        terminal = environment | {"TERM": "xterm", "LINES": "40"}
        process = stack.enter_context(watching(root, terminal, stdin=theirs, stdout=theirs, start_new_session=True))
        os.close(theirs)
        screen = Screen(ours)
        screen.until(b"good")
        daemon.become("stopping")
        screen.until(b"The daemon is ending")
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr is not None
        screen.until(None)
        assert (process.wait(PATIENCE), process.stderr.read()) == (6, b"")
        assert b"\x1b[?25h" in screen.seen  # the cursor is back


class Screen:
    """The other side of a terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.seen = b""

    def until(self, text: bytes | None) -> None:
        """Read until `text` has come, or until the program has left when it is None."""
        start = len(self.seen)
        while text is None or text not in self.seen[start:]:
            ready, _, _ = select.select([self._descriptor], [], [], PATIENCE)
            assert ready, self.seen[-2000:]
            try:
                data = os.read(self._descriptor, 65_536)
            except OSError:  # EIO: nobody has the terminal open any more
                data = b""
            if not data:
                assert text is None, self.seen[-2000:]
                return
            self.seen += data


def test_its_locks_are_not_touched(command: Command, daemon: Daemon, tmp_path: Path) -> None:
    """Beside a daemon that holds everything that it has, `status` answers and leaves every file as it is."""
    state = tmp_path / "state"
    (state / "ledger.sqlite").write_bytes(b"held")
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    with ExitStack() as stack:
        for path in state.iterdir():
            stream = stack.enter_context(path.open("rb+"))
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert command("status").code == 0
    assert {path.name: path.read_bytes() for path in state.iterdir()} == before


def test_it_imports_nothing_heavy(root: Path, environment: dict[str, str], daemon: Daemon) -> None:
    program = (
        "import sys; from cli.main import main; code = main(['status']);"
        "heavy = {'torch', 'lightning', 'pandas', 'grpc', 'ccxt', 'requests', 'allora_sdk', 'prometheus_client'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
