"""The worker that skips to the newest tick."""

from __future__ import annotations

import threading

from forecastd.fleet.forecast.latest_tick_worker import LatestTickWorker

WAIT = 60.0


def test_latest_tick_worker_skips_to_newest_tick() -> None:
    started, release, finished = threading.Event(), threading.Event(), threading.Event()
    ticks: list[int] = []

    def work(tick: int) -> None:
        ticks.append(tick)
        started.set()
        assert release.wait(WAIT)
        if tick == 5:
            finished.set()

    worker = LatestTickWorker("the test", work)
    worker.start()
    worker.submit(1)
    assert started.wait(WAIT)
    for tick in (2, 3, 4, 5, 5):
        worker.submit(tick)
    release.set()
    assert finished.wait(WAIT)
    assert (ticks, worker.skipped_ticks) == ([1, 5], 3)
    worker.request_stop()
    worker.join(WAIT)
    assert not worker.is_alive()


def test_latest_tick_worker_waits_for_setup() -> None:
    ready, finished = threading.Event(), threading.Event()
    worker = LatestTickWorker("the test", lambda _: finished.set(), lambda: ready.wait(WAIT))
    worker.start()
    worker.submit(1)
    assert not finished.is_set()
    ready.set()
    assert finished.wait(WAIT)
    worker.request_stop()
    worker.join(WAIT)
    failing = LatestTickWorker("the test", lambda _: None, lambda: False)
    failing.start()
    failing.join(WAIT)
    assert not failing.is_alive()


def test_latest_tick_worker_counts_unexpected_errors() -> None:
    finished = threading.Event()

    def work(tick: int) -> None:
        if tick == 1:
            raise ZeroDivisionError
        finished.set()

    worker = LatestTickWorker("the test", work)
    worker.start()
    worker.submit(1)
    while not worker.errors:
        threading.Event().wait(0.001)
    worker.submit(2)
    assert finished.wait(WAIT)
    worker.request_stop()
    worker.join(WAIT)
    assert worker.errors == 1
