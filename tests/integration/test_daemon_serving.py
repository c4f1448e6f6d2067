"""The daemon in this process, on a local node over real sockets: which windows it serves, and what stops it from serving."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.campaign.worker import CheapForecaster, new_phrase
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.daemon import loop, topicworker, workshop
from forecastd.daemon.crew import Tuning
from forecastd.daemon.loop import Daemon
from forecastd.failpoints import install
from forecastd.ledger import Ledger, State, Submission
from forecastd.localnet.embedded import Embedded, open_embedded
from forecastd.localnet.faults import Fault
from forecastd.localnet.state import Effect
from forecastd.localnet.topics import TopicSpec
from forecastd.outbox import LONG_PAST
from forecastd.pulse import Pulse
from forecastd.settings import Settings
from forecastd.sources.faketiingo import FakeTiingo
from forecastd.supervise.report import Counts

EPOCH, WINDOW = 20, 18
LONG = 60.0  # seconds that anything here may take on a machine that is busy


class Model(CheapForecaster):
    """A model that costs nothing, with what the daemon shows of one."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        super().__init__(before)
        self._pool = None
        self.counts = Counts()


@dataclass
class Rig:
    """A daemon, its node, and what a test does while it runs."""

    node: Embedded
    place: Path
    phrase: str
    models: dict[int, Callable[[], None]] = field(default_factory=dict)
    pulses: list[Pulse] = field(default_factory=list)
    after_tick: Callable[[], None] = lambda: None  # in the daemon's own thread

    @property
    def wallet(self) -> str:
        return Wallet.from_mnemonic(self.phrase).address

    def settings(self, topic_id: int = 67, **more: Any) -> Settings:
        common: dict[str, Any] = {
            "topic_id": topic_id,
            "mnemonic": self.phrase,
            "state_dir": self.place / "state",
            "log_dir": self.place / "logs",
            "rpc_endpoints": (self.node.endpoint,),
            "event_endpoints": (self.node.websocket,),
        }
        return Settings(**{**common, **more})

    def served(self, topic_id: int, nonce: int) -> bool:
        return any(one.code == 0 for one in self.node.record().inclusions(topic_id, nonce, self.wallet))

    def confirmed(self, topic_id: int, nonce: int) -> bool:
        """Whether the daemon knows that the chain has it."""
        topics = self.pulses[-1].topics if self.pulses else ()
        return any(one.topic_id == topic_id and (one.confirmed_nonce or 0) >= nonce for one in topics)

    def run(
        self,
        topics: list[Settings],
        story: Callable[[], None],
        tuning: Tuning | None = None,
        clock: SystemClock | None = None,
    ) -> int:
        """Run a daemon until the story is told; its exit code."""
        told = threading.Event()
        failed: list[BaseException] = []

        def tell() -> None:
            try:
                story()
            except BaseException as error:  # noqa: BLE001 - for the main thread
                failed.append(error)
            told.set()

        thread = threading.Thread(target=tell)
        ended = [False]

        def watch(pulse: Pulse) -> None:
            self.pulses.append(pulse)
            self.after_tick()
            if not thread.ident:
                thread.start()
            if told.is_set() and not ended[0]:
                ended[0] = True
                os.kill(os.getpid(), signal.SIGTERM)

        code = Daemon(lambda: (topics, []), clock or SystemClock(), watch=watch, tuning=tuning).run()
        thread.join(LONG)
        for error in failed:
            raise error
        return code

    def wait(self, true: Callable[[], bool]) -> None:
        """Wait until something is so."""
        pause = threading.Event()
        for _ in range(int(LONG / 0.02)):
            if true():
                return
            pause.wait(0.02)
        raise AssertionError("it did not come to be so")

    def epochs(self, topics: list[int], number: int) -> list[int]:
        """Let so many epochs pass, each of which is closed when all topics have been served; their nonces."""
        nonces = []
        for _ in range(number):
            height = self.node.advance(0)
            nonce = 1 + -(-(height - 1) // EPOCH) * EPOCH
            self.node.advance(nonce - height)
            nonces.append(nonce)
            for _ in range(3):
                self.node.advance()
            self.wait(lambda at=nonce: self._stir(topics, at))  # type: ignore[misc]
        return nonces

    def _stir(self, topics: list[int], nonce: int) -> bool:
        """Make a block while there is room for one; whether all topics are served."""
        if self.node.advance(0) < nonce + WINDOW - 4:
            self.node.advance()
        return all(self.confirmed(topic, nonce) for topic in topics)


@contextmanager
def rig_on(place: Path, *, seal_at_once: bool = True) -> Iterator[Rig]:
    topics = tuple(TopicSpec(number, epoch_length=EPOCH, worker_submission_window=WINDOW) for number in (67, 69, 71))
    with open_embedded(
        place / "node", SystemClock(), block_time=None, topics=topics, events=True, seal_at_once=seal_at_once
    ) as node:
        yield Rig(node, place, new_phrase())


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """One whose loop ticks quickly and whose models cost nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "TICK", 0.05)
    monkeypatch.setattr(topicworker, "FAILED_AGAIN", 0.1)
    with rig_on(tmp_path) as made:
        nothing: Callable[[], None] = lambda: None  # noqa: E731 - a model that raises nothing

        def model(settings: Settings, *_: Any, **__: Any) -> Model:
            return Model(made.models.get(settings.topic_id, nothing))

        monkeypatch.setattr(workshop, "open_forecaster", model)
        yield made


def states(place: Path, topic_id: int = 67) -> dict[int, str]:
    with sqlite3.connect(place / "state" / "ledger.sqlite") as database:
        rows = database.execute("SELECT nonce, state FROM epochs WHERE topic_id = ?", (topic_id,)).fetchall()
    return dict(rows)


POLL, EVENTS = Tuning(events=False, least_poll=0.05, most_poll=0.05), Tuning(poll=False)


@pytest.mark.parametrize("tuning", [POLL, EVENTS, Tuning()], ids=["polling alone", "events alone", "both"])
def test_every_window_is_served_once(rig: Rig, tuning: Tuning) -> None:
    nonces: list[int] = []

    def story() -> None:
        rig.wait(lambda: rig.confirmed(67, 1))
        nonces.extend([1, *rig.epochs([67], 4)])

    assert rig.run([rig.settings()], story, tuning) == 0
    record = rig.node.record()
    assert [len(record.inclusions(67, nonce, rig.wallet)) for nonce in nonces] == [1] * 5
    last = rig.pulses[-1].topics[0]
    assert (last.submitted, last.missed, last.confirmed_nonce) == (5, 0, nonces[-1])


def test_a_window_that_is_served_is_looked_at_and_left_alone(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def story() -> None:
        rig.wait(lambda: rig.confirmed(67, 1))
        last = len(rig.pulses)
        rig.wait(lambda: len(rig.pulses) > last + 20)  # a second, in which there are some twenty looks
        rig.epochs([67], 1)

    assert rig.run([rig.settings()], story, POLL) == 0
    assert sum("outcome:" in record.getMessage() for record in caplog.records) <= 3


def test_topics_of_one_wallet_never_take_the_same_sequence(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    topics = [67, 69, 71]
    # Everybody signs at the same moment, and nothing is in a block until all have.
    together = threading.Barrier(len(topics))

    def meet() -> None:
        together.wait(LONG)

    rig.models = dict.fromkeys(topics, meet)
    nonces: list[int] = []

    def story() -> None:
        rig.wait(lambda: all(rig.confirmed(topic, 1) for topic in topics))
        nonces.extend([1, *rig.epochs(topics, 6)])

    assert rig.run([rig.settings(topic) for topic in topics], story) == 0
    record = rig.node.record()
    for topic in topics:
        assert [len(record.inclusions(topic, nonce, rig.wallet)) for nonce in nonces] == [1] * 7
    ledger = Ledger(rig.place / "state" / "ledger.sqlite")
    entries = ledger.entries("localnet", rig.wallet)
    sequences = [one.sequence for entry in entries for one in ledger.attempts(entry.key)]
    ledger.close()
    assert len(sequences) == len(set(sequences)) == 21
    assert "sdk 32" not in caplog.text


def test_a_topic_whose_source_hangs_costs_the_others_nothing(rig: Rig) -> None:
    from forecastd.sources.faketiingo import Fault as Trouble
    from forecastd.sources.sample import SampleSource

    source = SampleSource("btcusd")
    with FakeTiingo(source, SystemClock(), faults=[Trouble.parse("hang")]) as tiingo:
        hanging = rig.settings(69, data_source="tiingo", tiingo_api_key="k3y", tiingo_url=tiingo.url)

        def story() -> None:
            rig.wait(lambda: rig.confirmed(67, 1))
            rig.epochs([67], 3)

        assert rig.run([rig.settings(67), hanging], story) == 0
    seen = {topic.topic_id: topic for topic in rig.pulses[-1].topics}
    assert seen[67].submitted == 4
    assert seen[69].submitted == 0


def test_an_error_that_nobody_foresaw_ends_one_cycle_and_the_epoch_is_served_all_the_same(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    left = [3]

    def raises() -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise ZeroDivisionError("what nobody foresaw")

    rig.models = {67: raises}
    assert rig.run([rig.settings()], lambda: rig.wait(lambda: rig.confirmed(67, 1))) == 0
    errors = [record for record in caplog.records if "what nobody foresaw" in record.getMessage()]
    assert all(record.exc_info is None for record in errors if record.levelno > logging.DEBUG), "a line, no traceback"
    assert any(record.exc_info and record.levelno == logging.DEBUG for record in caplog.records)


def test_an_epoch_that_cannot_be_served_is_recorded_as_missed_with_its_reason_and_the_next_is_served(rig: Rig) -> None:
    broken = threading.Event()
    broken.set()

    def raises() -> None:
        if broken.is_set():
            raise ZeroDivisionError("a model that is broken")

    rig.models = {67: raises}

    def story() -> None:
        rig.wait(lambda: bool(rig.pulses[-1].topics) and rig.pulses[-1].topics[0].cycles > 1)
        rig.node.advance(WINDOW)
        rig.wait(lambda: rig.pulses[-1].topics[0].missed == 1)
        broken.clear()
        rig.epochs([67], 1)

    assert rig.run([rig.settings()], story, Tuning(least_poll=0.05, most_poll=0.05)) == 0
    found = states(rig.place)
    assert found[1] == "missed"
    assert found[1 + EPOCH] in ("included", "admitted")
    with sqlite3.connect(rig.place / "state" / "ledger.sqlite") as database:
        reason = database.execute("SELECT reason FROM epochs WHERE nonce = 1").fetchone()[0]
    assert "a model that is broken" in reason


def test_all_endpoints_down_while_a_window_is_open_costs_nothing_but_time(rig: Rig) -> None:
    fetched = threading.Event()

    def down() -> None:
        if not fetched.is_set():
            rig.node.set_faults([Fault.parse("refuse")])
            fetched.set()

    rig.models = {67: down}

    def story() -> None:
        rig.wait(fetched.is_set)
        rig.wait(lambda: any(one.state != "ok" for one in rig.pulses[-1].endpoints))
        rig.node.set_faults([])
        rig.wait(lambda: rig.confirmed(67, 1))

    assert rig.run([rig.settings()], story) == 0
    assert rig.pulses[-1].topics[0].missed == 0


def test_an_endpoint_that_stays_away_keeps_no_epoch_from_being_served_after_one_whose_bytes_were_lost(rig: Rig) -> None:
    silent = rig.node.add_endpoint([Fault.parse("refuse")])
    rig.node.inject(Fault.parse("drop-from-mempool"))

    def story() -> None:
        rig.wait(lambda: rig.pulses[-1].topics != () and rig.pulses[-1].topics[0].phase == "submit")
        rig.node.advance(WINDOW)
        rig.node.inject()
        rig.node.advance(LONG_PAST)
        rig.wait(lambda: rig.pulses[-1].topics[0].missed == 1)
        rig.epochs([67], 1)

    settings = rig.settings(rpc_endpoints=(rig.node.endpoint, silent))
    assert rig.run([settings], story, Tuning(least_poll=0.05, most_poll=0.05)) == 0
    assert states(rig.place)[1] == "missed"


def test_the_daemon_starts_when_the_network_is_down_and_serves_when_it_is_back(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rig.node.set_faults([Fault.parse("refuse")])

    def story() -> None:
        rig.wait(lambda: rig.pulses[-1].state == "running")
        rig.node.set_faults([])
        rig.wait(lambda: rig.confirmed(67, 1))

    assert rig.run([rig.settings(event_endpoints=())], story, Tuning(least_poll=0.05, most_poll=0.05)) == 0
    assert "No endpoint can be asked now; the daemon starts all the same" in caplog.text


def test_a_disk_that_fails_ends_the_daemon_for_a_new_start(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Ledger._commit

    def fails(self: Ledger, submission: Submission, now: float) -> Any:
        if not self.failed:
            self.failed = True
            self._db.close()
            raise sqlite3.OperationalError("disk I/O error")
        return commit(self, submission, now)

    monkeypatch.setattr(Ledger, "_commit", fails)
    assert Daemon(lambda: ([rig.settings()], []), SystemClock()).run() == 6
    assert not rig.served(67, 1)
    monkeypatch.undo()


class Ahead(SystemClock):
    """A clock that can be put forward."""

    seconds = 0.0

    def now(self) -> float:
        return super().now() + self.seconds

    def monotonic(self) -> float:
        return super().monotonic() + self.seconds


def test_nothing_is_started_after_the_deadline_and_what_is_in_flight_finishes(rig: Rig) -> None:
    from datetime import UTC, datetime, timedelta

    under_way, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        under_way.set()
        assert go_on.wait(LONG)

    rig.models = {67: slow}
    clock, deadline = Ahead(), datetime.now(UTC) + timedelta(seconds=600)
    told: list[str] = []

    def story() -> None:
        rig.wait(lambda: clock.seconds > 0)
        looked(3)
        rig.node.advance(EPOCH)
        looked(3)
        told.append(rig.pulses[-1].state)
        go_on.set()
        threading.Event().wait(0.5)

    def looked(times: int) -> None:
        last = len(rig.pulses)
        rig.wait(lambda: len(rig.pulses) > last + times)

    def jump() -> None:  # between two ticks, so that none sees one of its two times before it and one after it
        if under_way.is_set():
            clock.seconds = 601.0

    rig.after_tick = jump
    # The window of the first epoch is still open: what is in flight may finish.
    rig.node.call(lambda chain: None)
    code = rig.run([rig.settings(submission_deadline=deadline)], story, clock=clock)
    assert code == 0
    assert told == ["running"]
    record = rig.node.record()
    assert not record.inclusions(67, 1 + EPOCH, rig.wallet)


def test_a_reload_takes_a_new_topic_up_and_lets_go_of_another(rig: Rig) -> None:
    topics = [rig.settings(67), rig.settings(69)]

    def story() -> None:
        rig.wait(lambda: rig.confirmed(67, 1) and rig.served(69, 1))
        topics[:] = [rig.settings(69), rig.settings(71)]
        os.kill(os.getpid(), signal.SIGHUP)
        rig.wait(lambda: rig.confirmed(71, 1))
        rig.epochs([69, 71], 1)

    assert rig.run(topics, story) == 0
    assert not rig.served(67, 1 + EPOCH)
    assert [topic.topic_id for topic in rig.pulses[-1].topics] == [69, 71]


def test_fifty_reloads_of_what_does_not_fit_leave_the_old_settings_in_force(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    topics = [rig.settings(67)]

    def story() -> None:
        rig.wait(lambda: rig.confirmed(67, 1))
        topics[:] = [rig.settings(67, data_source="moon", allora_network="testnet")]
        for _ in range(50):
            os.kill(os.getpid(), signal.SIGHUP)
        rig.wait(lambda: "Not reloaded" in caplog.text)
        rig.epochs([67], 2)

    assert rig.run(topics, story) == 0
    assert rig.pulses[-1].topics[0].submitted == 3
    told = next(record.getMessage() for record in caplog.records if "Not reloaded" in record.getMessage())
    assert "moon" in told
    assert "restart" in told


def test_what_was_opened_while_the_daemon_was_down_is_missed_and_told(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert rig.run([rig.settings()], lambda: rig.wait(lambda: rig.confirmed(67, 1))) == 0
    rig.node.advance(3 * EPOCH)
    assert rig.run([rig.settings()], lambda: rig.wait(lambda: rig.confirmed(67, 1 + 3 * EPOCH))) == 0
    assert [state for _, state in sorted(states(rig.place).items())][1:3] == ["missed", "missed"]
    assert rig.pulses[-1].topics[0].missed == 2
    assert caplog.text.count("missed: topic 67") == 2


def test_a_cycle_that_is_abandoned_is_gone_on_with_after_the_next_start(tmp_path: Path, rig: Rig) -> None:
    del tmp_path
    rig.node.call(lambda chain: chain.fund(rig.wallet, 10**24))
    rig.node.call(lambda chain: chain.state.apply(Effect(worker=(67, rig.wallet))))
    reached = threading.Event()
    install(lambda name: reached.set() if name == "after commit" else None)
    try:
        rig.node.set_faults([Fault.parse("drop")])
        assert rig.run([rig.settings()], lambda: rig.wait(reached.is_set)) == 0
    finally:
        install(None)
    assert states(rig.place)[1] == State.SIGNED
    rig.node.set_faults([])
    assert rig.run([rig.settings()], lambda: rig.wait(lambda: rig.confirmed(67, 1))) == 0
    assert len(rig.node.record().inclusions(67, 1, rig.wallet)) == 1


def test_a_wallet_that_runs_dry_is_told_of_while_it_still_lasts(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.node.call(lambda chain: chain.fund(rig.wallet, 20_000_000))
    rig.node.call(lambda chain: chain.state.apply(Effect(worker=(67, rig.wallet))))

    def story() -> None:
        rig.wait(lambda: any(topic.runway_epochs is not None for topic in rig.pulses[-1].topics))
        rig.wait(lambda: rig.served(67, 1))

    assert rig.run([rig.settings()], story) == 0
    runway = rig.pulses[-1].topics[0].runway_epochs
    assert runway is not None
    assert 0 < runway < 100
    assert f"enough for {runway} epochs. Send it some." in caplog.text
    assert rig.served(67, 1)


def test_a_worker_that_makes_no_progress_keeps_the_watchdog_from_being_fed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(topicworker, "IN_WORK", 0.5)
    stuck, go_on = threading.Event(), threading.Event()

    def hangs() -> None:
        stuck.set()
        assert go_on.wait(LONG)

    rig.models = {67: hangs}
    fed: list[float | None] = []

    def fed_at() -> float | None:
        watchdog = rig.pulses[-1].watchdog
        return None if watchdog is None else watchdog.fed_at

    def story() -> None:
        rig.wait(stuck.is_set)
        rig.wait(lambda: rig.pulses[-1].watchdog is not None and rig.pulses[-1].watchdog.would_fire)
        fed.append(fed_at())
        last = len(rig.pulses)
        rig.wait(lambda: len(rig.pulses) > last + 3)
        fed.append(fed_at())
        go_on.set()
        rig.wait(lambda: rig.confirmed(67, 1))

    assert rig.run([rig.settings(watchdog_usec=200_000)], story) == 0
    assert fed[0] is not None
    assert fed[0] == fed[1]
    assert "has made no progress" in caplog.text
    assert "in hangs" in caplog.text, "the stacks show where"
    assert "every loop makes progress again" in caplog.text


def test_a_model_that_was_replaced_on_disk_is_taken_up_by_a_reload(rig: Rig, tmp_path: Path) -> None:
    made: list[Model] = []

    class Counted(Model):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    topics = [rig.settings()]
    bundle = tmp_path / "bundle"

    def story() -> None:
        rig.wait(lambda: rig.confirmed(67, 1))
        os.kill(os.getpid(), signal.SIGHUP)
        rig.wait(lambda: reloads() == 1)
        assert len(made) == 1, "nothing has changed, so the model goes on"
        topics[:] = [rig.settings(model=bundle)]
        os.kill(os.getpid(), signal.SIGHUP)
        rig.wait(lambda: reloads() == 2)
        assert len(made) == 2
        rig.epochs([67], 1)

    import shutil

    from forecastd.settings import EMBEDDED_MODEL

    shutil.copytree(EMBEDDED_MODEL, bundle)
    counter = logging.Handler()
    told: list[str] = []
    counter.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]

    def reloads() -> int:
        return told.count("reloaded")

    logger = logging.getLogger("forecastd.daemon.loop")
    logger.addHandler(counter)
    logger.setLevel(logging.INFO)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(workshop, "open_forecaster", lambda *_, **__: Counted())
            assert rig.run(topics, story) == 0
    finally:
        logger.removeHandler(counter)
        logger.setLevel(logging.NOTSET)
    assert rig.confirmed(67, 1 + EPOCH)


def test_everything_is_let_go_of_at_the_end(rig: Rig) -> None:
    before, files = set(threading.enumerate()), len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        assert rig.run([rig.settings(67), rig.settings(69)], lambda: rig.wait(lambda: rig.confirmed(69, 1))) == 0
    rig.wait(lambda: not (set(threading.enumerate()) - before))
    rig.wait(lambda: len(list(Path("/proc/self/fd").iterdir())) <= files + 2)  # the libraries' own threads close some


def test_two_wallets_on_one_topic_are_served_side_by_side(rig: Rig) -> None:
    other = new_phrase()
    second = Wallet.from_mnemonic(other).address

    def story() -> None:
        rig.wait(lambda: len([one for one in rig.pulses[-1].topics if one.confirmed_nonce == 1]) == 2)

    assert rig.run([rig.settings(), rig.settings(mnemonic=other)], story) == 0
    record = rig.node.record()
    assert [len(record.inclusions(67, 1, wallet)) for wallet in (rig.wallet, second)] == [1, 1]
