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
from forecastd.supervise.detector import Limits
from forecastd.supervise.jobs import Job, check_job, predict_job
from forecastd.supervise.policy import Policy, Setup
from forecastd.supervise.pool import Pool
from forecastd.supervise.process import ChildFailed, ModelFailed
from forecastd.supervise.report import Event
from models.bundle import Bundle, copy_bundle, load_bundle

LONG = 120.0
CLOCK = SystemClock()


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
            assert self._news.wait_for(lambda: sum(one.kind == kind for one in self.events) >= number, LONG), kind
        return self.of(kind)


def wait_until(true: Callable[[], object]) -> None:
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end
        threading.Event().wait(0.02)


def runs(process: psutil.Process) -> bool:
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
def bundle(demo: Path) -> Bundle:
    return load_bundle(demo)


@pytest.fixture
def ask(bundle: Bundle) -> Callable[..., Job]:
    """A job: the forecast of the bundle's canary."""
    manifest = bundle.manifest

    def one(name: str = "forecast", seconds: float = LONG, attempts: int = 3) -> Job:
        return predict_job(
            bundle.canary.inputs,
            name=name,
            deadline=CLOCK.monotonic() + seconds,
            attempts=attempts,
            rows=manifest.horizon,
            levels=manifest.levels,
        )

    return one


@pytest.fixture
def record() -> Record:
    return Record()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No child, descriptor, thread or shared memory of a test's outlives it."""

    def held() -> tuple[int, int, set[Path]]:
        return descriptors(), threading.active_count(), set(Path("/dev/shm").iterdir())  # noqa: S108 - only looked at

    before = held()
    yield
    assert [one for one in psutil.Process().children(recursive=True) if runs(one)] == []
    wait_until(lambda: held()[:2] <= before[:2])
    wait_until(lambda: held()[2] <= before[2])  # others on this machine use it as well, for a moment


def setup(path: Path, faults: str = "", faulty: int = 1) -> Setup:
    return Setup(path, "demo", faults, faulty)


def lenient(**changes: Any) -> Policy:
    return replace(Policy(Limits(stopping=3), attempts=3, standbys=0, strikes=10**6), **changes)


# ---- many faults ------------------------------------------------------------------------------------------------------

FAULTS = (
    "exit", "crash", "torn", "garbage", "raise", "raise@loading", "exit@warming_up", "nan", "shape", "print:200", "fork",
    "hang@50", "exit@post_processing", "crash@loading", "deaf", "slow:0.01",
)  # fmt: skip


class RandomFaults(Setup):
    """Each launch has another fault, or none."""

    def __getattribute__(self, name: str) -> Any:
        return CHANCE.choice((*FAULTS, *[""] * 6)) if name == "faults" else super().__getattribute__(name)


CHANCE = random.Random(7)


def test_after_many_faults_each_job_has_ended_once_and_nothing_is_left(
    demo: Path, ask: Callable[..., Job], record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "BACK_OFF_AFTER", 10**6)
    policy = lenient(limits=Limits(predicting=1.0, stopping=3), standbys=1)
    ended: list[Future[Any]] = []
    futures: list[Future[Any]] = []
    with Pool(RandomFaults(demo, "demo", faulty=10**6), policy, CLOCK, size=2, observe=record) as pool:
        while pool.counts.launches < 50:
            futures += [pool.submit(ask(f"forecast {len(futures)}")) for _ in range(4)]
            for future in futures[-4:]:
                future.add_done_callback(ended.append)
            assert not wait_futures(futures, LONG).not_done
            for child in pool.children():  # else the healthy ones are soon all that is left
                with suppress(ProcessLookupError):
                    os.kill(int(str(child["pid"])), CHANCE.choice([signal.SIGKILL, signal.SIGTERM, 0]))
        assert len(ended) == len(futures) == sum(pool.counts.jobs.values())
        for future in futures:
            assert future.exception() is None or isinstance(future.exception(), ChildFailed | ModelFailed)
        assert any(future.exception() is None for future in futures)
    assert len(record.of("gone")) == len(record.of("launched")) == pool.counts.launches


# ---- what users do ----------------------------------------------------------------------------------------------------


def test_many_threads_may_use_one_pool_and_close_it_twice_and_ask_after_it(demo: Path, ask: Callable[..., Job]) -> None:
    got: list[float] = []
    pool = Pool(setup(demo), lenient(), CLOCK, size=2)

    def work() -> None:
        for _ in range(5):
            got.append(pool.run(ask()).value)
            pool.children()
            pool.counts.as_json()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert len(got) == 40
    assert len(set(got)) == 1
    pool.close()
    pool.close()
    assert pool.children() == []
    late = pool.submit(ask())
    assert isinstance(late.exception(LONG), ChildFailed)
    with pytest.raises(ChildFailed):
        pool.run(ask())
    with pytest.raises(ChildFailed):
        pool.ready(LONG)
    pool.interrupt()
    assert pool.counts.jobs == {"result": 40, "failed": 2}


def test_a_close_in_the_middle_of_a_load_or_of_a_job_ends_both(
    demo: Path, ask: Callable[..., Job], record: Record
) -> None:
    loading = Pool(setup(demo, "hang@loading"), lenient(), CLOCK)
    waiting = loading.submit(ask())
    loading.close()
    assert isinstance(waiting.exception(LONG), ChildFailed)
    working = Pool(setup(demo, "hang@50"), lenient(), CLOCK, observe=record)
    under_way, queued = working.submit(ask()), working.submit(ask())
    record.wait("dispatched")
    working.close()
    for future in (under_way, queued):
        assert isinstance(future.exception(LONG), ChildFailed)
    assert working.counts.jobs == {"failed": 2}


def test_closing_from_many_threads_while_others_submit_ends_every_job(demo: Path, ask: Callable[..., Job]) -> None:
    pool = Pool(setup(demo), lenient(), CLOCK)
    futures: list[Future[Any]] = []
    submitters = [
        threading.Thread(target=lambda: futures.extend(pool.submit(ask()) for _ in range(20))) for _ in range(4)
    ]
    closers = [threading.Thread(target=pool.close) for _ in range(3)]
    for thread in (*submitters, *closers):
        thread.start()
    for thread in (*submitters, *closers):
        thread.join(LONG)
    assert len(futures) == 80
    assert not wait_futures(futures, LONG).not_done


def test_one_who_gives_up_is_answered_and_the_child_that_was_at_it_is_replaced(
    demo: Path, ask: Callable[..., Job], record: Record
) -> None:
    with Pool(setup(demo, "hang@50"), lenient(), CLOCK, observe=record) as pool:
        pool.ready(LONG)
        with pytest.raises(ChildFailed, match="deadline"):
            pool.run(ask(), over=lambda: True)
        assert pool.run(ask()).value
    with Pool(setup(demo, "hang@loading"), lenient(), CLOCK) as pool, pytest.raises(ChildFailed, match="in time"):
        pool.ready(0.1)


def test_a_cancelled_job_is_never_run(demo: Path, ask: Callable[..., Job], record: Record) -> None:
    with Pool(setup(demo), lenient(), CLOCK, observe=record) as pool:
        pool.ready(LONG)
        (child,) = record.wait("ready")
        os.kill(child.pid, signal.SIGSTOP)  # so that the next one waits, however long this process may not run
        busy = pool.submit(ask("busy"))
        record.wait("dispatched")
        first = pool.submit(ask("first"))
        assert first.cancel()
        os.kill(child.pid, signal.SIGCONT)
        assert busy.result(LONG).value
        assert pool.run(ask("second")).value
    assert [event.job for event in record.of("dispatched")] == ["busy", "second"]


def test_a_fork_of_the_parent_disturbs_nobody_and_has_no_pool(demo: Path, ask: Callable[..., Job]) -> None:
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG, check=False)
    assert done.stdout == "well\n", done.stderr


# ---- what the machine does --------------------------------------------------------------------------------------------


def test_a_machine_that_starts_no_process_is_named_tried_again_and_leaks_nothing(
    demo: Path, ask: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, tried = subprocess.Popen, []

    def fail(*arguments: Any, **more: Any) -> Any:
        tried.append(1)
        if len(tried) <= 4:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return start(*arguments, **more)

    monkeypatch.setattr(subprocess, "Popen", fail)
    with Pool(setup(demo), lenient(), CLOCK) as pool:
        with pytest.raises(ChildFailed, match="could not be started: Resource temporarily unavailable"):
            pool.run(ask())
        assert pool.run(ask()).value


@pytest.mark.parametrize("what", ["pipe", "socketpair"])
def test_a_process_out_of_descriptors_names_it_and_leaks_none(
    demo: Path, ask: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    pool = Pool(setup(demo, "exit", 1), lenient(), CLOCK)
    with pool:
        pool.ready(LONG)
        before = descriptors()
        with monkeypatch.context() as patch:
            place: Any = os if what == "pipe" else socket
            error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            patch.setattr(place, what, lambda *_: (_ for _ in ()).throw(error))
            with pytest.raises(ChildFailed, match="Too many open files"):
                pool.run(ask())
            assert descriptors() < before, "the lost child's are given back, and no new ones are kept"
        assert pool.run(ask()).value


def test_a_job_is_not_given_up_because_a_standby_cannot_be_started_while_another_child_works(
    demo: Path, ask: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    start = subprocess.Popen
    started: list[int] = []

    def only_one(*arguments: Any, **more: Any) -> Any:
        if started:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        started.append(1)
        return start(*arguments, **more)

    monkeypatch.setattr(subprocess, "Popen", only_one)
    monkeypatch.setattr("forecastd.supervise.keeper.LOOK_SECONDS", 0.1)
    with Pool(setup(demo, "slow:0.15@predicting"), lenient(standbys=1), CLOCK, observe=record) as pool:
        pool.ready(LONG)
        futures = [pool.submit(ask()) for _ in range(3)]
        assert all(future.result(LONG).value for future in futures)


def test_a_bundle_that_is_damaged_while_a_child_works_does_not_cost_the_jobs_that_it_can_do(
    demo: Path, bundle: Bundle, tmp_path: Path, ask: Callable[..., Job], record: Record
) -> None:
    path = tmp_path / "bundle"
    copy_bundle(demo, path, bundle.sha256)
    with Pool(setup(path), lenient(standbys=1), CLOCK, observe=record) as pool:
        pool.ready(LONG)
        one, two = record.wait("ready", 2)
        weights = path / "weights.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:1000])
        os.kill(two.pid, signal.SIGKILL)
        record.wait("died")
        futures = [pool.submit(ask()) for _ in range(5)]
        assert all(future.result(LONG).value for future in futures)
        record.wait("refused")
        assert pool.run(ask()).value
        os.kill(one.pid, signal.SIGKILL)  # now there is nobody left who knows the model
        record.wait("died", 2)
        with pytest.raises(ModelFailed, match="cut off") as caught:
            pool.run(ask())
        assert (caught.value.kind, caught.value.check) == ("bundle", "hash")
        weights.write_bytes(whole)
        assert pool.run(ask()).value, "and is mended when somebody asks again"


def test_a_job_whose_child_dies_is_told_soon_that_the_bundle_is_gone(
    demo: Path, bundle: Bundle, tmp_path: Path, ask: Callable[..., Job], record: Record
) -> None:
    path = tmp_path / "bundle"
    copy_bundle(demo, path, bundle.sha256)
    with Pool(setup(path, "hang@50"), lenient(standbys=1), CLOCK, observe=record) as pool:
        pool.ready(LONG)
        one, two = record.wait("ready", 2)
        future = pool.submit(ask(seconds=10 * LONG))
        (busy,) = record.wait("dispatched")
        (path / "manifest.json").unlink()
        os.kill(({one.pid, two.pid} - {busy.pid}).pop(), signal.SIGKILL)
        record.wait("refused")
        os.kill(busy.pid, signal.SIGKILL)
        assert isinstance(future.exception(LONG), ModelFailed)


# ---- who watches ------------------------------------------------------------------------------------------------------


def test_an_observer_that_raises_or_never_returns_harms_no_job(
    demo: Path, ask: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    go = threading.Event()

    def fail(_: Event) -> None:
        raise ZeroDivisionError

    def stick(_: Event) -> None:
        go.wait(LONG)

    for observe in (fail, stick):
        with Pool(setup(demo, "exit"), lenient(), CLOCK, observe=observe) as pool:
            assert pool.run(ask()).value
    go.set()


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


def thread_seconds(pool: Pool) -> float:
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
def test_a_child_that_closes_its_ends_does_not_keep_the_parent_busy(
    demo: Path, record: Record, child_is: Callable[[str], None], code: str, stops: bool
) -> None:
    child_is(code)
    with Pool(setup(demo), lenient(), CLOCK, observe=record) as pool:
        record.wait("ready")
        before = thread_seconds(pool)
        threading.Event().wait(1.5)
        assert thread_seconds(pool) - before < 0.7, "it would be all of the time if it looped"
        if stops:
            assert "closed its channel" in record.wait("died")[0].text


def test_a_job_is_not_given_to_a_child_that_has_hung_up(
    demo: Path, ask: Callable[..., Job], record: Record, child_is: Callable[[str], None]
) -> None:
    child_is("channel.sendall(say('ready')); channel.close(); threading.Event().wait()")
    with Pool(setup(demo), lenient(strikes=10**6, attempts=1), CLOCK, observe=record) as pool:
        record.wait("ready")
        wait_until(lambda: pool._keeper.slots[0].hung_up)
        with pytest.raises(ChildFailed, match="deadline"):
            pool.run(ask(seconds=3.0))
        record.wait("died")
        assert pool._thread.is_alive()


def test_a_child_that_talks_while_it_is_ended_does_not_keep_the_parent_busy(
    demo: Path, record: Record, child_is: Callable[[str], None]
) -> None:
    code = "import signal; signal.signal(signal.SIGTERM, lambda *_: os.write(2, b'no\\n'))\nchannel.sendall(say('ready'))\n"
    child_is(code + "os.write(2, b'x' * 5000); threading.Event().wait()")
    pool = Pool(setup(demo), lenient(limits=Limits(stopping=4)), CLOCK, observe=record)
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
    meter.join(LONG)
    closer.join(LONG)
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
def test_a_child_that_floods_takes_neither_memory_nor_the_parents_ear(
    demo: Path, ask: Callable[..., Job], record: Record, child_is: Callable[[str], None], code: str
) -> None:
    child_is(code)
    before = psutil.Process().memory_info().rss
    with Pool(setup(demo), lenient(), CLOCK) as pool:
        pool.ready(LONG)
        with pytest.raises(ChildFailed, match="deadline"):
            pool.run(ask(seconds=3.0))
        assert psutil.Process().memory_info().rss - before < 200 << 20
    assert pool.counts.late == 1


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
def test_nonsense_before_a_child_is_ready_is_named_and_ends_in_a_quarantine(
    demo: Path, record: Record, child_is: Callable[[str], None], code: str, why: str
) -> None:
    child_is(f"channel.sendall(say('progress', job=None, phase='loading', done=1, total=3))\n{code}")
    policy = lenient(strikes=2)
    with Pool(setup(demo), policy, CLOCK, observe=record) as pool, pytest.raises(ChildFailed) as caught:
        pool.ready(LONG)
    assert why in str(caught.value) or any(why in event.text for event in record.events)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("code", ["sys.exit(3)", "os._exit(0)", "os.abort()"])
def test_a_child_that_never_comes_as_far_as_its_model_is_named(
    demo: Path, child_is: Callable[[str], None], code: str, caplog: pytest.LogCaptureFixture
) -> None:
    child_is(code)
    with (
        Pool(setup(demo), lenient(attempts=2), CLOCK) as pool,
        pytest.raises(ChildFailed, match="died in phase starting"),
    ):
        pool.ready(LONG)
    assert pool.counts.quarantines == 0, "the model had no part in it"


def test_a_check_is_a_job_as_any_other(demo: Path, bundle: Bundle) -> None:
    with Pool(setup(demo, "exit@predicting"), lenient(), CLOCK) as pool:
        assert pool.run(check_job(CLOCK.monotonic() + LONG, 3)) == bundle.sha256
        assert pool.counts.crashes == 1


def test_what_a_model_prints_is_in_the_log_for_who_looks(
    demo: Path, ask: Callable[..., Job], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), Pool(setup(demo, "print:64"), lenient(), CLOCK) as pool:
        assert pool.run(ask()).value
    assert "a model that prints" in caplog.text
