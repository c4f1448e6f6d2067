"""A thread that works on the newest tick only."""

from __future__ import annotations

import threading

from forecastd.fleet.latest import Latest

WAIT = 60.0


def test_ticks_that_come_while_it_works_are_passed_over_but_for_the_newest() -> None:
    begun, go, done = threading.Event(), threading.Event(), threading.Event()
    seen: list[int] = []

    def work(tick: int) -> None:
        seen.append(tick)
        begun.set()
        assert go.wait(WAIT)
        if tick == 5:
            done.set()

    worker = Latest("the test", work)
    worker.start()
    worker.offer(1)
    assert begun.wait(WAIT)
    for tick in (2, 3, 4, 5, 5):
        worker.offer(tick)
    go.set()
    assert done.wait(WAIT)
    assert (seen, worker.passed_over) == ([1, 5], 3)
    worker.tell_to_stop()
    worker.join(WAIT)
    assert not worker.alive


def test_it_does_not_begin_before_it_is_ready_and_not_at_all_when_it_cannot_be() -> None:
    ready, done = threading.Event(), threading.Event()
    worker = Latest("the test", lambda _: done.set(), lambda: ready.wait(WAIT))
    worker.start()
    worker.offer(1)
    assert not done.is_set()
    ready.set()
    assert done.wait(WAIT)
    worker.tell_to_stop()
    worker.join(WAIT)
    never = Latest("the test", lambda _: None, lambda: False)
    never.start()
    never.join(WAIT)
    assert not never.alive


def test_an_error_that_nobody_foresaw_is_counted_and_the_next_tick_is_worked_on() -> None:
    done = threading.Event()

    def work(tick: int) -> None:
        if tick == 1:
            raise ZeroDivisionError
        done.set()

    worker = Latest("the test", work)
    worker.start()
    worker.offer(1)
    while not worker.faults:
        threading.Event().wait(0.001)
    worker.offer(2)
    assert done.wait(WAIT)
    worker.tell_to_stop()
    worker.join(WAIT)
    assert worker.faults == 1
