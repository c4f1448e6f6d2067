"""What needs no socket of the notify protocol: whether to ping, and being silent."""

from __future__ import annotations

import logging

import pytest

from forecastd.notify import Notifier, watchdog_seconds


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        (60_000_000, 7, 30.0),
        (60_000_000, None, 30.0),
        (60_000_000, 8, None),  # meant for another process
        (None, 7, None),
        (None, None, None),
        (1, 7, 0.0000005),
    ],
)
def test_pings_come_twice_as_often_as_they_must_where_they_are_meant_for_this_process(
    usec: int | None, pid: int | None, seconds: float | None
) -> None:
    assert watchdog_seconds(usec, pid, 7) == seconds


@pytest.mark.parametrize(
    ("address", "warnings"),
    [(None, 0), ("", 0), ("/nowhere/notify", 0), ("@", 0), ("@nobody-listens-here", 0), ("/" + "x" * 300, 0),
     ("@" + "x" * 300, 0), ("vsock:2:1234", 1), ("relative/notify", 1)],
)  # fmt: skip
def test_without_a_manager_that_listens_nothing_happens(
    address: str | None, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        notifier = Notifier(address)
        notifier.ready("serves topic 67")
        notifier.status("waits")
        notifier.watchdog()
        notifier.reloading(1)
        notifier.stopping("stopped by SIGTERM")
    assert len(caplog.records) == warnings
