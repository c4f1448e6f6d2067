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

from forecastd.supervise.detector import Limits, Phase
from forecastd.supervise.jobs import Job, check_job, predict_job
from forecastd.supervise.policy import Policy, Setup
from forecastd.supervise.pool import Pool
from forecastd.supervise.process import ChildFailed
from forecastd.supervise.report import Event
from models.base import Forecast
from models.bundle import Bundle, load_bundle

LONG = 120.0  # longer than anything here takes on the slowest machine


class OnlyMonotonic:
    """A clock without wall time, so that reading it fails the test; its monotonic time can jump."""

    ahead = 0.0

    def now(self) -> float:
        raise AssertionError("supervision read the wall clock")

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


class Record:
    """What a pool told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._news = Condition()

    def __call__(self, event: Event) -> None:
        with self._news:
            self.events.append(event)
            self._news.notify_all()

    def of(self, kind: str) -> list[Event]:
        with self._news:
            return [event for event in self.events if event.kind == kind]

    def wait(self, kind: str, number: int = 1) -> list[Event]:
        with self._news:
            assert self._news.wait_for(lambda: len(self.of_held(kind)) >= number, LONG), self.of_held(kind)
        return self.of(kind)

    def of_held(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]


@pytest.fixture(scope="module")
def demo(root: Path) -> Path:
    return root / "models" / "demo"


@pytest.fixture(scope="module")
def bundle(demo: Path) -> Bundle:
    return load_bundle(demo)


@pytest.fixture
def clock() -> OnlyMonotonic:
    return OnlyMonotonic()


@pytest.fixture
def record() -> Record:
    return Record()


class Open(Protocol):
    def __call__(
        self,
        faults: str = "",
        *,
        faulty: int = 1,
        size: int = 1,
        standbys: int = 1,
        attempts: int = 3,
        memory: int = 4 << 30,
        mine: Record | None = None,
        **limits: float,
    ) -> Pool: ...


@pytest.fixture
def open_pool(demo: Path, clock: OnlyMonotonic, record: Record) -> Iterator[Open]:
    """Pools of the demo bundle; after the test they are closed, and none of their processes is left."""
    pools: list[Pool] = []

    def open_one(
        faults: str = "",
        *,
        faulty: int = 1,
        size: int = 1,
        standbys: int = 1,
        attempts: int = 3,
        memory: int = 4 << 30,
        mine: Record | None = None,
        **limits: float,
    ) -> Pool:
        every = Limits(**{"stopping": 10.0, "silence": 30.0, **limits})
        setup = Setup(demo, "demo", faults, faulty)
        pools.append(
            Pool(setup, Policy(every, attempts, standbys, memory, strikes=9), clock, size=size, observe=mine or record)
        )
        return pools[-1]

    yield open_one
    for pool in pools:
        pool.close()
    for pid in {event.pid for event in record.of("launched")}:
        assert not psutil.pid_exists(pid)
    assert len(record.of("gone")) == len(record.of("launched"))


@pytest.fixture
def ask(bundle: Bundle, clock: OnlyMonotonic) -> Callable[..., Job]:
    """A job: the forecast of the bundle's canary."""
    manifest = bundle.manifest

    def one(name: str = "forecast", seconds: float = LONG) -> Job:
        return predict_job(
            bundle.canary.inputs,
            name=name,
            deadline=clock.monotonic() + seconds,
            attempts=3,
            rows=manifest.horizon,
            levels=manifest.levels,
        )

    return one


def runs(process: psutil.Process) -> bool:
    """Whether it is still there and has not ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def all_ready(pool: Pool, record: Record, number: int = 2) -> None:
    pool.ready(LONG)
    record.wait("ready", number)


def test_a_child_loads_proves_and_predicts_what_the_canary_says(
    open_pool: Open, ask: Callable[..., Job], bundle: Bundle, record: Record, clock: OnlyMonotonic
) -> None:
    pool = open_pool(standbys=0)
    assert pool.ready(LONG) == bundle.sha256
    assert pool.run(check_job(clock.monotonic() + LONG, 3)) == bundle.sha256
    forecast: Forecast = pool.run(ask())
    np.testing.assert_allclose(forecast.quantiles, bundle.canary.quantiles, atol=1e-4)
    assert forecast.bundle_sha256 == bundle.sha256
    (child,) = pool.children()
    assert child["phase"] == "idle"
    steps = [event.watched.done for event in record.of("progress") if event.watched.phase is Phase.PREDICTING]
    assert len(set(steps)) >= 7, "progress comes from the work itself"


def test_a_stall_that_still_beats_is_hung_and_its_job_is_finished_by_the_standby(
    open_pool: Open,
    ask: Callable[..., Job],
    bundle: Bundle,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At 0, 1, 25, 50, 75 and 99 %, each in a pool of its own, all at once."""
    stalls = [
        (percent, open_pool(f"hang@{percent}", mine=record, predicting=5), record)
        for percent, record in ((percent, Record()) for percent in (0, 1, 25, 50, 75, 99))
    ]
    for _, pool, record in stalls:
        all_ready(pool, record)
    with caplog.at_level(logging.WARNING):
        futures = [pool.submit(ask("forecast 7")) for _, pool, _ in stalls]
        for (percent, pool, record), future in zip(stalls, futures, strict=True):
            check_stall(percent, pool, record, future.result(LONG), bundle=bundle, lines=caplog)


def check_stall(
    percent: int, pool: Pool, record: Record, forecast: Forecast, *, bundle: Bundle, lines: pytest.LogCaptureFixture
) -> None:
    np.testing.assert_allclose(forecast.quantiles, bundle.canary.quantiles, atol=1e-4)
    (hung,) = record.wait("hung")
    (finished,) = record.wait("finished")
    assert hung.watched.percent == pytest.approx(percent)
    assert "no progress" in hung.text
    assert finished.pid != hung.pid
    assert pool.counts.hangs == {("predicting", bundle.sha256[:12]): 1}
    assert (pool.counts.hand_overs, pool.counts.replacements) == (1, 1)
    (stacks,) = record.wait("stacks")
    assert "faults.py" in stacks.text, "it shows where the child stood"
    line = next(one for one in lines.messages if f"{hung.pid} hung:" in one)
    for part in (f"process {hung.pid} ", "Phase predicting", "job forecast 7", f"at {percent} %", "last sign of life",
                 "last progress", f"handed to process {finished.pid}", "Another one is started"):  # fmt: skip
        assert part in line


def test_silence_in_the_middle_is_hung_though_the_phase_has_time_left(
    open_pool: Open, ask: Callable[..., Job], record: Record
) -> None:
    pool = open_pool("silent@50", silence=8)
    all_ready(pool, record)
    assert pool.run(ask()).value
    (hung,) = record.wait("hung")
    assert "silent" in hung.text
    (stacks,) = record.wait("stacks")
    assert "_hold_the_interpreter" in stacks.text, "dumped though nothing of its Python ran any more"


def test_silence_before_the_first_step_is_hung(open_pool: Open, ask: Callable[..., Job], record: Record) -> None:
    pool = open_pool("silent@loading", standbys=0, silence=8)
    assert pool.run(ask()).value
    hung = record.wait("hung")[0]
    assert hung.watched.phase is Phase.LOADING


@pytest.mark.parametrize("fault", ["oscillate@50", "stale@50"])
def test_what_looks_like_progress_and_is_none_is_hung(
    open_pool: Open, ask: Callable[..., Job], record: Record, fault: str
) -> None:
    pool = open_pool(fault, predicting=5)
    all_ready(pool, record)
    assert pool.run(ask()).value
    (hung,) = record.wait("hung")
    assert hung.watched.percent == pytest.approx(50, abs=1)
    assert (pool.counts.stale_messages > 0) == fault.startswith("stale")


def test_idleness_costs_nobody_anything_and_the_job_after_it_is_fine(
    open_pool: Open, ask: Callable[..., Job], record: Record
) -> None:
    pool = open_pool(standbys=0, predicting=6, loading=60)  # half of it is slow, and told
    pool.ready(LONG)
    (before,) = pool.children()
    Flag().wait(7.5)  # more than what a forecast may stand still
    assert pool.run(ask()).value
    assert record.of("hung") == record.of("slow") == []
    assert [event.pid for event in record.wait("finished")] == [before["pid"]]


@pytest.mark.parametrize(("fault", "limits"), [
    ("slow:1.6@predicting", {"predicting": 3.0}),
    ("slow:4@post_processing", {"post_processing": 7.5, "predicting": 3.0}),
])  # fmt: skip
def test_slow_steps_below_the_limit_are_fine_and_told(
    open_pool: Open, ask: Callable[..., Job], record: Record, fault: str, limits: dict[str, Any]
) -> None:
    pool = open_pool(fault, standbys=0, **limits)
    assert pool.run(ask()).value
    assert record.of("hung") == []
    assert record.of("slow")
    assert pool.counts.slow_but_fine == 1
    assert len({event.pid for event in record.of("dispatched")}) == 1


def test_the_machine_sleeps_and_nobody_is_hung_for_it_but_a_true_hang_is_found_after_it(
    open_pool: Open, ask: Callable[..., Job], record: Record, clock: OnlyMonotonic, caplog: pytest.LogCaptureFixture
) -> None:
    pool = open_pool("slow:0.3@predicting,hang@75", predicting=5, silence=10)
    all_ready(pool, record)
    job = pool.submit(ask(seconds=3 * 3600))
    record.wait("dispatched")
    clock.ahead = 7200.0
    assert job.result(LONG).value
    (hung,) = record.wait("hung")
    assert hung.watched.percent == pytest.approx(75), "not before, when the clock had jumped"
    assert "their clocks start anew" in caplog.text


def test_only_the_job_of_the_child_that_hangs_is_moved(
    open_pool: Open, ask: Callable[..., Job], record: Record
) -> None:
    pool = open_pool("hang@50", size=2, standbys=0, predicting=5)
    all_ready(pool, record, 2)
    futures = [pool.submit(ask(f"forecast {number}")) for number in range(30)]
    assert all(future.result(LONG).value for future in futures)
    (hung,) = record.wait("hung")
    finished = record.wait("finished", 30)
    others = {event.pid for event in finished if event.job != hung.job}
    dispatched = [event.job for event in record.of("dispatched")]
    assert sorted(dispatched) == sorted([event.job for event in finished] + [hung.job])
    healthy = others - {hung.pid}
    assert healthy & {child["pid"] for child in pool.children()}, "the other child lives on to the end"


@pytest.mark.parametrize(
    ("fault", "fate"),
    [("torn", "SIGKILL"), ("crash", "SIGSEGV"), ("exit:7", "exit status 7"), ("garbage", "no message")],
)
def test_a_child_that_ends_in_the_middle_of_things_takes_nobody_along(
    open_pool: Open, ask: Callable[..., Job], record: Record, fault: str, fate: str
) -> None:
    pool = open_pool(fault, size=2, standbys=0)
    all_ready(pool, record, 2)
    futures = [pool.submit(ask(f"forecast {number}")) for number in range(6)]
    assert all(future.result(LONG).value for future in futures)
    (died,) = record.wait("died")
    assert fate in died.text
    assert pool.counts.crashes == 1
    assert {event.pid for event in record.of("finished")} - {died.pid}


@pytest.mark.parametrize(("faults", "fate"), [("hang@stopping", "SIGTERM"), ("hang@stopping,ignore-term", "SIGKILL")])
def test_one_that_hangs_while_it_stops_is_ended(open_pool: Open, record: Record, faults: str, fate: str) -> None:
    pool = open_pool(faults, standbys=0, stopping=3)
    pool.ready(LONG)
    pool.close()
    (gone,) = record.wait("gone")
    assert gone.text == f"killed by {fate}"


def test_one_that_hangs_and_ignores_the_request_to_end_is_killed(
    open_pool: Open, ask: Callable[..., Job], record: Record
) -> None:
    pool = open_pool("hang@50,ignore-term", standbys=0, predicting=5)
    assert pool.run(ask()).value
    (hung,) = record.wait("hung")
    gone = record.wait("gone")
    assert [event.text for event in gone if event.pid == hung.pid] == ["killed by SIGKILL"]


def test_what_a_model_forks_is_gone_with_it(open_pool: Open, record: Record) -> None:
    pool = open_pool("fork", standbys=0)
    pool.ready(LONG)
    (child,) = record.of("launched")
    offspring = psutil.Process(child.pid).children(recursive=True)
    assert offspring
    pool.close()
    psutil.wait_procs(offspring, timeout=LONG)
    assert not any(map(runs, offspring))


def test_an_answer_after_the_deadline_is_not_waited_for_and_the_next_job_is_served(
    open_pool: Open, ask: Callable[..., Job], record: Record
) -> None:
    pool = open_pool("slow:2@predicting", standbys=0)
    pool.ready(LONG)
    with pytest.raises(ChildFailed, match="deadline has passed"):
        pool.run(ask(seconds=3.0))
    assert pool.run(ask()).value
    assert pool.counts.late == 1
    assert record.of("hung") == []


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


def test_children_and_theirs_are_gone_when_the_parent_is_killed_and_a_new_one_can_start(
    demo: Path, open_pool: Open, ask: Callable[..., Job]
) -> None:
    with start_parent(demo, "killed") as parent:
        assert parent.stdout is not None
        family = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(family) == 4
    psutil.wait_procs(family, timeout=LONG)
    assert not any(map(runs, family))
    assert open_pool().run(ask()).value


def test_a_parent_that_was_stopped_for_a_while_blames_nobody_and_still_finds_a_true_hang(demo: Path) -> None:
    with start_parent(demo, "stopped") as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "started\n"
        os.kill(parent.pid, signal.SIGSTOP)
        Flag().wait(8.5)  # more than twice what a forecast may stand still
        os.kill(parent.pid, signal.SIGCONT)
        told = [parent.stdout.readline(), parent.stdout.readline()]
        assert told == ["0\n", "1\n"]
        assert parent.wait(LONG) == 0


def test_no_secret_of_the_parents_reaches_a_child(
    open_pool: Open, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNEMONIC", "legal winner thank year")
    monkeypatch.setenv("TIINGO_API_KEY", "k3y")
    open_pool(standbys=0).ready(LONG)
    (child,) = record.of("launched")
    found: Any = Path(f"/proc/{child.pid}/environ").read_bytes() + Path(f"/proc/{child.pid}/cmdline").read_bytes()
    assert b"PYTHONPATH" in found
    for secret in (b"legal", b"k3y"):
        assert secret not in found
