"""The process pool under concurrent callers, system failures and hostile children: jobs end, and nothing is left behind."""

from __future__ import annotations

import errno
import functools
import gc
import logging
import os
import random
import signal
import socket
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
from typing import Any

import psutil
import pytest

from forecastd.clock import SystemClock
from forecastd.runtime.jobs import ChildFailed, ModelFailed
from forecastd.supervise import policy as policy_module
from forecastd.supervise.detector import PhaseLimits
from forecastd.supervise.events import ProcessEvent
from forecastd.supervise.jobs import ChildSetup, Job, check_job
from forecastd.supervise.policy import SupervisionPolicy
from forecastd.supervise.pool import ProcessPool
from models.bundle.bundle import copy_bundle
from models.market.bundle import MarketBundle
from tests.support.supervision import WAIT_SECONDS, EventLog, canary_job, child_setup, is_running
from tests.support.waiting import wait_until

CLOCK = SystemClock()


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def make_job(bundle: MarketBundle) -> Callable[..., Job]:
    """Makes jobs: the forecast of the bundle's canary."""
    return functools.partial(canary_job, bundle)


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """No child, descriptor, thread or shared memory of a test outlives it."""

    def resources() -> tuple[int, int, set[Path]]:
        return descriptors(), threading.active_count(), set(Path("/dev/shm").iterdir())  # noqa: S108 - only listed

    before = resources()
    yield
    assert [child for child in psutil.Process().children(recursive=True) if is_running(child)] == []
    wait_until(lambda: resources()[:2] <= before[:2], "descriptors and threads are released")
    wait_until(lambda: resources()[2] <= before[2], "shared memory is released")  # other programs use it too


def make_policy(**changes: Any) -> SupervisionPolicy:
    return replace(
        SupervisionPolicy(PhaseLimits(stopping=3), attempts=3, standbys=0, quarantine_after=10**6), **changes
    )


FAULTS = (
    "exit", "crash", "torn", "garbage", "raise", "raise@loading", "exit@warming_up", "nan", "shape", "print:200", "fork",
    "hang@50", "exit@post_processing", "crash@loading", "deaf", "slow:0.01",
)  # fmt: skip


class RandomFaults(ChildSetup):
    """Each launch has a random fault, or none."""

    def __getattribute__(self, name: str) -> Any:
        return RANDOM.choice((*FAULTS, *[""] * 6)) if name == "faults" else super().__getattribute__(name)


RANDOM = random.Random(7)


def test_random_faults_end_each_job_once_and_leave_nothing(
    demo: Path, make_job: Callable[..., Job], event_log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_module, "BACKOFF_AFTER_REPLACEMENTS", 10**6)
    policy = make_policy(limits=PhaseLimits(predicting=1.0, stopping=3), standbys=1)
    ended: list[Future[Any]] = []
    futures: list[Future[Any]] = []
    with ProcessPool(
        RandomFaults(**vars(replace(child_setup(demo), faulty_launches=10**6))),
        policy,
        CLOCK,
        size=2,
        observer=event_log,
    ) as pool:
        while pool.counts.launches < 50:
            futures += [pool.submit(make_job(f"forecast {len(futures)}")) for _ in range(4)]
            for future in futures[-4:]:
                future.add_done_callback(ended.append)
            assert not wait_futures(futures, WAIT_SECONDS).not_done
            for child in pool.children():  # else only healthy ones are left soon
                with suppress(ProcessLookupError):
                    os.kill(int(str(child["pid"])), RANDOM.choice([signal.SIGKILL, signal.SIGTERM, 0]))
        assert len(ended) == len(futures) == sum(pool.counts.jobs.values())
        for future in futures:
            assert future.exception() is None or isinstance(future.exception(), ChildFailed | ModelFailed)
        assert any(future.exception() is None for future in futures)
    assert len(event_log.by_kind("exited")) == len(event_log.by_kind("launched")) == pool.counts.launches


def test_pool_is_thread_safe_and_can_be_closed_twice(demo: Path, make_job: Callable[..., Job]) -> None:
    values: list[float] = []
    pool = ProcessPool(child_setup(demo), make_policy(), CLOCK, size=2)

    def run_jobs() -> None:
        for _ in range(5):
            values.append(pool.run(make_job()).value)
            pool.children()
            pool.counts.as_json()

    threads = [threading.Thread(target=run_jobs) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert len(values) == 40
    assert len(set(values)) == 1
    pool.close()
    pool.close()
    assert pool.children() == []
    late = pool.submit(make_job())
    assert isinstance(late.exception(WAIT_SECONDS), ChildFailed)
    with pytest.raises(ChildFailed):
        pool.run(make_job())
    with pytest.raises(ChildFailed):
        pool.wait_ready(WAIT_SECONDS)
    pool.interrupt()
    assert pool.counts.jobs == {"result": 40, "failed": 2}


def test_close_during_load_or_job_fails_pending_jobs(
    demo: Path, make_job: Callable[..., Job], event_log: EventLog
) -> None:
    loading = ProcessPool(child_setup(demo, "hang@loading"), make_policy(), CLOCK)
    waiting = loading.submit(make_job())
    loading.close()
    assert isinstance(waiting.exception(WAIT_SECONDS), ChildFailed)
    working = ProcessPool(child_setup(demo, "hang@50"), make_policy(), CLOCK, observer=event_log)
    under_way, queued = working.submit(make_job()), working.submit(make_job())
    event_log.wait("dispatched")
    working.close()
    for future in (under_way, queued):
        assert isinstance(future.exception(WAIT_SECONDS), ChildFailed)
    assert working.counts.jobs == {"failed": 2}


def test_concurrent_close_and_submit_end_every_job(demo: Path, make_job: Callable[..., Job]) -> None:
    pool = ProcessPool(child_setup(demo), make_policy(), CLOCK)
    futures: list[Future[Any]] = []
    submitters = [
        threading.Thread(target=lambda: futures.extend(pool.submit(make_job()) for _ in range(20))) for _ in range(4)
    ]
    closers = [threading.Thread(target=pool.close) for _ in range(3)]
    for thread in (*submitters, *closers):
        thread.start()
    for thread in (*submitters, *closers):
        thread.join(WAIT_SECONDS)
    assert len(futures) == 80
    assert not wait_futures(futures, WAIT_SECONDS).not_done


def test_cancelled_caller_is_released_and_busy_child_replaced(
    demo: Path, make_job: Callable[..., Job], event_log: EventLog
) -> None:
    with ProcessPool(child_setup(demo, "hang@50"), make_policy(), CLOCK, observer=event_log) as pool:
        pool.wait_ready(WAIT_SECONDS)
        with pytest.raises(ChildFailed, match="deadline"):
            pool.run(make_job(), should_stop=lambda: True)
        assert pool.run(make_job()).value
    with (
        ProcessPool(child_setup(demo, "hang@loading"), make_policy(), CLOCK) as pool,
        pytest.raises(ChildFailed, match="in time"),
    ):
        pool.wait_ready(0.1)


def test_cancelled_job_is_never_run(demo: Path, make_job: Callable[..., Job], event_log: EventLog) -> None:
    with ProcessPool(child_setup(demo), make_policy(), CLOCK, observer=event_log) as pool:
        pool.wait_ready(WAIT_SECONDS)
        (child,) = event_log.wait("ready")
        os.kill(child.pid, signal.SIGSTOP)  # so that the next job waits
        busy = pool.submit(make_job("busy"))
        event_log.wait("dispatched")
        first = pool.submit(make_job("first"))
        assert first.cancel()
        os.kill(child.pid, signal.SIGCONT)
        assert busy.result(WAIT_SECONDS).value
        assert pool.run(make_job("second")).value
    assert [event.job for event in event_log.by_kind("dispatched")] == ["busy", "second"]


def test_forked_parent_cannot_use_the_pool(demo: Path, make_job: Callable[..., Job]) -> None:
    """In a process of its own, because a fork of this one would copy its threads' locks."""
    code = f"""
import os, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from forecastd.clock import SystemClock
from forecastd.inference.market_runner import market_setup
from forecastd.runtime.jobs import ChildFailed
from forecastd.supervise.jobs import check_job
from forecastd.supervise.policy import SupervisionPolicy
from forecastd.supervise.pool import ProcessPool
clock = SystemClock()
job = lambda: check_job(clock.monotonic() + 60, 3)
setup = market_setup(Path({str(demo)!r}), "demo")
with ProcessPool(setup, SupervisionPolicy(), clock) as pool:
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
print("done")
"""
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )
    assert completed.stdout == "done\n", completed.stderr


def test_failed_process_start_is_reported_and_retried(
    demo: Path, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, attempts = subprocess.Popen, []

    def fail(*arguments: Any, **more: Any) -> Any:
        attempts.append(1)
        if len(attempts) <= 4:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return start(*arguments, **more)

    monkeypatch.setattr(subprocess, "Popen", fail)
    with ProcessPool(child_setup(demo), make_policy(), CLOCK) as pool:
        with pytest.raises(ChildFailed, match="Cannot start a model process: Resource temporarily unavailable"):
            pool.run(make_job())
        assert pool.run(make_job()).value


@pytest.mark.parametrize("function", ["pipe", "socketpair"])
def test_descriptor_exhaustion_is_reported_without_leak(
    demo: Path, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    pool = ProcessPool(child_setup(demo, "exit", 1), make_policy(), CLOCK)
    with pool:
        pool.wait_ready(WAIT_SECONDS)
        before = descriptors()
        with monkeypatch.context() as context:
            module: Any = os if function == "pipe" else socket
            error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            context.setattr(module, function, lambda *_: (_ for _ in ()).throw(error))
            with pytest.raises(ChildFailed, match="Too many open files"):
                pool.run(make_job())
            assert descriptors() < before, "those of the lost child are closed, and no new ones stay open"
        assert pool.run(make_job()).value


def test_failed_standby_start_does_not_fail_running_jobs(
    demo: Path, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, event_log: EventLog
) -> None:
    start = subprocess.Popen
    started: list[int] = []

    def only_one(*arguments: Any, **more: Any) -> Any:
        if started:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        started.append(1)
        return start(*arguments, **more)

    monkeypatch.setattr(subprocess, "Popen", only_one)
    monkeypatch.setattr("forecastd.supervise.child_manager.MAX_POLL_SECONDS", 0.1)
    with ProcessPool(
        child_setup(demo, "slow:0.15@predicting"), make_policy(standbys=1), CLOCK, observer=event_log
    ) as pool:
        pool.wait_ready(WAIT_SECONDS)
        futures = [pool.submit(make_job()) for _ in range(3)]
        assert all(future.result(WAIT_SECONDS).value for future in futures)


def test_bundle_damaged_at_runtime_still_serves_from_live_child(
    demo: Path, bundle: MarketBundle, tmp_path: Path, make_job: Callable[..., Job], event_log: EventLog
) -> None:
    path = tmp_path / "bundle"
    copy_bundle(demo, path, bundle.manifest)
    with ProcessPool(child_setup(path), make_policy(standbys=1), CLOCK, observer=event_log) as pool:
        pool.wait_ready(WAIT_SECONDS)
        first, second = event_log.wait("ready", 2)
        weights = path / "weights.safetensors"
        weights_bytes = weights.read_bytes()
        weights.write_bytes(weights_bytes[:1000])
        os.kill(second.pid, signal.SIGKILL)
        event_log.wait("died")
        futures = [pool.submit(make_job()) for _ in range(5)]
        assert all(future.result(WAIT_SECONDS).value for future in futures)
        event_log.wait("refused")
        assert pool.run(make_job()).value
        os.kill(first.pid, signal.SIGKILL)  # no child with the model is left
        event_log.wait("died", 2)
        with pytest.raises(ModelFailed, match="is truncated") as caught:
            pool.run(make_job())
        assert (caught.value.kind, caught.value.check) == ("bundle", "hash")
        weights.write_bytes(weights_bytes)
        assert pool.run(make_job()).value, "the repaired bundle is tried again"


def test_job_of_dead_child_fails_when_bundle_is_missing(
    demo: Path, bundle: MarketBundle, tmp_path: Path, make_job: Callable[..., Job], event_log: EventLog
) -> None:
    path = tmp_path / "bundle"
    copy_bundle(demo, path, bundle.manifest)
    with ProcessPool(child_setup(path, "hang@50"), make_policy(standbys=1), CLOCK, observer=event_log) as pool:
        pool.wait_ready(WAIT_SECONDS)
        first, second = event_log.wait("ready", 2)
        future = pool.submit(make_job(seconds=10 * WAIT_SECONDS))
        (busy,) = event_log.wait("dispatched")
        (path / "manifest.json").unlink()
        os.kill(({first.pid, second.pid} - {busy.pid}).pop(), signal.SIGKILL)
        event_log.wait("refused")
        os.kill(busy.pid, signal.SIGKILL)
        assert isinstance(future.exception(WAIT_SECONDS), ModelFailed)


def test_broken_observer_does_not_affect_jobs(
    demo: Path, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    release = threading.Event()

    def fail(_: ProcessEvent) -> None:
        raise ZeroDivisionError

    def block(_: ProcessEvent) -> None:
        release.wait(WAIT_SECONDS)

    for observer in (fail, block):
        with ProcessPool(child_setup(demo, "exit"), make_policy(), CLOCK, observer=observer) as pool:
            assert pool.run(make_job()).value
    release.set()


PRELUDE = """
import json, os, socket, struct, sys, threading, time
channel, launch = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
def message(kind, **fields):
    head = json.dumps({"kind": kind, "launch": launch, "fields": fields, "arrays": {}}).encode()
    return struct.pack("<II", len(head), 0) + head
def run_for_ever():
    while True:
        threading.Event().wait(1)
        channel.sendall(message("heartbeat"))
"""


@pytest.fixture
def hostile_setup(demo: Path, tmp_path: Path) -> Callable[[str], ChildSetup]:
    """A setup whose children run this code instead of a model."""

    def make(code: str) -> ChildSetup:
        script = tmp_path / "hostile.py"
        script.write_text(PRELUDE + code)
        return replace(child_setup(demo), command=(sys.executable, str(script)))

    return make


def thread_cpu_seconds(pool: ProcessPool) -> float:
    return time.clock_gettime(time.pthread_getcpuclockid(pool._thread.ident or 0))


@pytest.mark.parametrize(
    ("code", "stops"),
    [
        ("os.close(1); os.close(2); channel.sendall(message('ready')); run_for_ever()", False),
        ("channel.sendall(message('ready')); channel.shutdown(socket.SHUT_WR); threading.Event().wait()", True),
        ("channel.sendall(message('ready')); channel.close(); threading.Event().wait()", True),
        ("channel.shutdown(socket.SHUT_RD); channel.sendall(message('ready')); run_for_ever()", False),
    ],
)
def test_closed_channel_does_not_busy_loop_parent(
    event_log: EventLog, hostile_setup: Callable[[str], ChildSetup], code: str, stops: bool
) -> None:
    setup = hostile_setup(code)
    with ProcessPool(setup, make_policy(), CLOCK, observer=event_log) as pool:
        event_log.wait("ready")
        before = thread_cpu_seconds(pool)
        threading.Event().wait(0.5)
        assert thread_cpu_seconds(pool) - before < 0.25, "a busy loop would use all of the time"
        if stops:
            assert "closed its channel" in event_log.wait("died")[0].text


def test_job_is_not_dispatched_to_child_with_closed_channel(
    make_job: Callable[..., Job], event_log: EventLog, hostile_setup: Callable[[str], ChildSetup]
) -> None:
    setup = hostile_setup("channel.sendall(message('ready')); channel.close(); threading.Event().wait()")
    with ProcessPool(setup, make_policy(quarantine_after=10**6, attempts=1), CLOCK, observer=event_log) as pool:
        event_log.wait("ready")
        wait_until(lambda: pool._child_manager.children[0][1].channel_closed_at, "the channel is closed")
        with pytest.raises(ChildFailed, match="deadline"):
            pool.run(make_job(seconds=1.5))
        event_log.wait("died")
        assert pool._thread.is_alive()


def test_output_during_shutdown_does_not_busy_loop_parent(
    event_log: EventLog, hostile_setup: Callable[[str], ChildSetup]
) -> None:
    code = "import signal; signal.signal(signal.SIGTERM, lambda *_: os.write(2, b'no\\n'))\n"
    code += "channel.sendall(message('ready'))\n"
    setup = hostile_setup(code + "os.write(2, b'x' * 5000); threading.Event().wait()")
    pool = ProcessPool(setup, make_policy(limits=PhaseLimits(stopping=4)), CLOCK, observer=event_log)
    event_log.wait("ready")
    clock = time.pthread_getcpuclockid(pool._thread.ident or 0)
    spent: list[float] = []

    def measure() -> None:
        before = time.clock_gettime(clock)
        threading.Event().wait(0.5)
        spent.append(time.clock_gettime(clock) - before)

    meter = threading.Thread(target=measure)
    closer = threading.Thread(target=pool.close)
    closer.start()
    meter.start()
    meter.join(WAIT_SECONDS)
    closer.join(WAIT_SECONDS)
    assert spent[0] < 0.25


@pytest.mark.parametrize(
    "code",
    [
        "channel.sendall(message('ready'))\nflood = message('heartbeat') * 500\nwhile True: channel.sendall(flood)",
        "channel.sendall(message('ready'))\ndone = 0\nwhile True:\n    done += 1\n"
        "    channel.sendall(message('progress', job=None, phase='predicting', done=done, total=1, detail={'x': 'y' * 5000}"
        "))",
        "channel.sendall(message('ready'))\nwhile True: os.write(2, b'z' * 65536)",
        "channel.sendall(message('ready'))\nwhile True: os.write(2, b'\\n' * 65536)",
    ],
    ids=["heartbeat", "progress", "stderr", "lines"],
)
def test_flooding_child_uses_bounded_memory_and_time(
    make_job: Callable[..., Job], event_log: EventLog, hostile_setup: Callable[[str], ChildSetup], code: str
) -> None:
    setup = hostile_setup(code)
    before = psutil.Process().memory_info().rss
    with ProcessPool(setup, make_policy(), CLOCK) as pool:
        pool.wait_ready(WAIT_SECONDS)
        with pytest.raises(ChildFailed, match="deadline"):
            pool.run(make_job(seconds=1.5))
        assert psutil.Process().memory_info().rss - before < 200 << 20
    assert pool.counts.deadlines_exceeded == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("channel.sendall(struct.pack('<II', 1 << 31, 0) + b'x' * 100); run_for_ever()", "invalid message"),
        ("channel.sendall(message('progress', phase='flying', done=1, total=1)); run_for_ever()", "invalid message"),
        (
            "channel.sendall(message('progress', phase='loading', done=10**400, total=1)); run_for_ever()",
            "invalid message",
        ),
        ("channel.sendall(message('error', error='memory', message='\\ud800')); run_for_ever()", "reported"),
        ("os.kill(os.getpid(), 40)", "killed by signal 40"),
        ("sys.exit('\\x1b[31m' + 'no' * 5000)", "exit status 1"),
    ],
)
def test_invalid_messages_before_ready_end_in_quarantine(
    event_log: EventLog, hostile_setup: Callable[[str], ChildSetup], code: str, reason: str
) -> None:
    setup = hostile_setup(f"channel.sendall(message('progress', job=None, phase='loading', done=1, total=3))\n{code}")
    policy = make_policy(quarantine_after=2)
    with ProcessPool(setup, policy, CLOCK, observer=event_log) as pool, pytest.raises(ChildFailed) as caught:
        pool.wait_ready(WAIT_SECONDS)
    assert reason in str(caught.value) or any(reason in event.text for event in event_log.events)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("code", ["sys.exit(3)", "os._exit(0)", "os.abort()"])
def test_child_that_dies_while_starting_is_reported(hostile_setup: Callable[[str], ChildSetup], code: str) -> None:
    setup = hostile_setup(code)
    with (
        ProcessPool(setup, make_policy(attempts=2), CLOCK) as pool,
        pytest.raises(ChildFailed, match="died in phase starting"),
    ):
        pool.wait_ready(WAIT_SECONDS)
    assert pool.counts.quarantines == 0, "the model was not loaded"


def test_check_job_returns_bundle_hash(demo: Path, bundle: MarketBundle) -> None:
    with ProcessPool(child_setup(demo, "exit@predicting"), make_policy(), CLOCK) as pool:
        assert pool.run(check_job(CLOCK.monotonic() + WAIT_SECONDS, 3)) == bundle.sha256
        assert pool.counts.crashes == 1


def test_model_output_is_logged_at_debug_level(
    demo: Path, make_job: Callable[..., Job], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), ProcessPool(child_setup(demo, "print:64"), make_policy(), CLOCK) as pool:
        assert pool.run(make_job()).value
    assert "a model that prints" in caplog.text
