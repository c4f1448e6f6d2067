"""Event delivery from a thread of its own: in order, bounded, and without effect on supervision when the observer fails."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from forecastd.supervise import detector
from forecastd.supervise.events import MAX_PENDING_EVENTS, EventDispatcher, ProcessEvent


def make_event(kind: Any = "launched", text: str = "") -> ProcessEvent:
    return ProcessEvent(kind, 1, detector.start(0, "l"), text=text)


def test_observer_receives_events_in_order_until_close() -> None:
    delivered: list[str] = []
    threads: set[threading.Thread] = set()

    def observe(event: ProcessEvent) -> None:
        delivered.append(event.text)
        threads.add(threading.current_thread())

    dispatcher = EventDispatcher(observe)
    for number in range(100):
        dispatcher.publish(make_event(text=str(number)))
    dispatcher.flush(60)
    assert delivered == [str(number) for number in range(100)]
    dispatcher.close(60)
    dispatcher.publish(make_event(text="late"))
    assert len(delivered) == 100
    assert threads
    assert threading.current_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


def test_stuck_observer_drops_progress_events_first() -> None:
    release = threading.Event()
    delivered: list[str] = []

    def observe(event: ProcessEvent) -> None:
        release.wait(60)
        delivered.append(event.kind)

    dispatcher = EventDispatcher(observe)
    for _ in range(2 * MAX_PENDING_EVENTS):
        dispatcher.publish(make_event("progress"))
    dispatcher.publish(make_event("hung"))
    for _ in range(2 * MAX_PENDING_EVENTS):
        dispatcher.publish(make_event("launched"))
    release.set()
    dispatcher.flush(60)
    assert "hung" in delivered
    assert len(delivered) <= MAX_PENDING_EVENTS + 1
    dispatcher.close(60)


def test_raising_observer_is_detached(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    raised: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: raised.append(arguments.exc_value))
    delivered: list[str] = []

    def observe(event: ProcessEvent) -> None:
        delivered.append(event.text)
        raise ZeroDivisionError

    dispatcher = EventDispatcher(observe)
    with caplog.at_level(logging.ERROR):
        dispatcher.publish(make_event(text="first"))
        dispatcher.flush(60)
        dispatcher.publish(make_event(text="second"))
        dispatcher.flush(60)
        dispatcher.close(60)
    assert delivered == ["first"]
    assert isinstance(raised[0], ZeroDivisionError)
    assert "was detached" in caplog.text


def test_flush_from_observer_thread_does_not_deadlock() -> None:
    done = threading.Event()

    def observe(_: ProcessEvent) -> None:
        dispatcher.flush(60)
        done.set()

    dispatcher = EventDispatcher(observe)
    dispatcher.publish(make_event())
    assert done.wait(60)
    dispatcher.close(60)
