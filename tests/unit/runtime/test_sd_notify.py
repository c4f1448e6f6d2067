"""What needs no socket of the notify protocol: whether to ping, and being silent."""

from __future__ import annotations

import logging

import pytest

from forecastd.runtime.sd_notify import SystemdNotifier, watchdog_interval


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
def test_watchdog_interval_is_half_for_the_addressed_process(
    usec: int | None, pid: int | None, seconds: float | None
) -> None:
    assert watchdog_interval(usec, pid, 7) == seconds


@pytest.mark.parametrize(
    ("address", "warnings"),
    [(None, 0), ("", 0), ("/nowhere/notify", 0), ("@", 0), ("@nobody-listens-here", 0), ("/" + "x" * 300, 0),
     ("@" + "x" * 300, 0), ("vsock:2:1234", 1), ("relative/notify", 1)],
)  # fmt: skip
def test_sd_notify_without_listener_does_nothing(
    address: str | None, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        notifier = SystemdNotifier(address)
        notifier.ready("serves topic 67")
        notifier.status("waits")
        notifier.watchdog()
        notifier.reloading(1)
        notifier.stopping("stopped by SIGTERM")
    assert len(caplog.records) == warnings
