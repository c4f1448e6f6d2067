"""The pool under everything that its users, its machine and hostile children do to it: jobs end, and nothing is left."""

from __future__ import annotations

import errno
import gc
import logging
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_futures
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Condition
from typing import Any

import psutil
import pytest

from forecastd.clock import SystemClock
from forecastd.supervise import policy as rules
from forecastd.supervise.detector import PhaseLimits
from forecastd.supervise.events import ProcessEvent
from forecastd.supervise.jobs import Job, check_job, predict_job
from forecastd.supervise.policy import ChildSetup, SupervisionPolicy
from forecastd.supervise.pool import ProcessPool
from forecastd.supervise.process import ChildFailed, ModelFailed
from models.market.bundle import MarketBundle, copy_market_bundle, load_market_bundle

WAIT_SECONDS = 120.0
CLOCK = SystemClock()


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
            assert self._condition.wait_for(
                lambda: sum(event.kind == kind for event in self.events) >= number, WAIT_SECONDS
            ), kind
        return self.by_kind(kind)


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.02)


def is_running(process: psutil.Process) -> bool:
    """Whether a process has not ended."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(scope="module")
def demo(root: Path) -> Path:
    return root / "models" / "demo"


@pytest.fixture(scope="module")
def bundle(demo: Path) -> MarketBundle:
    return load_market_bundle(demo)


@pytest.fixture
def ask(bundle: MarketBundle) -> Callable[..., Job]:
    """A job: the forecast of the bundle's canary."""
    manifest = bundle.manifest

    def event(name: str = "forecast", seconds: float = WAIT_SECONDS, attempts: int = 3) -> Job:
        return predict_job(
            bundle.canary.inputs,
            name=name,
            deadline=CLOCK.monotonic() + seconds,
            attempts=attempts,
            rows=manifest.horizon,
            levels=manifest.levels,
        )

    return event


@pytest.fixture
def record() -> EventLog:
    return EventLog()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No child, descriptor, thread or shared memory of a test's outlives it."""

    def held() -> tuple[int, int, set[Path]]:
        return descriptors(), threading.active_count(), set(Path("/dev/shm").iterdir())  # noqa: S108 - only looked at

    before = held()
    yield
    assert [event for event in psutil.Process().children(recursive=True) if is_running(event)] == []
    wait_until(lambda: held()[:2] <= before[:2])
    wait_until(lambda: held()[2] <= before[2])  # others on this machine use it as well, for a moment


def make_setup(path: Path, faults: str = "", faulty: int = 1) -> ChildSetup:
    return ChildSetup(path, "demo", faults, faulty)


def make_policy(**changes: Any) -> SupervisionPolicy:
    return replace(
        SupervisionPolicy(PhaseLimits(stopping=3), attempts=3, standbys=0, quarantine_after=10**6), **changes
    )


# ---- many faults ------------------------------------------------------------------------------------------------------

FAULTS = (
    "exit", "crash", "torn", "garbage", "raise", "raise@loading", "exit@warming_up", "nan", "shape", "print:200", "fork",
    "hang@50", "exit@post_processing", "crash@loading", "deaf", "slow:0.01",
)  # fmt: skip


class RandomFaults(ChildSetup):
    """Each launch has another fault, or none."""

    def __getattribute__(self, name: str) -> Any:
        return RANDOM.choice((*FAULTS, *[""] * 6)) if name == "faults" else super().__getattribute__(name)


RANDOM = random.Random(7)


def test_random_faults_end_each_job_once_and_leave_nothing(
    demo: Path, ask: Callable[..., Job], record: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "BACKOFF_AFTER_REPLACEMENTS", 10**6)
    policy = make_policy(limits=PhaseLimits(predicting=1.0, stopping=3), standbys=1)
    ended: list[Future[Any]] = []
    futures: list[Future[Any]] = []
    with ProcessPool(RandomFaults(demo, "demo", faulty_launches=10**6), policy, CLOCK, size=2, observer=record) as pool:
        while pool.counts.launches < 50:
            futures += [pool.submit(ask(f"forecast {len(futures)}")) for _ in range(4)]
            for future in futures[-4:]:
                future.add_done_callback(ended.append)
            assert not wait_futures(futures, WAIT_SECONDS).not_done
            for child in pool.children():  # else the healthy ones are soon all that is left
                with suppress(ProcessLookupError):
                    os.kill(int(str(child["pid"])), RANDOM.choice([signal.SIGKILL, signal.SIGTERM, 0]))
        assert len(ended) == len(futures) == sum(pool.counts.jobs.values())
        for future in futures:
            assert future.exception() is None or isinstance(future.exception(), ChildFailed | ModelFailed)
        assert any(future.exception() is None for future in futures)
    assert len(record.by_kind("gone")) == len(record.by_kind("launched")) == pool.counts.launches


# ---- what users do ----------------------------------------------------------------------------------------------------


def test_pool_is_thread_safe_and_can_be_closed_twice(demo: Path, ask: Callable[..., Job]) -> None:
    values: list[float] = []
    pool = ProcessPool(make_setup(demo), make_policy(), CLOCK, size=2)

    def work() -> None:
        for _ in range(5):
            values.append(pool.run(ask()).value)
            pool.children()
            pool.counts.as_json()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert len(values) == 40
    assert len(set(values)) == 1
    pool.close()
    pool.close()
    assert pool.children() == []
    late = pool.submit(ask())
    assert isinstance(late.exception(WAIT_SECONDS), ChildFailed)
    with pytest.raises(ChildFailed):
        pool.run(ask())
    with pytest.raises(ChildFailed):
        pool.wait_ready(WAIT_SECONDS)
    pool.interrupt()
    assert pool.counts.jobs == {"result": 40, "failed": 2}


def test_close_during_load_or_job_fails_pending_jobs(demo: Path, ask: Callable[..., Job], record: EventLog) -> None:
    loading = ProcessPool(make_setup(demo, "hang@loading"), make_policy(), CLOCK)
    waiting = loading.submit(ask())
    loading.close()
    assert isinstance(waiting.exception(WAIT_SECONDS), ChildFailed)
    working = ProcessPool(make_setup(demo, "hang@50"), make_policy(), CLOCK, observer=record)
    under_way, queued = working.submit(ask()), working.submit(ask())
    record.wait("dispatched")
    working.close()
    for future in (under_way, queued):
        assert isinstance(future.exception(WAIT_SECONDS), ChildFailed)
    assert working.counts.jobs == {"failed": 2}


def test_concurrent_close_and_submit_end_every_job(demo: Path, ask: Callable[..., Job]) -> None:
    pool = ProcessPool(make_setup(demo), make_policy(), CLOCK)
    futures: list[Future[Any]] = []
    submitters = [
        threading.Thread(target=lambda: futures.extend(pool.submit(ask()) for _ in range(20))) for _ in range(4)
    ]
    closers = [threading.Thread(target=pool.close) for _ in range(3)]
    for thread in (*submitters, *closers):
        thread.start()
    for thread in (*submitters, *closers):
        thread.join(WAIT_SECONDS)
    assert len(futures) == 80
    assert not wait_futures(futures, WAIT_SECONDS).not_done


def test_cancelled_caller_is_released_and_busy_child_replaced(
    demo: Path, ask: Callable[..., Job], record: EventLog
) -> None:
    with ProcessPool(make_setup(demo, "hang@50"), make_policy(), CLOCK, observer=record) as pool:
        pool.wait_ready(WAIT_SECONDS)
        with pytest.raises(ChildFailed, match="deadline"):
            pool.run(ask(), should_stop=lambda: True)
        assert pool.run(ask()).value
    with (
        ProcessPool(make_setup(demo, "hang@loading"), make_policy(), CLOCK) as pool,
        pytest.raises(ChildFailed, match="in time"),
    ):
        pool.wait_ready(0.1)


def test_cancelled_job_is_never_run(demo: Path, ask: Callable[..., Job], record: EventLog) -> None:
    with ProcessPool(make_setup(demo), make_policy(), CLOCK, observer=record) as pool:
        pool.wait_ready(WAIT_SECONDS)
        (child,) = record.wait("ready")
        os.kill(child.pid, signal.SIGSTOP)  # so that the next one waits, however long this process may not run
        busy = pool.submit(ask("busy"))
        record.wait("dispatched")
        first = pool.submit(ask("first"))
        assert first.cancel()
        os.kill(child.pid, signal.SIGCONT)
        assert busy.result(WAIT_SECONDS).value
        assert pool.run(ask("second")).value
    assert [event.job for event in record.by_kind("dispatched")] == ["busy", "second"]


def test_forked_parent_cannot_use_the_pool(demo: Path, ask: Callable[..., Job]) -> None:
    """In a process of its own, for this one has threads of many kinds."""
    code = f"""
import os, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from forecastd.clock import SystemClock
from forecastd.supervise.jobs import check_job
from forecastd.supervise.policy import Policy, Setup
from forecastd.supervise.pool import Pool
from forecastd.supervise.process import ChildFailed
clock = SystemClock()
job = lambda: check_job(clock.monotonic() + 60, 3)
with Pool(Setup(Path({str(demo)!r}), "demo"), Policy(), clock) as pool:
    sha = pool.run(job())
    before = pool.children()[0]["pid"]
    if (fork := os.fork()) == 0:
        try:
            pool.run(job())
        except ChildFailed:
            pool.close()
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 7
    assert pool.run(job()) == sha
    assert pool.children()[0]["pid"] == before
print("well")
"""
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )
    assert completed.stdout == "well\n", completed.stderr


# ---- what the machine does --------------------------------------------------------------------------------------------


def test_failed_process_start_is_reported_and_retried(
    demo: Path, ask: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, attempts = subprocess.Popen, []

    def fail(*arguments: Any, **more: Any) -> Any:
        attempts.append(1)
        if len(attempts) <= 4:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return start(*arguments, **more)

    monkeypatch.setattr(subprocess, "Popen", fail)
    with ProcessPool(make_setup(demo), make_policy(), CLOCK) as pool:
        with pytest.raises(ChildFailed, match="could not be started: Resource temporarily unavailable"):
            pool.run(ask())
        assert pool.run(ask()).value


@pytest.mark.parametrize("what", ["pipe", "socketpair"])
def test_descriptor_exhaustion_is_reported_without_leak(
    demo: Path, ask: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    pool = ProcessPool(make_setup(demo, "exit", 1), make_policy(), CLOCK)
    with pool:
        pool.wait_ready(WAIT_SECONDS)
        before = descriptors()
        with monkeypatch.context() as context:
            module: Any = os if what == "pipe" else socket
            error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            context.setattr(module, what, lambda *_: (_ for _ in ()).throw(error))
            with pytest.raises(ChildFailed, match="Too many open files"):
                pool.run(ask())
            assert descriptors() < before, "the lost child's are given back, and no new ones are kept"
        assert pool.run(ask()).value


def test_failed_standby_start_does_not_fail_running_jobs(
    demo: Path, ask: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, record: EventLog
) -> None:
    start = subprocess.Popen
    started: list[int] = []

    def only_one(*arguments: Any, **more: Any) -> Any:
        if started:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        started.append(1)
        return start(*arguments, **more)

    monkeypatch.setattr(subprocess, "Popen", only_one)
    monkeypatch.setattr("forecastd.supervise.monitor.MAX_POLL_SECONDS", 0.1)
    with ProcessPool(make_setup(demo, "slow:0.15@predicting"), make_policy(standbys=1), CLOCK, observer=record) as pool:
        pool.wait_ready(WAIT_SECONDS)
        futures = [pool.submit(ask()) for _ in range(3)]
        assert all(future.result(WAIT_SECONDS).value for future in futures)


def test_bundle_damaged_at_runtime_still_serves_from_live_child(
    demo: Path, bundle: MarketBundle, tmp_path: Path, ask: Callable[..., Job], record: EventLog
) -> None:
    path = tmp_path / "bundle"
    copy_market_bundle(demo, path, bundle.sha256)
    with ProcessPool(make_setup(path), make_policy(standbys=1), CLOCK, observer=record) as pool:
        pool.wait_ready(WAIT_SECONDS)
        first, second = record.wait("ready", 2)
        weights = path / "weights.safetensors"
        weights_bytes = weights.read_bytes()
        weights.write_bytes(weights_bytes[:1000])
        os.kill(second.pid, signal.SIGKILL)
        record.wait("died")
        futures = [pool.submit(ask()) for _ in range(5)]
        assert all(future.result(WAIT_SECONDS).value for future in futures)
        record.wait("refused")
        assert pool.run(ask()).value
        os.kill(first.pid, signal.SIGKILL)  # now there is nobody left who knows the model
        record.wait("died", 2)
        with pytest.raises(ModelFailed, match="cut off") as caught:
            pool.run(ask())
        assert (caught.value.kind, caught.value.check) == ("bundle", "hash")
        weights.write_bytes(weights_bytes)
        assert pool.run(ask()).value, "and is mended when somebody asks again"


def test_job_of_dead_child_fails_when_bundle_is_missing(
    demo: Path, bundle: MarketBundle, tmp_path: Path, ask: Callable[..., Job], record: EventLog
) -> None:
    path = tmp_path / "bundle"
    copy_market_bundle(demo, path, bundle.sha256)
    with ProcessPool(make_setup(path, "hang@50"), make_policy(standbys=1), CLOCK, observer=record) as pool:
        pool.wait_ready(WAIT_SECONDS)
        first, second = record.wait("ready", 2)
        future = pool.submit(ask(seconds=10 * WAIT_SECONDS))
        (busy,) = record.wait("dispatched")
        (path / "manifest.json").unlink()
        os.kill(({first.pid, second.pid} - {busy.pid}).pop(), signal.SIGKILL)
        record.wait("refused")
        os.kill(busy.pid, signal.SIGKILL)
        assert isinstance(future.exception(WAIT_SECONDS), ModelFailed)


# ---- who watches ------------------------------------------------------------------------------------------------------


def test_broken_observer_does_not_affect_jobs(
    demo: Path, ask: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    release = threading.Event()

    def fail(_: ProcessEvent) -> None:
        raise ZeroDivisionError

    def stick(_: ProcessEvent) -> None:
        release.wait(WAIT_SECONDS)

    for observe in (fail, stick):
        with ProcessPool(make_setup(demo, "exit"), make_policy(), CLOCK, observer=observe) as pool:
            assert pool.run(ask()).value
    release.set()


# ---- hostile children -------------------------------------------------------------------------------------------------

PRELUDE = """
import json, os, socket, struct, sys, threading, time
channel, launch = socket.socket(fileno=int(sys.argv[4])), sys.argv[5]
def say(kind, **fields):
    head = json.dumps({"kind": kind, "launch": launch, "fields": fields, "arrays": {}}).encode()
    return struct.pack("<II", len(head), 0) + head
def for_ever():
    while True:
        threading.Event().wait(1)
        channel.sendall(say("alive"))
"""


@pytest.fixture
def child_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """From now on children run this instead of a model."""

    def put(code: str) -> None:
        (tmp_path / "hostile.py").write_text(PRELUDE + code)
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "hostile.py"} "$@"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(script))

    return put


def thread_cpu_seconds(pool: ProcessPool) -> float:
    return time.clock_gettime(time.pthread_getcpuclockid(pool._thread.ident or 0))


@pytest.mark.parametrize(
    ("code", "stops"),
    [
        ("os.close(1); os.close(2); channel.sendall(say('ready')); for_ever()", False),
        ("channel.sendall(say('ready')); channel.shutdown(socket.SHUT_WR); threading.Event().wait()", True),
        ("channel.sendall(say('ready')); channel.close(); threading.Event().wait()", True),
        ("channel.shutdown(socket.SHUT_RD); channel.sendall(say('ready')); for_ever()", False),
    ],
)
def test_closed_channel_does_not_busy_loop_parent(
    demo: Path, record: EventLog, child_is: Callable[[str], None], code: str, stops: bool
) -> None:
    child_is(code)
    with ProcessPool(make_setup(demo), make_policy(), CLOCK, observer=record) as pool:
        record.wait("ready")
        before = thread_cpu_seconds(pool)
        threading.Event().wait(1.5)
        assert thread_cpu_seconds(pool) - before < 0.7, "it would be all of the time if it looped"
        if stops:
            assert "closed its channel" in record.wait("died")[0].text


def test_job_is_not_dispatched_to_child_with_closed_channel(
    demo: Path, ask: Callable[..., Job], record: EventLog, child_is: Callable[[str], None]
) -> None:
    child_is("channel.sendall(say('ready')); channel.close(); threading.Event().wait()")
    with ProcessPool(make_setup(demo), make_policy(strikes=10**6, attempts=1), CLOCK, observer=record) as pool:
        record.wait("ready")
        wait_until(lambda: pool._monitor.slots[0].channel_closed_at)
        with pytest.raises(ChildFailed, match="deadline"):
            pool.run(ask(seconds=3.0))
        record.wait("died")
        assert pool._thread.is_alive()


def test_output_during_shutdown_does_not_busy_loop_parent(
    demo: Path, record: EventLog, child_is: Callable[[str], None]
) -> None:
    code = "import signal; signal.signal(signal.SIGTERM, lambda *_: os.write(2, b'no\\n'))\nchannel.sendall(say('ready'))\n"
    child_is(code + "os.write(2, b'x' * 5000); threading.Event().wait()")
    pool = ProcessPool(make_setup(demo), make_policy(limits=PhaseLimits(stopping=4)), CLOCK, observer=record)
    record.wait("ready")
    clock = time.pthread_getcpuclockid(pool._thread.ident or 0)
    spent: list[float] = []

    def measure() -> None:
        before = time.clock_gettime(clock)
        threading.Event().wait(1.5)
        spent.append(time.clock_gettime(clock) - before)

    meter = threading.Thread(target=measure)
    closer = threading.Thread(target=pool.close)
    closer.start()
    meter.start()
    meter.join(WAIT_SECONDS)
    closer.join(WAIT_SECONDS)
    assert spent[0] < 0.7


@pytest.mark.parametrize(
    "code",
    [
        "channel.sendall(say('ready'))\nflood = say('alive') * 500\nwhile True: channel.sendall(flood)",
        "channel.sendall(say('ready'))\ndone = 0\nwhile True:\n    done += 1\n"
        "    channel.sendall(say('progress', job=None, phase='predicting', done=done, total=1, detail={'x': 'y' * 5000}))",
        "channel.sendall(say('ready'))\nwhile True: os.write(2, b'z' * 65536)",
        "channel.sendall(say('ready'))\nwhile True: os.write(2, b'\\n' * 65536)",
    ],
    ids=["alive", "progress", "stderr", "lines"],
)
def test_flooding_child_uses_bounded_memory_and_time(
    demo: Path, ask: Callable[..., Job], record: EventLog, child_is: Callable[[str], None], code: str
) -> None:
    child_is(code)
    before = psutil.Process().memory_info().rss
    with ProcessPool(make_setup(demo), make_policy(), CLOCK) as pool:
        pool.wait_ready(WAIT_SECONDS)
        with pytest.raises(ChildFailed, match="deadline"):
            pool.run(ask(seconds=3.0))
        assert psutil.Process().memory_info().rss - before < 200 << 20
    assert pool.counts.deadlines_exceeded == 1


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("channel.sendall(struct.pack('<II', 1 << 31, 0) + b'x' * 100); for_ever()", "no message"),
        ("channel.sendall(say('progress', phase='flying', done=1, total=1)); for_ever()", "no message"),
        ("channel.sendall(say('progress', phase='loading', done=10**400, total=1)); for_ever()", "no message"),
        ("channel.sendall(say('error', error='memory', message='\\ud800')); for_ever()", "says"),
        ("os.kill(os.getpid(), 40)", "killed by signal 40"),
        ("sys.exit('\\x1b[31m' + 'no' * 5000)", "exit status 1"),
    ],
)
def test_invalid_messages_before_ready_end_in_quarantine(
    demo: Path, record: EventLog, child_is: Callable[[str], None], code: str, why: str
) -> None:
    child_is(f"channel.sendall(say('progress', job=None, phase='loading', done=1, total=3))\n{code}")
    policy = make_policy(strikes=2)
    with ProcessPool(make_setup(demo), policy, CLOCK, observer=record) as pool, pytest.raises(ChildFailed) as caught:
        pool.wait_ready(WAIT_SECONDS)
    assert why in str(caught.value) or any(why in event.text for event in record.events)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("code", ["sys.exit(3)", "os._exit(0)", "os.abort()"])
def test_child_that_dies_while_starting_is_reported(
    demo: Path, child_is: Callable[[str], None], code: str, caplog: pytest.LogCaptureFixture
) -> None:
    child_is(code)
    with (
        ProcessPool(make_setup(demo), make_policy(attempts=2), CLOCK) as pool,
        pytest.raises(ChildFailed, match="died in phase starting"),
    ):
        pool.wait_ready(WAIT_SECONDS)
    assert pool.counts.quarantines == 0, "the model had no part in it"


def test_check_job_returns_bundle_hash(demo: Path, bundle: MarketBundle) -> None:
    with ProcessPool(make_setup(demo, "exit@predicting"), make_policy(), CLOCK) as pool:
        assert pool.run(check_job(CLOCK.monotonic() + WAIT_SECONDS, 3)) == bundle.sha256
        assert pool.counts.crashes == 1


def test_model_output_is_logged_at_debug_level(
    demo: Path, ask: Callable[..., Job], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), ProcessPool(make_setup(demo, "print:64"), make_policy(), CLOCK) as pool:
        assert pool.run(ask()).value
    assert "a model that prints" in caplog.text
