"""Parallel checks: one that fails or hangs does not stop the others."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from forecastd.clock import SystemClock
from forecastd.doctor import Finding, Level
from forecastd.doctor.finding import CheckRunner, DoctorCheck
from forecastd.errors import NeedsHuman, SkipEpoch


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def test_check_runner_continues_after_failure_and_hang(threads: ThreadPoolExecutor) -> None:
    never = Event()

    def hang() -> list[Finding]:
        never.wait()
        return []

    def fail() -> list[Finding]:
        raise NeedsHuman("The disk is gone. Put it back.")

    def skip() -> list[Finding]:
        raise SkipEpoch("Stale.")

    def good() -> list[Finding]:
        return [Finding("good", Level.OK, "fine"), Finding("good", Level.WARN, "nearly")]

    checks = [
        DoctorCheck("hangs", hang, 0.0),
        DoctorCheck("fails", fail),
        DoctorCheck("skips", skip),
        DoctorCheck("good", good),
    ]
    try:
        findings = list(CheckRunner(checks, threads, SystemClock()).findings())
    finally:
        never.set()
    assert [(finding.check, finding.level) for finding in findings] == [
        ("hangs", Level.FAIL), ("fails", Level.FAIL), ("skips", Level.FAIL), ("good", Level.OK), ("good", Level.WARN),
    ]  # fmt: skip
    assert (findings[1].message, findings[1].fix) == ("The disk is gone.", "Put it back.")


def test_check_runner_raises_unexpected_error(threads: ThreadPoolExecutor) -> None:
    def broken() -> list[Finding]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(CheckRunner([DoctorCheck("broken", broken)], threads, SystemClock()).findings())
