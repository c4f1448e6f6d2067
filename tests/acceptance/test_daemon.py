"""`--daemon` and `--continuous` as real processes: killed, stopped, terminated, and with invalid settings."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.localnet.embedded import EmbeddedNode, open_embedded
from forecastd.localnet.faults import NodeFault
from forecastd.localnet.state import Effect
from forecastd.localnet.topics import TopicSpec
from forecastd.market.sources.fake_tiingo import FakeTiingo, TiingoFault
from forecastd.market.sources.sample import SampleSource
from tests.support.waiting import wait_until

# No other test file uses this phrase.
PHRASE = "use smooth web oxygen spike escape oblige pioneer beyond final almost moon"
WALLET = Wallet.from_mnemonic(PHRASE).address
EPOCH_BLOCKS, WINDOW_BLOCKS = 40, 36
TIMEOUT_SECONDS = 90.0  # enough for a busy machine


@dataclass
class DaemonProcess:
    """A daemon's process, whose console output goes to a file."""

    process: subprocess.Popen[bytes]
    console: Path

    @property
    def text(self) -> str:
        return self.console.read_text(errors="replace")

    def wait_for_text(self, text: str) -> None:
        """Wait until the console contains `text`."""
        wait_until(lambda: text in self.text or self.process.poll() is not None, f"{text!r}")
        assert text in self.text, self.text

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def wait_for_exit(self) -> int:
        """Wait for the exit. Returns the exit code."""
        return self.process.wait(TIMEOUT_SECONDS)


@dataclass
class DaemonDirectory:
    """The directory, the environment and the node of a daemon."""

    root: Path
    path: Path
    environment: dict[str, str]
    node: EmbeddedNode
    start_count: int = 0

    @contextmanager
    def daemon(self, *arguments: str, mode: str = "--daemon", **variables: str) -> Iterator[DaemonProcess]:
        self.start_count += 1
        console_path = self.path / f"console-{self.start_count}"
        environment = {
            **self.environment, "MNEMONIC": PHRASE, "RPC_ENDPOINTS": self.node.endpoint,
            "EVENT_ENDPOINTS": self.node.websocket or "", **variables,
        }  # fmt: skip
        command = [sys.executable, str(self.root / "submit_prediction.py"), mode, *arguments]
        with console_path.open("wb") as console, subprocess.Popen(
            command, cwd=self.path, env=environment, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
        ) as process:  # fmt: skip
            try:
                yield DaemonProcess(process, console_path)
            finally:
                process.send_signal(signal.SIGCONT)
                process.kill()

    def inclusions(self, nonce: int = 1) -> list[int]:
        """The result codes of this worker's payloads for a nonce, in all blocks."""
        return [inclusion.code for inclusion in self.node.record().inclusions(67, nonce, WALLET)]

    def register(self) -> None:
        """Fund the wallet and register the worker."""
        self.node.call(lambda chain: chain.fund(WALLET, 10**24))
        self.node.call(lambda chain: chain.state.apply(Effect(worker=(67, WALLET))))

    @property
    def log(self) -> str:
        """The log file, which has more lines than the console."""
        path = self.path / "logs" / "submission.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def run_once(self) -> str:
        """The outcome of a single cycle on the same state."""
        command = [sys.executable, str(self.root / "submit_prediction.py"), "--once", "--json"]
        variables = {**self.environment, "MNEMONIC": PHRASE, "RPC_ENDPOINTS": self.node.endpoint}
        result = subprocess.run(
            command, cwd=self.path, env=variables, capture_output=True, timeout=TIMEOUT_SECONDS, check=False
        )
        return str(json.loads(result.stdout)["outcome"])

    def states(self) -> dict[int, str]:
        with sqlite3.connect(self.path / "state" / "ledger.sqlite") as database:
            return dict(database.execute("SELECT nonce, state FROM epochs").fetchall())


@pytest.fixture
def daemon_directory(root: Path, tmp_path: Path, environment: dict[str, str]) -> Iterator[DaemonDirectory]:
    topics = (TopicSpec(67, epoch_length=EPOCH_BLOCKS, worker_submission_window=WINDOW_BLOCKS),)
    with open_embedded(tmp_path / "node", SystemClock(), block_time=None, topics=topics, events=True) as node:
        yield DaemonDirectory(root, tmp_path, environment, node)


@pytest.mark.lean
def test_daemon_serves_each_window_and_exits_cleanly_on_sigterm(daemon_directory: DaemonDirectory) -> None:
    with daemon_directory.daemon() as daemon:
        daemon.wait_for_text("running")
        wait_until(lambda: daemon_directory.inclusions(1) == [0])
        for nonce in (1 + EPOCH_BLOCKS, 1 + 2 * EPOCH_BLOCKS):
            daemon_directory.node.advance(EPOCH_BLOCKS)
            wait_until(lambda expected_nonce=nonce: daemon_directory.inclusions(expected_nonce) == [0])  # type: ignore[misc]
        daemon.wait_for_text(f"exit code 0, nonce {1 + 2 * EPOCH_BLOCKS}:")
        daemon.send(signal.SIGTERM)
        assert daemon.wait_for_exit() == 0
    lines = daemon.text.splitlines()
    last_lines = ["shutting down: received SIGTERM", "shutdown complete: received SIGTERM"]
    for first_line in ("running", "outcome: submitted"):  # written by different threads, in either order
        order = ["forecastd starts", first_line, *last_lines]
        index = [next(number for number, line in enumerate(lines) if words in line) for words in order]
        assert index == sorted(index)
    assert WALLET in daemon.text
    assert "3 submitted; 0 missed epochs" in lines[-1]
    assert "Traceback" not in daemon.text
    status = json.loads((daemon_directory.path / "state" / "daemon.json").read_text())
    assert (status["state"], status["topics"][0]["submitted"]) == ("ended", 3)


def test_daemon_killed_with_pending_transaction_submits_epoch_once_after_restart(
    daemon_directory: DaemonDirectory,
) -> None:
    daemon_directory.register()
    daemon_directory.node.set_faults([NodeFault.parse("hang-answer")])
    with daemon_directory.daemon() as daemon:
        daemon.wait_for_text("sign: ")
        wait_until(lambda: daemon_directory.inclusions(1) == [0])
        daemon.send(signal.SIGKILL)
        assert daemon.wait_for_exit() == -signal.SIGKILL
    daemon_directory.node.set_faults([])
    with daemon_directory.daemon() as daemon:
        daemon.wait_for_text("outcome: already_submitted")
        daemon.send(signal.SIGTERM)
        assert daemon.wait_for_exit() == 0
    assert daemon_directory.inclusions(1) == [0]
    assert daemon_directory.states()[1] in ("included", "admitted")


HANGING_STAGES = {
    "chain": "hang@method=GetUnfulfilledWorkerNonces",
    "sign": "hang@method=Simulate",
    "submit": "hang@method=BroadcastTx",
}


@pytest.mark.parametrize("stage", [*HANGING_STAGES, "data"])
def test_daemon_stopped_during_a_stage_exits_and_resumes_after_restart(
    daemon_directory: DaemonDirectory, stage: str
) -> None:
    daemon_directory.register()
    daemon_directory.node.set_faults([NodeFault.parse(HANGING_STAGES[stage])] if stage in HANGING_STAGES else [])
    with FakeTiingo(SampleSource("btcusd"), SystemClock(), faults=[TiingoFault.parse("hang")]) as tiingo:
        variables = (
            {"DATA_SOURCE": "tiingo", "TIINGO_API_KEY": "k3y", "TIINGO_URL": tiingo.url} if stage == "data" else {}
        )
        with daemon_directory.daemon(**variables) as daemon:
            wait_until(lambda: f"{stage} starts" in daemon_directory.log, stage, TIMEOUT_SECONDS)
            daemon.send(signal.SIGTERM)
            assert daemon.wait_for_exit() == 0
            assert "shutdown complete: received SIGTERM" in daemon.text
            assert "outcome: submitted" not in daemon.text
    daemon_directory.node.set_faults([])
    assert daemon_directory.run_once() == "submitted"
    assert daemon_directory.inclusions(1) == [0]


def test_second_interrupt_exits_immediately(daemon_directory: DaemonDirectory) -> None:
    with FakeTiingo(SampleSource("btcusd"), SystemClock(), faults=[TiingoFault.parse("hang")]) as tiingo:
        variables = {"DATA_SOURCE": "tiingo", "TIINGO_API_KEY": "k3y", "TIINGO_URL": tiingo.url}
        with daemon_directory.daemon(**variables) as daemon:
            wait_until(lambda: tiingo.request_count > 0)
            daemon.send(signal.SIGINT)
            daemon.wait_for_text("shutting down: received SIGINT")
            daemon.send(signal.SIGINT)
            assert daemon.wait_for_exit() == 130
    assert "Interrupted again" in daemon.text


def test_second_daemon_on_same_wallet_exits_6_and_signs_nothing(daemon_directory: DaemonDirectory) -> None:
    with daemon_directory.daemon() as daemon:
        daemon.wait_for_text("outcome: submitted")
        with daemon_directory.daemon(STATE_DIR=str(daemon_directory.path / "other")) as second:
            assert second.wait_for_exit() == 6
            assert "Another forecastd process on this host uses" in second.text
        assert daemon.process.poll() is None
    assert not (daemon_directory.path / "other" / "ledger.sqlite").exists()
    assert daemon_directory.inclusions(1) == [0]


def test_all_startup_errors_are_reported_before_ready(daemon_directory: DaemonDirectory, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SUBMISSION_INTERVAL=never\n")
    with open_service_manager(tmp_path) as service_manager, daemon_directory.daemon(
        "--model", "nowhere", "--source", "moon", "--topic-id", "4242", MNEMONIC=f"{PHRASE} zoo", HEALTH_PORT="x",
        ALERT_WEBHOOK="no-url-at-all", NOTIFY_SOCKET=service_manager.path,
    ) as daemon:  # fmt: skip
        assert daemon.wait_for_exit() == 5
        for words in ("SUBMISSION_INTERVAL", "HEALTH_PORT", "nowhere", "moon", "words", "ALERT_WEBHOOK"):
            assert words in daemon.text, words
        assert "READY=1" not in service_manager.messages()
    assert "Traceback" not in daemon.text
    assert "no-url-at-all" not in daemon.text


def test_unknown_topic_exits_with_needs_human(daemon_directory: DaemonDirectory) -> None:
    with daemon_directory.daemon("--topic-id", "4242") as daemon:
        assert daemon.wait_for_exit() == 5
    assert "4242 does not exist" in daemon.text


def test_daemon_exits_at_the_deadline(daemon_directory: DaemonDirectory) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=6)
    with daemon_directory.daemon("--deadline", deadline.isoformat()) as daemon:
        assert daemon.wait_for_exit() == 0
    assert "has passed" in daemon.text
    assert datetime.now(UTC) >= deadline


class ServiceManager:
    """A service manager with the socket that it listens on."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(0.05)
        self._messages: list[str] = []

    def messages(self) -> str:
        """All messages so far."""
        while True:
            try:
                self._messages.append(self._socket.recv(65536).decode())
            except TimeoutError:
                return "\n".join(self._messages)

    def pings(self) -> int:
        return self.messages().count("WATCHDOG=1")

    def close(self) -> None:
        self._socket.close()


@contextmanager
def open_service_manager(tmp_path: Path) -> Iterator[ServiceManager]:
    service_manager = ServiceManager(tmp_path / "notify")
    try:
        yield service_manager
    finally:
        service_manager.close()


def test_service_manager_gets_status_and_stopped_process_sends_no_watchdog_ping(
    daemon_directory: DaemonDirectory,
) -> None:
    with open_service_manager(daemon_directory.path) as service_manager, daemon_directory.daemon(
        NOTIFY_SOCKET=service_manager.path, WATCHDOG_USEC="1000000"
    ) as daemon:  # fmt: skip
        wait_until(lambda: "READY=1" in service_manager.messages())
        wait_until(lambda: "STATUS=last submission topic 67 nonce 1" in service_manager.messages())
        wait_until(lambda: service_manager.pings() > 2)
        daemon.send(signal.SIGSTOP)
        wait_until(lambda: _is_stopped(daemon.process.pid))
        service_manager.messages()
        before = service_manager.pings()
        threading.Event().wait(1.0)  # four intervals between pings
        assert service_manager.pings() == before
        daemon.send(signal.SIGCONT)
        wait_until(lambda: service_manager.pings() > before + 1)
        daemon.send(signal.SIGTERM)
        assert daemon.wait_for_exit() == 0
        messages = service_manager.messages()
    assert "STOPPING=1" in messages


def test_passed_deadline_starts_nothing_and_reports_ready(daemon_directory: DaemonDirectory) -> None:
    with open_service_manager(daemon_directory.path) as service_manager:
        with daemon_directory.daemon(
            "--deadline", "2020-01-01T00:00:00Z", NOTIFY_SOCKET=service_manager.path
        ) as daemon:
            assert daemon.wait_for_exit() == 0
        assert "READY=1" in service_manager.messages()
    assert "The deadline 2020-01-01T00:00:00Z has passed" in daemon.text
    assert daemon_directory.inclusions(1) == []


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_sighup_applies_valid_settings_and_rejects_invalid_ones(daemon_directory: DaemonDirectory) -> None:
    topics = daemon_directory.path / "topics.toml"
    topics.write_text("[[topic]]\nid = 67\n")
    with daemon_directory.daemon("--topics", str(topics)) as daemon:
        daemon.wait_for_text("outcome: submitted")
        topics.write_text("[[topic]]\nid = 67\nsource = 'moon'\n")
        for _ in range(50):
            daemon.send(signal.SIGHUP)
        daemon.wait_for_text("The reload failed; the old settings stay in force")
        daemon_directory.node.advance(EPOCH_BLOCKS)
        wait_until(lambda: daemon_directory.inclusions(1 + EPOCH_BLOCKS) == [0])
        topics.write_text("[[topic]]\nid = 67\nsource = 'sample:7'\n")
        daemon.send(signal.SIGHUP)
        daemon.wait_for_text(" reloaded\n")
        daemon_directory.node.advance(EPOCH_BLOCKS)
        daemon.wait_for_text("data: sample:7")
        wait_until(lambda: daemon_directory.inclusions(1 + 2 * EPOCH_BLOCKS) == [0])
        daemon.send(signal.SIGTERM)
        assert daemon.wait_for_exit() == 0


def test_sigusr1_logs_status_and_stacks(daemon_directory: DaemonDirectory) -> None:
    with daemon_directory.daemon() as daemon:
        daemon.wait_for_text("outcome: submitted")
        daemon.send(signal.SIGUSR1)
        daemon.wait_for_text("stacks of all threads")
        daemon.wait_for_text("in _run_watcher")
        assert '"topics": [{' in daemon.text
        daemon.send(signal.SIGTERM)
        assert daemon.wait_for_exit() == 0


@pytest.mark.usefixtures("time_left_in_the_hour")
def test_continuous_runs_on_embedded_defaults_until_ctrl_c(
    root: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    command = [sys.executable, str(root / "submit_prediction.py"), "--continuous"]
    console_path = tmp_path / "console"
    with console_path.open("wb") as console, subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
    ) as process:  # fmt: skip
        daemon = DaemonProcess(process, console_path)
        daemon.wait_for_text("outcome: submitted")
        daemon.send(signal.SIGINT)
        assert daemon.wait_for_exit() == 0
    assert "1 submitted; 0 missed epochs" in daemon.text


@pytest.mark.usefixtures("one_epoch")
def test_continuous_shows_live_status_on_a_terminal(root: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    master, slave = os.openpty()
    command = [sys.executable, str(root / "submit_prediction.py"), "--continuous"]
    output = bytearray()
    with subprocess.Popen(
        command, cwd=tmp_path, env={**environment, "TERM": "xterm"}, stdin=slave, stdout=slave, stderr=slave
    ) as process:  # fmt: skip
        os.close(slave)

        def read() -> None:
            try:
                while chunk := os.read(master, 65536):
                    output.extend(chunk)
            except OSError:  # the process closed the terminal
                return

        reader = threading.Thread(target=read)
        reader.start()
        wait_until(lambda: b"1 submitted" in output and b"health" in output)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_SECONDS) == 0
        reader.join(TIMEOUT_SECONDS)
    os.close(master)
    assert b"Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--once", "--daemon"), "exclude each other"), (("--daemon", "--continuous"), "exclude each other"),
     (("--daemon", "--dry-run"), "--dry-run"), (("--daemon", "--as-of", "2026-03-01T00:00:00Z"), "--as-of"),
     (("--once", "--deadline", "2030-01-01"), "--deadline"), ((), "--once, --continuous or --daemon")],
)  # fmt: skip
def test_incompatible_options_are_rejected(command: Any, arguments: tuple[str, ...], words: str) -> None:
    result = command(*arguments)
    assert result.code == 2
    assert words in result.err
