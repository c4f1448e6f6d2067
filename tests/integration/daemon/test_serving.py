"""The daemon in this process on a local node over real sockets: which windows it serves, and what stops it."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.daemon import loop, resources, topic_worker
from forecastd.daemon.loop import Daemon
from forecastd.daemon.watcher import PollOptions
from forecastd.ledger.ledger import Ledger, Submission, SubmissionState
from forecastd.localnet.embedded import EmbeddedNode, open_embedded
from forecastd.localnet.faults import NodeFault
from forecastd.localnet.state import Effect
from forecastd.localnet.topics import TopicSpec
from forecastd.market.sources.fake_tiingo import FakeTiingo, TiingoFault
from forecastd.market.sources.sample import SampleSource
from forecastd.runtime.failpoints import install_hook
from forecastd.settings import DEMO_MODEL, Settings, load_settings
from forecastd.status.model import DaemonStatus
from forecastd.submission.state_machine import LONG_PAST_BLOCKS
from forecastd.supervise.events import SupervisionCounts
from forecastd.testing import FakeForecaster
from tests.support.mnemonics import new_mnemonic
from tests.support.waiting import wait_until

EPOCH_BLOCKS, WINDOW_BLOCKS = 20, 18
TIMEOUT_SECONDS = 60.0  # enough for a busy machine


class NamedForecaster(FakeForecaster):
    """A forecaster without a model, with the attributes that the daemon publishes."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        super().__init__(before)
        self._pool = None
        self.counts = SupervisionCounts()


@dataclass
class DaemonHarness:
    """A daemon and its node; a test runs a scenario against them."""

    node: EmbeddedNode
    directory: Path
    phrase: str
    models: dict[int, Callable[[], None]] = field(default_factory=dict)
    statuses: list[DaemonStatus] = field(default_factory=list)
    after_tick: Callable[[], None] = lambda: None  # called in the daemon's main thread

    @property
    def wallet(self) -> str:
        return Wallet.from_mnemonic(self.phrase).address

    def settings(self, topic_id: int = 67, **overrides: Any) -> Settings:
        defaults: dict[str, Any] = {
            "topic_id": topic_id,
            "mnemonic": self.phrase,
            "state_dir": self.directory / "state",
            "log_dir": self.directory / "logs",
            "rpc_endpoints": (self.node.endpoint,),
            "event_endpoints": (self.node.websocket,),
        }
        return load_settings(**{**defaults, **overrides})

    def is_served(self, topic_id: int, nonce: int) -> bool:
        return any(inclusion.code == 0 for inclusion in self.node.record().inclusions(topic_id, nonce, self.wallet))

    def is_confirmed(self, topic_id: int, nonce: int) -> bool:
        """Whether the daemon has seen the confirmation of the nonce."""
        topics = self.statuses[-1].topics if self.statuses else ()
        return any(topic.topic_id == topic_id and (topic.confirmed_nonce or 0) >= nonce for topic in topics)

    def run(
        self,
        topics: list[Settings],
        scenario: Callable[[], None],
        poll_options: PollOptions | None = None,
        clock: SystemClock | None = None,
    ) -> int:
        """Run a daemon until the scenario ends. Returns its exit code."""
        scenario_done = threading.Event()
        errors: list[BaseException] = []

        def run_scenario() -> None:
            try:
                scenario()
            except BaseException as error:  # noqa: BLE001 - for the main thread
                errors.append(error)
            scenario_done.set()

        thread = threading.Thread(target=run_scenario)
        stop_sent = [False]

        def on_status(status: DaemonStatus) -> None:
            self.statuses.append(status)
            self.after_tick()
            if not thread.ident:
                thread.start()
            if scenario_done.is_set() and not stop_sent[0]:
                stop_sent[0] = True
                os.kill(os.getpid(), signal.SIGTERM)

        exit_code = Daemon(
            lambda: (topics, []), clock or SystemClock(), on_status=on_status, poll_options=poll_options
        ).run()
        thread.join(TIMEOUT_SECONDS)
        for error in errors:
            raise error
        return exit_code

    def wait_until(self, condition: Callable[[], bool]) -> None:
        wait_until(condition, seconds=TIMEOUT_SECONDS)

    def run_epochs(self, topics: list[int], count: int) -> list[int]:
        """Run `count` epochs; each one ends when all topics are served. Returns the nonces."""
        nonces = []
        for _ in range(count):
            height = self.node.advance(0)
            nonce = 1 + -(-(height - 1) // EPOCH_BLOCKS) * EPOCH_BLOCKS
            self.node.advance(nonce - height)
            nonces.append(nonce)
            for _ in range(3):
                self.node.advance()
            self.wait_until(lambda current_nonce=nonce: self._advance_block(topics, current_nonce))  # type: ignore[misc]
        return nonces

    def _advance_block(self, topics: list[int], nonce: int) -> bool:
        """Make a block while the window stays open. Returns whether all topics are served."""
        if self.node.advance(0) < nonce + WINDOW_BLOCKS - 4:
            self.node.advance()
        return all(self.is_confirmed(topic, nonce) for topic in topics)


@contextmanager
def open_harness(directory: Path, *, seal_at_once: bool = True) -> Iterator[DaemonHarness]:
    topics = tuple(
        TopicSpec(number, epoch_length=EPOCH_BLOCKS, worker_submission_window=WINDOW_BLOCKS) for number in (67, 69, 71)
    )
    with open_embedded(
        directory / "node", SystemClock(), block_time=None, topics=topics, events=True, seal_at_once=seal_at_once
    ) as node:
        yield DaemonHarness(node, directory, new_mnemonic())


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DaemonHarness]:
    """A harness with a fast loop and forecasters without a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(topic_worker, "FAILURE_RETRY_SECONDS", 0.1)
    with open_harness(tmp_path) as harness:

        def open_forecaster(settings: Settings, *_: Any, **__: Any) -> NamedForecaster:
            return NamedForecaster(harness.models.get(settings.topic.id, lambda: None))

        monkeypatch.setattr(resources, "open_forecaster", open_forecaster)
        yield harness


def states(directory: Path, topic_id: int = 67) -> dict[int, str]:
    with sqlite3.connect(directory / "state" / "ledger.sqlite") as database:
        rows = database.execute("SELECT nonce, state FROM epochs WHERE topic_id = ?", (topic_id,)).fetchall()
    return dict(rows)


POLL_ONLY, EVENTS_ONLY = (
    PollOptions(events=False, min_poll_seconds=0.05, max_poll_seconds=0.05),
    PollOptions(poll=False),
)


@pytest.mark.parametrize("poll_options", [POLL_ONLY, EVENTS_ONLY, PollOptions()], ids=["polling", "events", "both"])
def test_every_window_is_served_once(harness: DaemonHarness, poll_options: PollOptions) -> None:
    nonces: list[int] = []

    def scenario() -> None:
        harness.wait_until(lambda: harness.is_confirmed(67, 1))
        nonces.extend([1, *harness.run_epochs([67], 4)])

    assert harness.run([harness.settings()], scenario, poll_options) == 0
    record = harness.node.record()
    assert [len(record.inclusions(67, nonce, harness.wallet)) for nonce in nonces] == [1] * 5
    last = harness.statuses[-1].topics[0]
    assert (last.submitted, last.missed, last.confirmed_nonce) == (5, 0, nonces[-1])


def test_served_window_is_polled_but_not_served_again(harness: DaemonHarness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def scenario() -> None:
        harness.wait_until(lambda: harness.is_confirmed(67, 1))
        last = len(harness.statuses)
        harness.wait_until(lambda: len(harness.statuses) > last + 20)  # about twenty polls
        harness.run_epochs([67], 1)

    assert harness.run([harness.settings()], scenario, POLL_ONLY) == 0
    assert sum("outcome:" in record.getMessage() for record in caplog.records) <= 3


def test_topics_of_one_wallet_never_share_a_sequence(
    harness: DaemonHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    topics = [67, 69, 71]
    # All topics sign at the same moment, before any submission is in a block.
    barrier = threading.Barrier(len(topics))

    def meet() -> None:
        barrier.wait(TIMEOUT_SECONDS)

    harness.models = dict.fromkeys(topics, meet)
    nonces: list[int] = []

    def scenario() -> None:
        harness.wait_until(lambda: all(harness.is_confirmed(topic, 1) for topic in topics))
        nonces.extend([1, *harness.run_epochs(topics, 6)])

    assert harness.run([harness.settings(topic) for topic in topics], scenario) == 0
    record = harness.node.record()
    for topic in topics:
        assert [len(record.inclusions(topic, nonce, harness.wallet)) for nonce in nonces] == [1] * 7
    ledger = Ledger(harness.directory / "state" / "ledger.sqlite")
    entries = ledger.entries("localnet", harness.wallet)
    sequences = [row.sequence for entry in entries for row in ledger.attempts(entry.key)]
    ledger.close()
    assert len(sequences) == len(set(sequences)) == 21
    assert "sdk 32" not in caplog.text


def test_hanging_source_does_not_delay_other_topics(harness: DaemonHarness) -> None:
    source = SampleSource("btcusd")
    with FakeTiingo(source, SystemClock(), faults=[TiingoFault.parse("hang")]) as tiingo:
        hanging = harness.settings(69, data_source="tiingo", tiingo_api_key="k3y", tiingo_url=tiingo.url)

        def scenario() -> None:
            harness.wait_until(lambda: harness.is_confirmed(67, 1))
            harness.run_epochs([67], 3)

        assert harness.run([harness.settings(67), hanging], scenario) == 0
    statuses = {topic.topic_id: topic for topic in harness.statuses[-1].topics}
    assert statuses[67].submitted == 4
    assert statuses[69].submitted == 0


def test_unexpected_error_fails_one_cycle_and_the_epoch_is_still_served(
    harness: DaemonHarness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    remaining = [3]

    def raises() -> None:
        remaining[0] -= 1
        if remaining[0] >= 0:
            raise ZeroDivisionError("a bug")

    harness.models = {67: raises}
    assert harness.run([harness.settings()], lambda: harness.wait_until(lambda: harness.is_confirmed(67, 1))) == 0
    errors = [record for record in caplog.records if "ZeroDivisionError: a bug" in record.getMessage()]
    assert all(record.exc_info is None for record in errors if record.levelno > logging.DEBUG), "one line, no traceback"
    assert any(record.exc_info and record.levelno == logging.DEBUG for record in caplog.records)


def test_unserved_epoch_is_recorded_as_missed_and_the_next_is_served(harness: DaemonHarness) -> None:
    broken = threading.Event()
    broken.set()

    def raises() -> None:
        if broken.is_set():
            raise ZeroDivisionError("a broken model")

    harness.models = {67: raises}

    def scenario() -> None:
        harness.wait_until(lambda: bool(harness.statuses[-1].topics) and harness.statuses[-1].topics[0].cycles > 1)
        harness.node.advance(WINDOW_BLOCKS)
        harness.wait_until(lambda: harness.statuses[-1].topics[0].missed == 1)
        broken.clear()
        harness.run_epochs([67], 1)

    assert harness.run([harness.settings()], scenario, PollOptions(min_poll_seconds=0.05, max_poll_seconds=0.05)) == 0
    rows = states(harness.directory)
    assert rows[1] == "missed"
    assert rows[1 + EPOCH_BLOCKS] in ("included", "admitted")
    with sqlite3.connect(harness.directory / "state" / "ledger.sqlite") as database:
        reason = database.execute("SELECT reason FROM epochs WHERE nonce = 1").fetchone()[0]
    assert "a broken model" in reason


def test_endpoint_outage_during_a_window_only_delays_the_submission(harness: DaemonHarness) -> None:
    fetches = threading.Event()

    def down() -> None:
        if not fetches.is_set():
            harness.node.set_faults([NodeFault.parse("refuse")])
            fetches.set()

    harness.models = {67: down}

    def scenario() -> None:
        harness.wait_until(fetches.is_set)
        harness.wait_until(lambda: any(row.state != "ok" for row in harness.statuses[-1].endpoints))
        harness.node.set_faults([])
        harness.wait_until(lambda: harness.is_confirmed(67, 1))

    assert harness.run([harness.settings()], scenario) == 0
    assert harness.statuses[-1].topics[0].missed == 0


def test_dead_endpoint_after_lost_bytes_does_not_block_later_epochs(harness: DaemonHarness) -> None:
    silent = harness.node.add_endpoint([NodeFault.parse("refuse")])
    harness.node.inject(NodeFault.parse("drop-from-mempool"))

    def scenario() -> None:
        harness.wait_until(
            lambda: harness.statuses[-1].topics != () and harness.statuses[-1].topics[0].phase == "submit"
        )
        harness.node.advance(WINDOW_BLOCKS)
        harness.node.inject()
        harness.node.advance(LONG_PAST_BLOCKS)
        harness.wait_until(lambda: harness.statuses[-1].topics[0].missed == 1)
        harness.run_epochs([67], 1)

    settings = harness.settings(rpc_endpoints=(harness.node.endpoint, silent))
    assert harness.run([settings], scenario, PollOptions(min_poll_seconds=0.05, max_poll_seconds=0.05)) == 0
    assert states(harness.directory)[1] == "missed"


def test_daemon_starts_offline_and_serves_when_the_network_returns(
    harness: DaemonHarness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    harness.node.set_faults([NodeFault.parse("refuse")])

    def scenario() -> None:
        harness.wait_until(lambda: harness.statuses[-1].state == "running")
        harness.node.set_faults([])
        harness.wait_until(lambda: harness.is_confirmed(67, 1))

    assert (
        harness.run(
            [harness.settings(event_endpoints=())], scenario, PollOptions(min_poll_seconds=0.05, max_poll_seconds=0.05)
        )
        == 0
    )
    assert "No endpoint is usable now; the daemon starts anyway" in caplog.text


def test_ledger_disk_failure_exits_for_a_restart(harness: DaemonHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Ledger.commit

    def fails(self: Ledger, submission: Submission, now: float) -> Any:
        if not self.disk_failed:
            self.disk_failed = True
            self._db.close()
            raise sqlite3.OperationalError("disk I/O error")
        return commit(self, submission, now)

    monkeypatch.setattr(Ledger, "commit", fails)
    assert Daemon(lambda: ([harness.settings()], []), SystemClock()).run() == 6
    assert not harness.is_served(67, 1)
    monkeypatch.undo()


class ClockAhead(SystemClock):
    """The system clock, set ahead by `seconds`."""

    seconds = 0.0

    def now(self) -> float:
        return super().now() + self.seconds

    def monotonic(self) -> float:
        return super().monotonic() + self.seconds


def test_deadline_stops_new_cycles_and_finishes_the_current_one(harness: DaemonHarness) -> None:
    cycle_started, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        cycle_started.set()
        assert go_on.wait(TIMEOUT_SECONDS)

    harness.models = {67: slow}
    clock, deadline = ClockAhead(), datetime.now(UTC) + timedelta(seconds=600)
    states_during_cycle: list[str] = []

    def scenario() -> None:
        harness.wait_until(lambda: clock.seconds > 0)
        wait_for_ticks(3)
        harness.node.advance(EPOCH_BLOCKS)
        wait_for_ticks(3)
        states_during_cycle.append(harness.statuses[-1].state)
        go_on.set()
        harness.wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("topic ")])

    def wait_for_ticks(count: int) -> None:
        last = len(harness.statuses)
        harness.wait_until(lambda: len(harness.statuses) > last + count)

    def jump() -> None:  # between two ticks: each tick must read both clocks before or after the jump
        if cycle_started.is_set():
            clock.seconds = 601.0

    harness.after_tick = jump
    exit_code = harness.run([harness.settings(submission_deadline=deadline)], scenario, clock=clock)
    assert exit_code == 0
    assert states_during_cycle == ["running"]
    record = harness.node.record()
    assert not record.inclusions(67, 1 + EPOCH_BLOCKS, harness.wallet)


def test_reload_adds_and_removes_topics(harness: DaemonHarness) -> None:
    topics = [harness.settings(67), harness.settings(69)]

    def scenario() -> None:
        harness.wait_until(lambda: harness.is_confirmed(67, 1) and harness.is_served(69, 1))
        topics[:] = [harness.settings(69), harness.settings(71)]
        os.kill(os.getpid(), signal.SIGHUP)
        harness.wait_until(lambda: harness.is_confirmed(71, 1))
        harness.run_epochs([69, 71], 1)

    assert harness.run(topics, scenario) == 0
    assert not harness.is_served(67, 1 + EPOCH_BLOCKS)
    assert [topic.topic_id for topic in harness.statuses[-1].topics] == [69, 71]


def test_fifty_invalid_reloads_keep_the_old_settings(harness: DaemonHarness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    topics = [harness.settings(67)]

    def scenario() -> None:
        harness.wait_until(lambda: harness.is_confirmed(67, 1))
        topics[:] = [harness.settings(67, data_source="moon", allora_network="testnet")]
        for _ in range(50):
            os.kill(os.getpid(), signal.SIGHUP)
        harness.wait_until(lambda: "The reload failed" in caplog.text)
        harness.run_epochs([67], 2)

    assert harness.run(topics, scenario) == 0
    assert harness.statuses[-1].topics[0].submitted == 3
    message = next(record.getMessage() for record in caplog.records if "The reload failed" in record.getMessage())
    assert "moon" in message
    assert "Restart" in message


def test_window_opened_during_downtime_is_recorded_as_missed(
    harness: DaemonHarness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert harness.run([harness.settings()], lambda: harness.wait_until(lambda: harness.is_confirmed(67, 1))) == 0
    harness.node.advance(3 * EPOCH_BLOCKS)
    assert (
        harness.run(
            [harness.settings()], lambda: harness.wait_until(lambda: harness.is_confirmed(67, 1 + 3 * EPOCH_BLOCKS))
        )
        == 0
    )
    assert [state for _, state in sorted(states(harness.directory).items())][1:3] == ["missed", "missed"]
    assert harness.statuses[-1].topics[0].missed == 2
    assert caplog.text.count("missed epoch: topic 67") == 2


def test_abandoned_cycle_resumes_after_restart(tmp_path: Path, harness: DaemonHarness) -> None:
    del tmp_path
    harness.node.call(lambda chain: chain.fund(harness.wallet, 10**24))
    harness.node.call(lambda chain: chain.state.apply(Effect(worker=(67, harness.wallet))))
    committed = threading.Event()
    install_hook(lambda name: committed.set() if name == "after commit" else None)
    try:
        harness.node.set_faults([NodeFault.parse("drop")])
        assert harness.run([harness.settings()], lambda: harness.wait_until(committed.is_set)) == 0
    finally:
        install_hook(None)
    assert states(harness.directory)[1] == SubmissionState.SIGNED
    harness.node.set_faults([])
    assert harness.run([harness.settings()], lambda: harness.wait_until(lambda: harness.is_confirmed(67, 1))) == 0
    assert len(harness.node.record().inclusions(67, 1, harness.wallet)) == 1


def test_low_balance_is_reported_before_it_runs_out(harness: DaemonHarness, caplog: pytest.LogCaptureFixture) -> None:
    harness.node.call(lambda chain: chain.fund(harness.wallet, 20_000_000))
    harness.node.call(lambda chain: chain.state.apply(Effect(worker=(67, harness.wallet))))

    def scenario() -> None:
        harness.wait_until(lambda: any(topic.runway_epochs is not None for topic in harness.statuses[-1].topics))
        harness.wait_until(lambda: harness.is_served(67, 1))

    assert harness.run([harness.settings()], scenario) == 0
    runway = harness.statuses[-1].topics[0].runway_epochs
    assert runway is not None
    assert 0 < runway < 100
    assert f"enough for {runway} epoch{'' if runway == 1 else 's'}. Send ALLO" in caplog.text
    assert harness.is_served(67, 1)


def test_stalled_worker_stops_the_watchdog_pings(
    harness: DaemonHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(topic_worker, "STAGE_STALL_SECONDS", 0.5)
    is_stalled, go_on = threading.Event(), threading.Event()

    def hangs() -> None:
        is_stalled.set()
        assert go_on.wait(TIMEOUT_SECONDS)

    harness.models = {67: hangs}
    pings: list[float | None] = []

    def last_ping() -> float | None:
        watchdog = harness.statuses[-1].watchdog
        return None if watchdog is None else watchdog.last_ping_at

    def scenario() -> None:
        harness.wait_until(is_stalled.is_set)
        harness.wait_until(
            lambda: harness.statuses[-1].watchdog is not None and harness.statuses[-1].watchdog.would_fire
        )
        pings.append(last_ping())
        last = len(harness.statuses)
        harness.wait_until(lambda: len(harness.statuses) > last + 3)
        pings.append(last_ping())
        go_on.set()
        harness.wait_until(lambda: harness.is_confirmed(67, 1))

    assert harness.run([harness.settings(watchdog_usec=200_000)], scenario) == 0
    assert pings[0] is not None
    assert pings[0] == pings[1]
    assert "has made no progress" in caplog.text
    assert "in hangs" in caplog.text, "the stacks show the function"
    assert "all loops make progress again" in caplog.text


def test_reload_loads_a_replaced_model(harness: DaemonHarness, tmp_path: Path) -> None:
    forecasters: list[NamedForecaster] = []

    class CountedForecaster(NamedForecaster):
        def __init__(self) -> None:
            super().__init__()
            forecasters.append(self)

    topics = [harness.settings()]
    bundle = tmp_path / "bundle"

    def scenario() -> None:
        harness.wait_until(lambda: harness.is_confirmed(67, 1))
        os.kill(os.getpid(), signal.SIGHUP)
        harness.wait_until(lambda: reloads() == 1)
        assert len(forecasters) == 1, "nothing has changed, so the model is kept"
        topics[:] = [harness.settings(model=bundle)]
        os.kill(os.getpid(), signal.SIGHUP)
        harness.wait_until(lambda: reloads() == 2)
        assert len(forecasters) == 2
        harness.run_epochs([67], 1)

    shutil.copytree(DEMO_MODEL, bundle)
    counter = logging.Handler()
    messages: list[str] = []
    counter.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]

    def reloads() -> int:
        return messages.count("reloaded")

    logger = logging.getLogger("forecastd.daemon.loop")
    logger.addHandler(counter)
    logger.setLevel(logging.INFO)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resources, "open_forecaster", lambda *_, **__: CountedForecaster())
            assert harness.run(topics, scenario) == 0
    finally:
        logger.removeHandler(counter)
        logger.setLevel(logging.NOTSET)
    assert harness.is_confirmed(67, 1 + EPOCH_BLOCKS)


def test_daemon_releases_all_resources_on_exit(harness: DaemonHarness) -> None:
    before, files = set(threading.enumerate()), len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        assert (
            harness.run(
                [harness.settings(67), harness.settings(69)],
                lambda: harness.wait_until(lambda: harness.is_confirmed(69, 1)),
            )
            == 0
        )
    harness.wait_until(lambda: not (set(threading.enumerate()) - before))
    # Library threads close a few descriptors a little later.
    harness.wait_until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= files + 2)


def test_two_wallets_on_one_topic_are_both_served(harness: DaemonHarness) -> None:
    other = new_mnemonic()
    second = Wallet.from_mnemonic(other).address

    def scenario() -> None:
        harness.wait_until(lambda: len([row for row in harness.statuses[-1].topics if row.confirmed_nonce == 1]) == 2)

    assert harness.run([harness.settings(), harness.settings(mnemonic=other)], scenario) == 0
    record = harness.node.record()
    assert [len(record.inclusions(67, 1, wallet)) for wallet in (harness.wallet, second)] == [1, 1]
