"""Hang detection and failover with real children: what counts as hung, what is only slow, and that no process remains."""

from __future__ import annotations

import functools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import pytest

from forecastd.runtime.jobs import ChildFailed
from forecastd.supervise.detector import Phase, PhaseLimits
from forecastd.supervise.jobs import Job, check_job
from forecastd.supervise.policy import SupervisionPolicy
from forecastd.supervise.pool import ProcessPool
from models.base import Forecast
from models.market.bundle import MarketBundle
from tests.support.supervision import WAIT_SECONDS, EventLog, canary_job, child_setup, is_running


class MonotonicOnlyClock:
    """A clock without wall time, so that reading it fails the test; its monotonic time can jump."""

    offset = 0.0

    def now(self) -> float:
        raise AssertionError("supervision read the wall clock")

    def monotonic(self) -> float:
        return time.monotonic() + self.offset


@pytest.fixture
def clock() -> MonotonicOnlyClock:
    return MonotonicOnlyClock()


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
        own_log: EventLog | None = None,
        **limits: float,
    ) -> ProcessPool: ...


@pytest.fixture
def open_pool(demo: Path, clock: MonotonicOnlyClock, event_log: EventLog) -> Iterator[OpenPool]:
    """Opens pools of the demo bundle; after the test they are closed, and none of their processes may be left."""
    pools: list[ProcessPool] = []

    def open_one(
        faults: str = "",
        *,
        faulty: int = 1,
        size: int = 1,
        standbys: int = 1,
        attempts: int = 3,
        memory: int = 4 << 30,
        own_log: EventLog | None = None,
        **limits: float,
    ) -> ProcessPool:
        phase_limits = PhaseLimits(**{"stopping": 10.0, "heartbeat": 30.0, **limits})
        setup = child_setup(demo, faults, faulty)
        pools.append(
            ProcessPool(
                setup,
                SupervisionPolicy(phase_limits, attempts, standbys, memory, quarantine_after=9),
                clock,
                size=size,
                observer=own_log or event_log,
            )
        )
        return pools[-1]

    yield open_one
    for pool in pools:
        pool.close()
    for pid in {event.pid for event in event_log.by_kind("launched")}:
        assert not psutil.pid_exists(pid)
    assert len(event_log.by_kind("exited")) == len(event_log.by_kind("launched"))


@pytest.fixture
def make_job(bundle: MarketBundle, clock: MonotonicOnlyClock) -> Callable[..., Job]:
    """Makes jobs: the forecast of the bundle's canary."""
    return functools.partial(canary_job, bundle, monotonic=clock.monotonic)


def wait_all_ready(pool: ProcessPool, event_log: EventLog, number: int = 2) -> None:
    pool.wait_ready(WAIT_SECONDS)
    event_log.wait("ready", number)


def test_child_loads_checks_and_predicts_canary(
    open_pool: OpenPool,
    make_job: Callable[..., Job],
    bundle: MarketBundle,
    event_log: EventLog,
    clock: MonotonicOnlyClock,
) -> None:
    pool = open_pool(standbys=0)
    assert pool.wait_ready(WAIT_SECONDS) == bundle.sha256
    assert pool.run(check_job(clock.monotonic() + WAIT_SECONDS, 3)) == bundle.sha256
    forecast: Forecast = pool.run(make_job())
    np.testing.assert_allclose(forecast.quantiles, bundle.canary["quantiles"], atol=1e-4)
    assert forecast.bundle_sha256 == bundle.sha256
    (child,) = pool.children()
    assert child["phase"] == "idle"
    steps = [event.state.done for event in event_log.by_kind("progress") if event.state.phase is Phase.PREDICTING]
    assert len(set(steps)) >= 7, "progress comes from the work itself"


def test_stalled_child_with_heartbeat_hangs_and_standby_finishes_job(
    open_pool: OpenPool,
    make_job: Callable[..., Job],
    bundle: MarketBundle,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At 0, 1, 25, 50, 75 and 99 %, each in a pool of its own, all at once."""
    stalls = [
        (percent, open_pool(f"hang@{percent}", own_log=event_log, predicting=5), event_log)
        for percent, event_log in ((percent, EventLog()) for percent in (0, 1, 25, 50, 75, 99))
    ]
    for _, pool, event_log in stalls:
        wait_all_ready(pool, event_log)
    with caplog.at_level(logging.WARNING):
        futures = [pool.submit(make_job("forecast 7")) for _, pool, _ in stalls]
        for (percent, pool, event_log), future in zip(stalls, futures, strict=True):
            check_stall(percent, pool, event_log, future.result(WAIT_SECONDS), bundle=bundle, log=caplog)


def check_stall(
    percent: int,
    pool: ProcessPool,
    event_log: EventLog,
    forecast: Forecast,
    *,
    bundle: MarketBundle,
    log: pytest.LogCaptureFixture,
) -> None:
    np.testing.assert_allclose(forecast.quantiles, bundle.canary["quantiles"], atol=1e-4)
    (hung,) = event_log.wait("hung")
    (finished,) = event_log.wait("finished")
    assert hung.state.percent == pytest.approx(percent)
    assert "no progress" in hung.text
    assert finished.pid != hung.pid
    assert pool.counts.hangs == {("predicting", bundle.sha256[:12]): 1}
    assert (pool.counts.failovers, pool.counts.replacements) == (1, 1)
    (stacks,) = event_log.wait("stacks")
    assert "faults.py" in stacks.text, "the stacks show where the child hung"
    line = next(line for line in log.messages if f"{hung.pid} hung:" in line)
    for part in (f"process {hung.pid} ", "Bundle demo (9d25b61c3ca0)", "launch ", "phase predicting", "job forecast 7",
                 "attempt 1 of 3", f"at {percent} %", "last heartbeat", "last progress",
                 f"handed over to standby process {finished.pid}", "A replacement is starting"):  # fmt: skip
        assert part in line


def test_silent_child_hangs_before_phase_limit(
    open_pool: OpenPool, make_job: Callable[..., Job], event_log: EventLog
) -> None:
    pool = open_pool("silent@50", heartbeat=8)
    wait_all_ready(pool, event_log)
    assert pool.run(make_job()).value
    (hung,) = event_log.wait("hung")
    assert "no heartbeat" in hung.text
    (stacks,) = event_log.wait("stacks")
    assert "_hold_gil" in stacks.text, "dumped although no Python code could run"


def test_silent_child_hangs_while_loading(
    open_pool: OpenPool, make_job: Callable[..., Job], event_log: EventLog
) -> None:
    pool = open_pool("silent@loading", standbys=0, heartbeat=8)
    assert pool.run(make_job()).value
    hung = event_log.wait("hung")[0]
    assert hung.state.phase is Phase.LOADING


@pytest.mark.parametrize("fault", ["oscillate@50", "stale@50"])
def test_false_progress_is_detected_as_hang(
    open_pool: OpenPool, make_job: Callable[..., Job], event_log: EventLog, fault: str
) -> None:
    pool = open_pool(fault, predicting=5)
    wait_all_ready(pool, event_log)
    assert pool.run(make_job()).value
    (hung,) = event_log.wait("hung")
    assert hung.state.percent == pytest.approx(50, abs=1)
    assert (pool.counts.stale_messages > 0) == fault.startswith("stale")


def test_idle_child_is_not_replaced(
    open_pool: OpenPool, make_job: Callable[..., Job], event_log: EventLog, clock: MonotonicOnlyClock
) -> None:
    pool = open_pool(standbys=0, predicting=6, loading=60)
    pool.wait_ready(WAIT_SECONDS)
    (before,) = pool.children()
    for _ in range(
        3
    ):  # together longer than a forecast may go without progress; each too short for a suspended machine
        clock.offset += 2.5
        checked = threading.Event()
        pool._run_on_thread(checked.set)
        assert checked.wait(WAIT_SECONDS)
    assert pool.run(make_job()).value
    assert event_log.by_kind("hung") == event_log.by_kind("slow") == []
    assert [event.pid for event in event_log.wait("finished")] == [before["pid"]]


@pytest.mark.parametrize(("fault", "limits"), [
    ("slow:1.6@predicting", {"predicting": 3.0}),
    ("slow:4@post_processing", {"post_processing": 7.5, "predicting": 3.0}),
])  # fmt: skip
def test_slow_steps_below_limit_only_warn(
    open_pool: OpenPool, make_job: Callable[..., Job], event_log: EventLog, fault: str, limits: dict[str, Any]
) -> None:
    pool = open_pool(fault, standbys=0, **limits)
    assert pool.run(make_job()).value
    assert event_log.by_kind("hung") == []
    assert event_log.by_kind("slow")
    assert pool.counts.recovered_stalls == 1
    assert len({event.pid for event in event_log.by_kind("dispatched")}) == 1


def test_clock_jump_resets_timers_and_later_hang_is_detected(
    open_pool: OpenPool,
    make_job: Callable[..., Job],
    event_log: EventLog,
    clock: MonotonicOnlyClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = open_pool("slow:0.3@predicting,hang@75", predicting=5, heartbeat=10)
    wait_all_ready(pool, event_log)
    job = pool.submit(make_job(seconds=3 * 3600))
    event_log.wait("dispatched")
    clock.offset = 7200.0
    assert job.result(WAIT_SECONDS).value
    (hung,) = event_log.wait("hung")
    assert hung.state.percent == pytest.approx(75), "not when the clock jumped"
    assert "process timers were reset" in caplog.text


def test_hang_fails_over_only_its_own_job(
    open_pool: OpenPool, make_job: Callable[..., Job], event_log: EventLog
) -> None:
    pool = open_pool("hang@50", size=2, standbys=0, predicting=5)
    wait_all_ready(pool, event_log, 2)
    futures = [pool.submit(make_job(f"forecast {number}")) for number in range(30)]
    assert all(future.result(WAIT_SECONDS).value for future in futures)
    (hung,) = event_log.wait("hung")
    finished = event_log.wait("finished", 30)
    others = {event.pid for event in finished if event.job != hung.job}
    dispatched = [event.job for event in event_log.by_kind("dispatched")]
    assert sorted(dispatched) == sorted([event.job for event in finished] + [hung.job])
    healthy = others - {hung.pid}
    assert healthy & {child["pid"] for child in pool.children()}, "the healthy child is still there"


@pytest.mark.parametrize(
    ("fault", "description"),
    [("torn", "SIGKILL"), ("crash", "SIGSEGV"), ("exit:7", "exit status 7"), ("garbage", "invalid message")],
)
def test_dying_child_does_not_affect_other_children(
    open_pool: OpenPool, make_job: Callable[..., Job], event_log: EventLog, fault: str, description: str
) -> None:
    pool = open_pool(fault, size=2, standbys=0)
    wait_all_ready(pool, event_log, 2)
    futures = [pool.submit(make_job(f"forecast {number}")) for number in range(6)]
    assert all(future.result(WAIT_SECONDS).value for future in futures)
    (died,) = event_log.wait("died")
    assert description in died.text
    assert pool.counts.crashes == 1
    assert {event.pid for event in event_log.by_kind("finished")} - {died.pid}


@pytest.mark.parametrize(
    ("faults", "signal_name"), [("hang@stopping", "SIGTERM"), ("hang@stopping,ignore-term", "SIGKILL")]
)
def test_child_hanging_while_stopping_is_killed(
    open_pool: OpenPool, event_log: EventLog, faults: str, signal_name: str
) -> None:
    pool = open_pool(faults, standbys=0, stopping=3)
    pool.wait_ready(WAIT_SECONDS)
    pool.close()
    (exited,) = event_log.wait("exited")
    assert exited.text == f"killed by {signal_name}"


def test_hung_child_ignoring_sigterm_is_killed(
    open_pool: OpenPool, make_job: Callable[..., Job], event_log: EventLog
) -> None:
    pool = open_pool("hang@50,ignore-term", standbys=0, predicting=5)
    assert pool.run(make_job()).value
    (hung,) = event_log.wait("hung")
    exited = event_log.wait("exited")
    assert [event.text for event in exited if event.pid == hung.pid] == ["killed by SIGKILL"]


def test_forked_grandchildren_are_killed_with_child(open_pool: OpenPool, event_log: EventLog) -> None:
    pool = open_pool("fork", standbys=0)
    pool.wait_ready(WAIT_SECONDS)
    (child,) = event_log.by_kind("launched")
    grandchildren = psutil.Process(child.pid).children(recursive=True)
    assert grandchildren
    pool.close()
    psutil.wait_procs(grandchildren, timeout=WAIT_SECONDS)
    assert not any(map(is_running, grandchildren))


def test_job_past_deadline_fails_and_next_job_succeeds(
    open_pool: OpenPool, make_job: Callable[..., Job], event_log: EventLog
) -> None:
    pool = open_pool("slow:2@predicting", standbys=0)
    pool.wait_ready(WAIT_SECONDS)
    with pytest.raises(ChildFailed, match="deadline has passed"):
        pool.run(make_job(seconds=3.0))
    assert pool.run(make_job()).value
    assert pool.counts.deadlines_exceeded == 1
    assert event_log.by_kind("hung") == []


PARENT = """
import os, signal, sys, threading
from pathlib import Path
import psutil
from forecastd.clock import SystemClock
from forecastd.inference.market_runner import market_setup, predict_job
from forecastd.supervise.detector import PhaseLimits
from forecastd.supervise.policy import SupervisionPolicy
from forecastd.supervise.pool import ProcessPool
from models.market.bundle import load_market_bundle, market_canary_input

path, action = Path(sys.argv[1]), sys.argv[2]
bundle, clock = load_market_bundle(path), SystemClock()
faults = "fork" if action == "killed" else "slow:0.3@predicting"
setup = market_setup(path, "demo", faults=faults, faulty_launches=9)
with ProcessPool(setup, SupervisionPolicy(PhaseLimits(predicting=4, heartbeat=30), standbys=1), clock) as pool:
    pool.wait_ready(120)
    if action == "killed":
        while len(children := psutil.Process().children(recursive=True)) < 4:
            threading.Event().wait(0.05)
        print(*(child.pid for child in children), flush=True)
        threading.Event().wait()
    manifest = bundle.manifest
    job = predict_job(market_canary_input(bundle), name="forecast", deadline=clock.monotonic() + 600, attempts=3,
                      rows=manifest.horizon, levels=manifest.levels)
    future = pool.submit(job)
    print("started", flush=True)
    future.result()
    print(len(pool.counts.hangs), flush=True)
    future = pool.submit(job)
    while not (busy := [child["pid"] for child in pool.children() if child["job"]]):
        threading.Event().wait(0.01)
    os.kill(busy[0], signal.SIGSTOP)
    future.result()
    print(len(pool.counts.hangs), flush=True)
"""


def start_parent(demo: Path, action: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(demo), action], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def test_killed_parent_leaves_no_children_and_can_restart(
    demo: Path, open_pool: OpenPool, make_job: Callable[..., Job]
) -> None:
    with start_parent(demo, "killed") as parent:
        assert parent.stdout is not None
        family = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(family) == 4
    psutil.wait_procs(family, timeout=WAIT_SECONDS)
    assert not any(map(is_running, family))
    assert open_pool().run(make_job()).value


def test_suspended_parent_resets_timers_and_detects_later_hang(demo: Path) -> None:
    with start_parent(demo, "stopped") as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "started\n"
        os.kill(parent.pid, signal.SIGSTOP)
        threading.Event().wait(6.0)  # longer than a forecast may go without progress
        os.kill(parent.pid, signal.SIGCONT)
        lines = [parent.stdout.readline(), parent.stdout.readline()]
        assert lines == ["0\n", "1\n"]
        assert parent.wait(WAIT_SECONDS) == 0


def test_child_environment_contains_no_secret(
    open_pool: OpenPool, event_log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNEMONIC", "legal winner thank year")
    monkeypatch.setenv("TIINGO_API_KEY", "k3y")
    open_pool(standbys=0).wait_ready(WAIT_SECONDS)
    (child,) = event_log.by_kind("launched")
    process_files: Any = (
        Path(f"/proc/{child.pid}/environ").read_bytes() + Path(f"/proc/{child.pid}/cmdline").read_bytes()
    )
    assert b"PYTHONPATH" in process_files
    for secret in (b"legal", b"k3y"):
        assert secret not in process_files
