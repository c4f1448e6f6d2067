"""`--daemon` and `--continuous` as real processes: killed, stopped, told to end, and told what does not fit."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.localnet.embedded import Embedded, open_embedded
from forecastd.localnet.faults import Fault
from forecastd.localnet.state import Effect
from forecastd.localnet.topics import TopicSpec
from forecastd.sources.faketiingo import FakeTiingo
from forecastd.sources.faketiingo import Fault as SourceFault
from forecastd.sources.sample import SampleSource

PHRASE = (
    "use smooth web oxygen spike escape oblige pioneer beyond final almost moon"  # no other file of tests has this one
)
WALLET = Wallet.from_mnemonic(PHRASE).address
EPOCH, WINDOW = 40, 36
LONG = 90.0  # seconds that anything here may take on a machine that is busy


def wait(true: Callable[[], object], what: str = "it") -> None:
    """Wait until something is so."""
    pause = threading.Event()
    for _ in range(int(LONG / 0.05)):
        if true():
            return
        pause.wait(0.05)
    raise AssertionError(f"{what} did not come to be so")


@dataclass
class Started:
    """A daemon's process; what it tells on the console goes to a file."""

    process: subprocess.Popen[bytes]
    told: Path

    @property
    def text(self) -> str:
        return self.told.read_text(errors="replace")

    def says(self, words: str) -> None:
        """Wait until it has said these words."""
        wait(lambda: words in self.text or self.process.poll() is not None, f"{words!r}")
        assert words in self.text, self.text

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def ended(self) -> int:
        """Its exit code, when it has ended."""
        return self.process.wait(LONG)


@dataclass
class Place:
    """Where a daemon runs: its directory, its environment, its node."""

    root: Path
    path: Path
    environment: dict[str, str]
    node: Embedded
    number: int = 0

    @contextmanager
    def daemon(self, *arguments: str, mode: str = "--daemon", **more: str) -> Iterator[Started]:
        self.number += 1
        told = self.path / f"console-{self.number}"
        variables = {
            **self.environment, "MNEMONIC": PHRASE, "RPC_ENDPOINTS": self.node.endpoint,
            "EVENT_ENDPOINTS": self.node.websocket or "", **more,
        }  # fmt: skip
        line = [sys.executable, str(self.root / "submit_prediction.py"), mode, *arguments]
        with told.open("wb") as console, subprocess.Popen(
            line, cwd=self.path, env=variables, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
        ) as process:  # fmt: skip
            try:
                yield Started(process, told)
            finally:
                process.send_signal(signal.SIGCONT)
                process.kill()

    def inclusions(self, nonce: int = 1) -> list[int]:
        """The codes of this worker's payloads in blocks, for a nonce."""
        return [one.code for one in self.node.record().inclusions(67, nonce, WALLET)]

    def register(self) -> None:
        """The worker has money, and is registered."""
        self.node.call(lambda chain: chain.fund(WALLET, 10**24))
        self.node.call(lambda chain: chain.state.apply(Effect(worker=(67, WALLET))))

    @property
    def log(self) -> str:
        """The log file, which tells more than the console."""
        path = self.path / "logs" / "submission.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def once(self) -> str:
        """The outcome of a single cycle on the same state."""
        line = [sys.executable, str(self.root / "submit_prediction.py"), "--once", "--json"]
        variables = {**self.environment, "MNEMONIC": PHRASE, "RPC_ENDPOINTS": self.node.endpoint}
        done = subprocess.run(line, cwd=self.path, env=variables, capture_output=True, timeout=LONG, check=False)
        return str(json.loads(done.stdout)["outcome"])

    def states(self) -> dict[int, str]:
        with sqlite3.connect(self.path / "state" / "ledger.sqlite") as database:
            return dict(database.execute("SELECT nonce, state FROM epochs").fetchall())


@pytest.fixture
def place(root: Path, tmp_path: Path, environment: dict[str, str]) -> Iterator[Place]:
    topics = (TopicSpec(67, epoch_length=EPOCH, worker_submission_window=WINDOW),)
    with open_embedded(tmp_path / "node", SystemClock(), block_time=None, topics=topics, events=True) as node:
        yield Place(root, tmp_path, environment, node)


def test_it_serves_windows_as_they_open_and_ends_cleanly_when_told_to(place: Place) -> None:
    with place.daemon() as daemon:
        daemon.says("running")
        wait(lambda: place.inclusions(1) == [0])
        for nonce in (1 + EPOCH, 1 + 2 * EPOCH):
            place.node.advance(EPOCH)
            wait(lambda at=nonce: place.inclusions(at) == [0])  # type: ignore[misc]
        daemon.says(f"topic 67 nonce {1 + 2 * EPOCH}:")
        daemon.send(signal.SIGTERM)
        assert daemon.ended() == 0
    lines = daemon.text.splitlines()
    ends = ["ending: told to by SIGTERM", "ended: told to by SIGTERM"]
    for begins in ("running", "outcome: submitted"):  # by different threads: one or the other is first
        order = ["forecastd starts", begins, *ends]
        at = [next(number for number, line in enumerate(lines) if words in line) for words in order]
        assert at == sorted(at)
    assert WALLET in daemon.text
    assert "3 submitted; 0 epochs missed" in lines[-1]
    assert "Traceback" not in daemon.text
    pulse = json.loads((place.path / "state" / "daemon.json").read_text())
    assert (pulse["state"], pulse["topics"][0]["submitted"]) == ("ended", 3)


def test_killed_while_its_transaction_waits_it_submits_the_same_epoch_once_after_a_new_start(place: Place) -> None:
    place.register()
    place.node.set_faults([Fault.parse("hang-answer")])
    with place.daemon() as daemon:
        daemon.says("sign: ")
        wait(lambda: place.inclusions(1) == [0])
        daemon.send(signal.SIGKILL)
        assert daemon.ended() == -signal.SIGKILL
    place.node.set_faults([])
    with place.daemon() as daemon:
        daemon.says("outcome: already_submitted")
        daemon.send(signal.SIGTERM)
        assert daemon.ended() == 0
    assert place.inclusions(1) == [0]
    assert place.states()[1] in ("included", "admitted")


HANGS = {
    "chain": "hang@method=GetUnfulfilledWorkerNonces",
    "sign": "hang@method=Simulate",
    "submit": "hang@method=BroadcastTx",
}


@pytest.mark.parametrize("stage", [*HANGS, "data"])
def test_told_to_end_in_the_middle_of_a_stage_it_ends_and_the_next_start_goes_on(place: Place, stage: str) -> None:
    place.register()
    place.node.set_faults([Fault.parse(HANGS[stage])] if stage in HANGS else [])
    with FakeTiingo(SampleSource("btcusd"), SystemClock(), faults=[SourceFault.parse("hang")]) as tiingo:
        more = {"DATA_SOURCE": "tiingo", "TIINGO_API_KEY": "k3y", "TIINGO_URL": tiingo.url} if stage == "data" else {}
        with place.daemon(**more) as daemon:
            wait(lambda: f"{stage} begins" in place.log, stage)
            daemon.send(signal.SIGTERM)
            assert daemon.ended() == 0
            assert "ended: told to by SIGTERM" in daemon.text
            assert "outcome: submitted" not in daemon.text
    place.node.set_faults([])
    assert place.once() == "submitted"
    assert place.inclusions(1) == [0]


def test_a_second_interrupt_ends_it_at_once(place: Place) -> None:
    with FakeTiingo(SampleSource("btcusd"), SystemClock(), faults=[SourceFault.parse("hang")]) as tiingo:
        more = {"DATA_SOURCE": "tiingo", "TIINGO_API_KEY": "k3y", "TIINGO_URL": tiingo.url}
        with place.daemon(**more) as daemon:
            wait(lambda: tiingo.requests > 0)
            daemon.send(signal.SIGINT)
            daemon.says("ending: told to by SIGINT")
            daemon.send(signal.SIGINT)
            assert daemon.ended() == 130
    assert "Interrupted again" in daemon.text


def test_a_second_daemon_on_the_same_wallet_ends_with_6_and_signs_nothing(place: Place) -> None:
    with place.daemon() as daemon:
        daemon.says("outcome: submitted")
        with place.daemon(STATE_DIR=str(place.path / "other")) as second:
            assert second.ended() == 6
            assert "works with" in second.text
        assert daemon.process.poll() is None
    assert not (place.path / "other" / "ledger.sqlite").exists()
    assert place.inclusions(1) == [0]


def test_everything_that_needs_a_person_is_told_at_once_before_it_is_ready(place: Place, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SUBMISSION_INTERVAL=never\n")
    with listening(tmp_path) as manager, place.daemon(
        "--model", "nowhere", "--source", "moon", "--topic-id", "4242", MNEMONIC=f"{PHRASE} zoo", HEALTH_PORT="x",
        ALERT_WEBHOOK="not an address", NOTIFY_SOCKET=manager.path,
    ) as daemon:  # fmt: skip
        assert daemon.ended() == 5
        for words in ("SUBMISSION_INTERVAL", "HEALTH_PORT", "nowhere", "moon", "words", "ALERT_WEBHOOK"):
            assert words in daemon.text, words
        assert "READY=1" not in manager.all()
    assert "Traceback" not in daemon.text
    assert "not an address" not in daemon.text


def test_a_topic_that_does_not_exist_needs_a_person(place: Place) -> None:
    with place.daemon("--topic-id", "4242") as daemon:
        assert daemon.ended() == 5
    assert "4242 does not exist" in daemon.text


def test_it_ends_by_itself_at_the_deadline(place: Place) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=6)
    with place.daemon("--deadline", deadline.isoformat()) as daemon:
        assert daemon.ended() == 0
    assert "ended: the deadline has come" in daemon.text or "has passed" in daemon.text
    assert datetime.now(UTC) >= deadline


class Manager:
    """A service manager: the socket that it listens on."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(0.05)
        self._heard: list[str] = []

    def all(self) -> str:
        """Everything that was told so far."""
        while True:
            try:
                self._heard.append(self._socket.recv(65536).decode())
            except TimeoutError:
                return "\n".join(self._heard)

    def pings(self) -> int:
        return self.all().count("WATCHDOG=1")

    def close(self) -> None:
        self._socket.close()


@contextmanager
def listening(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    try:
        yield manager
    finally:
        manager.close()


def test_the_service_manager_is_told_and_a_stopped_process_does_not_feed_the_watchdog(place: Place) -> None:
    with listening(place.path) as manager, place.daemon(
        NOTIFY_SOCKET=manager.path, WATCHDOG_USEC="1000000"
    ) as daemon:  # fmt: skip
        wait(lambda: "READY=1" in manager.all())
        wait(lambda: "STATUS=last submission topic 67 nonce 1" in manager.all())
        wait(lambda: manager.pings() > 2)
        daemon.send(signal.SIGSTOP)
        wait(lambda: _stopped(daemon.process.pid))
        manager.all()
        before = manager.pings()
        threading.Event().wait(3.0)
        assert manager.pings() == before
        daemon.send(signal.SIGCONT)
        wait(lambda: manager.pings() > before + 1)
        daemon.send(signal.SIGTERM)
        assert daemon.ended() == 0
        told = manager.all()
    assert "STOPPING=1" in told


def test_a_deadline_that_has_passed_starts_nothing_and_the_service_manager_is_told_all_is_well(place: Place) -> None:
    with listening(place.path) as manager:
        with place.daemon("--deadline", "2020-01-01T00:00:00Z", NOTIFY_SOCKET=manager.path) as daemon:
            assert daemon.ended() == 0
        assert "READY=1" in manager.all()
    assert "The deadline 2020-01-01T00:00:00Z has passed" in daemon.text
    assert place.inclusions(1) == []


def _stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_sighup_takes_a_good_configuration_and_leaves_a_broken_one(place: Place) -> None:
    topics = place.path / "topics.toml"
    topics.write_text("[[topic]]\nid = 67\n")
    with place.daemon("--topics", str(topics)) as daemon:
        daemon.says("outcome: submitted")
        topics.write_text("[[topic]]\nid = 67\nsource = 'moon'\n")
        for _ in range(50):
            daemon.send(signal.SIGHUP)
        daemon.says("Not reloaded, the old settings stay in force")
        place.node.advance(EPOCH)
        wait(lambda: place.inclusions(1 + EPOCH) == [0])
        topics.write_text("[[topic]]\nid = 67\nsource = 'sample:7'\n")
        daemon.send(signal.SIGHUP)
        daemon.says(" reloaded\n")
        place.node.advance(EPOCH)
        daemon.says("data: sample:7")
        wait(lambda: place.inclusions(1 + 2 * EPOCH) == [0])
        daemon.send(signal.SIGTERM)
        assert daemon.ended() == 0


def test_sigusr1_shows_state_and_stacks(place: Place) -> None:
    with place.daemon() as daemon:
        daemon.says("outcome: submitted")
        daemon.send(signal.SIGUSR1)
        daemon.says("the stacks of all threads")
        daemon.says("in _watch")
        assert '"topics": [{' in daemon.text
        daemon.send(signal.SIGTERM)
        assert daemon.ended() == 0


@pytest.mark.usefixtures("time_left_in_the_hour")
def test_continuous_works_on_embedded_defaults_and_ends_at_ctrl_c(
    root: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    line = [sys.executable, str(root / "submit_prediction.py"), "--continuous"]
    told = tmp_path / "console"
    with told.open("wb") as console, subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
    ) as process:  # fmt: skip
        daemon = Started(process, told)
        daemon.says("outcome: submitted")
        daemon.send(signal.SIGINT)
        assert daemon.ended() == 0
    assert "1 submitted; 0 epochs missed" in daemon.text


@pytest.mark.usefixtures("one_epoch")
def test_continuous_shows_itself_live_on_a_terminal(root: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    ours, theirs = os.openpty()
    line = [sys.executable, str(root / "submit_prediction.py"), "--continuous"]
    seen = bytearray()
    with subprocess.Popen(
        line, cwd=tmp_path, env={**environment, "TERM": "xterm"}, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:  # fmt: skip
        os.close(theirs)

        def read() -> None:
            try:
                while piece := os.read(ours, 65536):
                    seen.extend(piece)
            except OSError:  # its end of the terminal is closed
                return

        reader = threading.Thread(target=read)
        reader.start()
        wait(lambda: b"1 submitted" in seen and b"health" in seen)
        process.send_signal(signal.SIGINT)
        assert process.wait(LONG) == 0
        reader.join(LONG)
    os.close(ours)
    assert b"Traceback" not in seen


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--once", "--daemon"), "exclude each other"), (("--daemon", "--continuous"), "exclude each other"),
     (("--daemon", "--dry-run"), "--dry-run"), (("--daemon", "--as-of", "2026-03-01T00:00:00Z"), "--as-of"),
     (("--once", "--deadline", "2030-01-01"), "--deadline"), ((), "--once, --continuous or --daemon")],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(command: Any, arguments: tuple[str, ...], words: str) -> None:
    done = command(*arguments)
    assert done.code == 2
    assert words in done.err
