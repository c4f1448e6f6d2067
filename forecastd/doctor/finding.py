"""The findings of the doctor's checks, and a runner that runs checks in parallel, each with a deadline.

A check is a function without arguments that returns findings, or raises an error of `errors.py`, which becomes a
finding. A check that fails does not stop the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from enum import StrEnum

from forecastd.clock import Clock
from forecastd.errors import ForecastdError


class Level(StrEnum):
    """Severity of a finding. SKIP: the check did not run; the message says why."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True)
class Finding:
    """The result of a check: its name, the severity, a message with the cause, and a fix if one is needed."""

    check: str
    level: Level
    message: str
    fix: str = ""


def ok(check: str, message: str) -> Finding:
    return Finding(check, Level.OK, message)


def warning(check: str, message: str, fix: str) -> Finding:
    return Finding(check, Level.WARN, message, fix)


def failure(check: str, message: str, fix: str) -> Finding:
    return Finding(check, Level.FAIL, message, fix)


def skipped(check: str, message: str) -> Finding:
    return Finding(check, Level.SKIP, message)


@dataclass(frozen=True)
class DoctorCheck:
    """A named check with its deadline in seconds, and the fix to show for an error without one."""

    name: str
    run: Callable[[], list[Finding]]
    seconds: float = 20.0
    fix: str = ""


class CheckRunner:
    """Runs checks in parallel. `findings` returns their findings in the order of the checks."""

    def __init__(self, checks: Sequence[DoctorCheck], threads: Executor, clock: Clock) -> None:
        self._clock = clock
        self._started = clock.monotonic()
        self._futures: list[tuple[DoctorCheck, Future[list[Finding]]]] = [
            (check, threads.submit(check.run)) for check in checks
        ]

    def findings(self) -> Iterator[Finding]:
        """Yield the findings of each check as soon as it and those before it are done or timed out."""
        for check, future in self._futures:
            remaining = check.seconds - (self._clock.monotonic() - self._started)
            try:
                yield from future.result(max(0.0, remaining))
            except TimeoutError:
                fix = "Look for a hanging disk, network or process, and run again."
                yield failure(check.name, f"no result within {check.seconds:g} s", fix)
            except ForecastdError as error:
                cause, fix = split_message(str(error))
                yield failure(check.name, cause, fix or check.fix)


def split_message(message: str) -> tuple[str, str]:
    """Split a message of two sentences into cause and fix; a single sentence is the cause."""
    cause, dot, fix = message.partition(". ")
    return (f"{cause}.", fix) if dot else (message, "")
