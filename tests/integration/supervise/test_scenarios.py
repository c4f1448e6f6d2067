"""The table of hangs with real children: who is hung, who is only slow, who goes on, and that everybody is gone after it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Condition
from threading import Event as Flag
from typing import Any, Protocol

import numpy as np
import psutil
import pytest

from forecastd.supervise.detector import Phase, PhaseLimits
from forecastd.supervise.events import ProcessEvent
from forecastd.supervise.jobs import Job, check_job, predict_job
from forecastd.supervise.policy import ChildSetup, SupervisionPolicy
from forecastd.supervise.pool import ProcessPool
from forecastd.supervise.process import ChildFailed
from models.base import Forecast
from models.market.bundle import MarketBundle, load_market_bundle

WAIT_SECONDS = 120.0  # longer than anything here takes on the slowest machine


class MonotonicOnlyClock:
    """A clock without wall time, so that reading it fails the test; its monotonic time can jump."""

    offset = 0.0

    def now(self) -> float:
        raise AssertionError("supervision read the wall clock")

    def monotonic(self) -> float:
        return time.monotonic() + self.offset


class EventLog:
    """What a pool told."""

    def __init__(self) -> None:
        self.events: list[ProcessEvent] = []
        self._condition = Condition()

    def __call__(self, event: ProcessEvent) -> None:
        with self._condition:
            self.events.append(event)
            self._condition.notify_all()

    def by_kind(self, kind: str) -> list[ProcessEvent]:
        with self._condition:
            return [event for event in self.events if event.kind == kind]

    def wait(self, kind: str, number: int = 1) -> list[ProcessEvent]:
        with self._condition:
            assert self._condition.wait_for(lambda: len(self._by_kind_locked(kind)) >= number, WAIT_SECONDS), (
                self._by_kind_locked(kind)
            )
        return self.by_kind(kind)

    def _by_kind_locked(self, kind: str) -> list[ProcessEvent]:
        return [event for event in self.events if event.kind == kind]


@pytest.fixture(scope="module")
def demo(root: Path) -> Path:
    return root / "models" / "demo"


@pytest.fixture(scope="module")
def bundle(demo: Path) -> MarketBundle:
    return load_market_bundle(demo)


@pytest.fixture
def clock() -> MonotonicOnlyClock:
    return MonotonicOnlyClock()


@pytest.fixture
def record() -> EventLog:
    return EventLog()


class OpenPool(Protocol):
    def __call__(
        self,
        faults: str = "",
        *,
        faulty: int = 1,
        size: int = 1,
        standbys: int = 1,
        attempts: int = 3,
        memory: int = 4 << 30,
        event_log: EventLog | None = None,
        **limits: float,
    ) -> ProcessPool: ...


@pytest.fixture
def open_pool(demo: Path, clock: MonotonicOnlyClock, record: EventLog) -> Iterator[OpenPool]:
    """Pools of the demo bundle; after the test they are closed, and none of their processes is left."""
    pools: list[ProcessPool] = []

    def open_one(
        faults: str = "",
        *,
        faulty: int = 1,
        size: int = 1,
        standbys: int = 1,
        attempts: int = 3,
        memory: int = 4 << 30,
        event_log: EventLog | None = None,
        **limits: float,
    ) -> ProcessPool:
        every = PhaseLimits(**{"stopping": 10.0, "silence": 30.0, **limits})
        setup = ChildSetup(demo, "demo", faults, faulty)
        pools.append(
            ProcessPool(
                setup,
                SupervisionPolicy(every, attempts, standbys, memory, quarantine_after=9),
                clock,
                size=size,
                observer=event_log or record,
            )
        )
        return pools[-1]

    yield open_one
    for pool in pools:
        pool.close()
    for pid in {event.pid for event in record.by_kind("launched")}:
        assert not psutil.pid_exists(pid)
    assert len(record.by_kind("gone")) == len(record.by_kind("launched"))


@pytest.fixture
def ask(bundle: MarketBundle, clock: MonotonicOnlyClock) -> Callable[..., Job]:
    """A job: the forecast of the bundle's canary."""
    manifest = bundle.manifest

    def event(name: str = "forecast", seconds: float = WAIT_SECONDS) -> Job:
        return predict_job(
            bundle.canary.inputs,
            name=name,
            deadline=clock.monotonic() + seconds,
            attempts=3,
            rows=manifest.horizon,
            levels=manifest.levels,
        )

    return event


def is_running(process: psutil.Process) -> bool:
    """Whether it is still there and has not ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_all_ready(pool: ProcessPool, record: EventLog, number: int = 2) -> None:
    pool.wait_ready(WAIT_SECONDS)
    record.wait("ready", number)


def test_child_loads_checks_and_predicts_canary(
    open_pool: OpenPool, ask: Callable[..., Job], bundle: MarketBundle, record: EventLog, clock: MonotonicOnlyClock
) -> None:
    pool = open_pool(standbys=0)
    assert pool.wait_ready(WAIT_SECONDS) == bundle.sha256
    assert pool.run(check_job(clock.monotonic() + WAIT_SECONDS, 3)) == bundle.sha256
    forecast: Forecast = pool.run(ask())
    np.testing.assert_allclose(forecast.quantiles, bundle.canary.quantiles, atol=1e-4)
    assert forecast.bundle_sha256 == bundle.sha256
    (child,) = pool.children()
    assert child["phase"] == "idle"
    steps = [event.state.done for event in record.by_kind("progress") if event.state.phase is Phase.PREDICTING]
    assert len(set(steps)) >= 7, "progress comes from the work itself"


def test_stalled_child_with_heartbeat_hangs_and_standby_finishes_job(
    open_pool: OpenPool,
    ask: Callable[..., Job],
    bundle: MarketBundle,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At 0, 1, 25, 50, 75 and 99 %, each in a pool of its own, all at once."""
    stalls = [
        (percent, open_pool(f"hang@{percent}", event_log=record, predicting=5), record)
        for percent, record in ((percent, EventLog()) for percent in (0, 1, 25, 50, 75, 99))
    ]
    for _, pool, record in stalls:
        wait_all_ready(pool, record)
    with caplog.at_level(logging.WARNING):
        futures = [pool.submit(ask("forecast 7")) for _, pool, _ in stalls]
        for (percent, pool, record), future in zip(stalls, futures, strict=True):
            check_stall(percent, pool, record, future.result(WAIT_SECONDS), bundle=bundle, lines=caplog)


def check_stall(
    percent: int,
    pool: ProcessPool,
    record: EventLog,
    forecast: Forecast,
    *,
    bundle: MarketBundle,
    lines: pytest.LogCaptureFixture,
) -> None:
    np.testing.assert_allclose(forecast.quantiles, bundle.canary.quantiles, atol=1e-4)
    (hung,) = record.wait("hung")
    (finished,) = record.wait("finished")
    assert hung.state.percent == pytest.approx(percent)
    assert "no progress" in hung.text
    assert finished.pid != hung.pid
    assert pool.counts.hangs == {("predicting", bundle.sha256[:12]): 1}
    assert (pool.counts.failovers, pool.counts.replacements) == (1, 1)
    (stacks,) = record.wait("stacks")
    assert "faults.py" in stacks.text, "it shows where the child stood"
    line = next(event for event in lines.messages if f"{hung.pid} hung:" in event)
    for part in (f"process {hung.pid} ", "Phase predicting", "job forecast 7", f"at {percent} %", "last sign of life",
                 "last progress", f"handed to process {finished.pid}", "Another one is started"):  # fmt: skip
        assert part in line


def test_silent_child_hangs_before_phase_limit(open_pool: OpenPool, ask: Callable[..., Job], record: EventLog) -> None:
    pool = open_pool("silent@50", silence=8)
    wait_all_ready(pool, record)
    assert pool.run(ask()).value
    (hung,) = record.wait("hung")
    assert "silent" in hung.text
    (stacks,) = record.wait("stacks")
    assert "_hold_the_interpreter" in stacks.text, "dumped though nothing of its Python ran any more"


def test_silent_child_hangs_while_loading(open_pool: OpenPool, ask: Callable[..., Job], record: EventLog) -> None:
    pool = open_pool("silent@loading", standbys=0, silence=8)
    assert pool.run(ask()).value
    hung = record.wait("hung")[0]
    assert hung.state.phase is Phase.LOADING


@pytest.mark.parametrize("fault", ["oscillate@50", "stale@50"])
def test_false_progress_is_detected_as_hang(
    open_pool: OpenPool, ask: Callable[..., Job], record: EventLog, fault: str
) -> None:
    pool = open_pool(fault, predicting=5)
    wait_all_ready(pool, record)
    assert pool.run(ask()).value
    (hung,) = record.wait("hung")
    assert hung.state.percent == pytest.approx(50, abs=1)
    assert (pool.counts.stale_messages > 0) == fault.startswith("stale")


def test_idle_child_is_not_replaced(open_pool: OpenPool, ask: Callable[..., Job], record: EventLog) -> None:
    pool = open_pool(standbys=0, predicting=6, loading=60)  # half of it is slow, and told
    pool.wait_ready(WAIT_SECONDS)
    (before,) = pool.children()
    Flag().wait(7.5)  # more than what a forecast may stand still
    assert pool.run(ask()).value
    assert record.by_kind("hung") == record.by_kind("slow") == []
    assert [event.pid for event in record.wait("finished")] == [before["pid"]]


@pytest.mark.parametrize(("fault", "limits"), [
    ("slow:1.6@predicting", {"predicting": 3.0}),
    ("slow:4@post_processing", {"post_processing": 7.5, "predicting": 3.0}),
])  # fmt: skip
def test_slow_steps_below_limit_only_warn(
    open_pool: OpenPool, ask: Callable[..., Job], record: EventLog, fault: str, limits: dict[str, Any]
) -> None:
    pool = open_pool(fault, standbys=0, **limits)
    assert pool.run(ask()).value
    assert record.by_kind("hung") == []
    assert record.by_kind("slow")
    assert pool.counts.recovered_stalls == 1
    assert len({event.pid for event in record.by_kind("dispatched")}) == 1


def test_clock_jump_resets_timers_and_later_hang_is_detected(
    open_pool: OpenPool,
    ask: Callable[..., Job],
    record: EventLog,
    clock: MonotonicOnlyClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = open_pool("slow:0.3@predicting,hang@75", predicting=5, silence=10)
    wait_all_ready(pool, record)
    job = pool.submit(ask(seconds=3 * 3600))
    record.wait("dispatched")
    clock.offset = 7200.0
    assert job.result(WAIT_SECONDS).value
    (hung,) = record.wait("hung")
    assert hung.state.percent == pytest.approx(75), "not before, when the clock had jumped"
    assert "their clocks start anew" in caplog.text


def test_hang_fails_over_only_its_own_job(open_pool: OpenPool, ask: Callable[..., Job], record: EventLog) -> None:
    pool = open_pool("hang@50", size=2, standbys=0, predicting=5)
    wait_all_ready(pool, record, 2)
    futures = [pool.submit(ask(f"forecast {number}")) for number in range(30)]
    assert all(future.result(WAIT_SECONDS).value for future in futures)
    (hung,) = record.wait("hung")
    finished = record.wait("finished", 30)
    others = {event.pid for event in finished if event.job != hung.job}
    dispatched = [event.job for event in record.by_kind("dispatched")]
    assert sorted(dispatched) == sorted([event.job for event in finished] + [hung.job])
    healthy = others - {hung.pid}
    assert healthy & {child["pid"] for child in pool.children()}, "the other child lives on to the end"


@pytest.mark.parametrize(
    ("fault", "fate"),
    [("torn", "SIGKILL"), ("crash", "SIGSEGV"), ("exit:7", "exit status 7"), ("garbage", "no message")],
)
def test_dying_child_does_not_affect_other_children(
    open_pool: OpenPool, ask: Callable[..., Job], record: EventLog, fault: str, fate: str
) -> None:
    pool = open_pool(fault, size=2, standbys=0)
    wait_all_ready(pool, record, 2)
    futures = [pool.submit(ask(f"forecast {number}")) for number in range(6)]
    assert all(future.result(WAIT_SECONDS).value for future in futures)
    (died,) = record.wait("died")
    assert fate in died.text
    assert pool.counts.crashes == 1
    assert {event.pid for event in record.by_kind("finished")} - {died.pid}


@pytest.mark.parametrize(("faults", "fate"), [("hang@stopping", "SIGTERM"), ("hang@stopping,ignore-term", "SIGKILL")])
def test_child_hanging_while_stopping_is_killed(open_pool: OpenPool, record: EventLog, faults: str, fate: str) -> None:
    pool = open_pool(faults, standbys=0, stopping=3)
    pool.wait_ready(WAIT_SECONDS)
    pool.close()
    (gone,) = record.wait("gone")
    assert gone.text == f"killed by {fate}"


def test_hung_child_ignoring_sigterm_is_killed(open_pool: OpenPool, ask: Callable[..., Job], record: EventLog) -> None:
    pool = open_pool("hang@50,ignore-term", standbys=0, predicting=5)
    assert pool.run(ask()).value
    (hung,) = record.wait("hung")
    gone = record.wait("gone")
    assert [event.text for event in gone if event.pid == hung.pid] == ["killed by SIGKILL"]


def test_forked_grandchildren_are_killed_with_child(open_pool: OpenPool, record: EventLog) -> None:
    pool = open_pool("fork", standbys=0)
    pool.wait_ready(WAIT_SECONDS)
    (child,) = record.by_kind("launched")
    offspring = psutil.Process(child.pid).children(recursive=True)
    assert offspring
    pool.close()
    psutil.wait_procs(offspring, timeout=WAIT_SECONDS)
    assert not any(map(is_running, offspring))


def test_job_past_deadline_fails_and_next_job_succeeds(
    open_pool: OpenPool, ask: Callable[..., Job], record: EventLog
) -> None:
    pool = open_pool("slow:2@predicting", standbys=0)
    pool.wait_ready(WAIT_SECONDS)
    with pytest.raises(ChildFailed, match="deadline has passed"):
        pool.run(ask(seconds=3.0))
    assert pool.run(ask()).value
    assert pool.counts.deadlines_exceeded == 1
    assert record.by_kind("hung") == []


PARENT = """
import os, signal, sys, threading, time
from pathlib import Path
import psutil
from forecastd.clock import SystemClock
from forecastd.supervise.detector import Limits
from forecastd.supervise.jobs import predict_job
from forecastd.supervise.policy import Policy, Setup
from forecastd.supervise.pool import Pool
from models.bundle import load_bundle

path, what = Path(sys.argv[1]), sys.argv[2]
bundle, clock = load_bundle(path), SystemClock()
setup = Setup(path, "demo", "fork" if what == "killed" else "slow:0.3@predicting", 9)
with Pool(setup, Policy(Limits(predicting=4, silence=30), standbys=1), clock) as pool:
    pool.ready(120)
    if what == "killed":
        while len(found := psutil.Process().children(recursive=True)) < 4:
            threading.Event().wait(0.05)
        print(*(one.pid for one in found), flush=True)
        threading.Event().wait()
    manifest = bundle.manifest
    job = predict_job(bundle.canary.inputs, name="forecast", deadline=clock.monotonic() + 600, attempts=3,
                      rows=manifest.horizon, levels=manifest.levels)
    future = pool.submit(job)
    print("started", flush=True)
    future.result()
    print(len(pool.counts.hangs), flush=True)
    future = pool.submit(job)
    while not (busy := [one["pid"] for one in pool.children() if one["job"]]):
        threading.Event().wait(0.01)
    os.kill(busy[0], signal.SIGSTOP)
    future.result()
    print(len(pool.counts.hangs), flush=True)
"""


def start_parent(demo: Path, what: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(demo), what], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def test_killed_parent_leaves_no_children_and_can_restart(
    demo: Path, open_pool: OpenPool, ask: Callable[..., Job]
) -> None:
    with start_parent(demo, "killed") as parent:
        assert parent.stdout is not None
        family = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(family) == 4
    psutil.wait_procs(family, timeout=WAIT_SECONDS)
    assert not any(map(is_running, family))
    assert open_pool().run(ask()).value


def test_suspended_parent_resets_timers_and_detects_later_hang(demo: Path) -> None:
    with start_parent(demo, "stopped") as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "started\n"
        os.kill(parent.pid, signal.SIGSTOP)
        Flag().wait(8.5)  # more than twice what a forecast may stand still
        os.kill(parent.pid, signal.SIGCONT)
        lines = [parent.stdout.readline(), parent.stdout.readline()]
        assert lines == ["0\n", "1\n"]
        assert parent.wait(WAIT_SECONDS) == 0


def test_child_environment_contains_no_secret(
    open_pool: OpenPool, record: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNEMONIC", "legal winner thank year")
    monkeypatch.setenv("TIINGO_API_KEY", "k3y")
    open_pool(standbys=0).wait_ready(WAIT_SECONDS)
    (child,) = record.by_kind("launched")
    process_files: Any = (
        Path(f"/proc/{child.pid}/environ").read_bytes() + Path(f"/proc/{child.pid}/cmdline").read_bytes()
    )
    assert b"PYTHONPATH" in process_files
    for secret in (b"legal", b"k3y"):
        assert secret not in process_files
