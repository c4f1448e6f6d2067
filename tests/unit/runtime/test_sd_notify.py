"""The interval of watchdog pings."""

from __future__ import annotations

import pytest

from forecastd.runtime.sd_notify import watchdog_interval


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
