"""What a check of the doctor's finds, and running checks side by side, each with a deadline.

A check is a function without arguments that gives findings, or raises an error of `errors.py`, which becomes one. What goes
wrong in one says nothing of the others: they go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from enum import StrEnum

from forecastd.clock import Clock
from forecastd.errors import ForecastdError


class Level(StrEnum):
    """How bad it is. SKIP: not looked at, and why."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True)
class Finding:
    """A line: which check, how bad, what was found with its cause, and the fix where there is something to mend."""

    check: str
    level: Level
    message: str
    fix: str = ""


@dataclass(frozen=True)
class DoctorCheck:
    """A check by its name, with the seconds it may take, and the fix for an error that names none itself."""

    name: str
    run: Callable[[], list[Finding]]
    seconds: float = 20.0
    fix: str = ""


class CheckRunner:
    """Checks under way. `findings` gives theirs in the order in which they were started."""

    def __init__(self, checks: Sequence[DoctorCheck], threads: Executor, clock: Clock) -> None:
        self._clock = clock
        self._started = clock.monotonic()
        self._futures: list[tuple[DoctorCheck, Future[list[Finding]]]] = [
            (check, threads.submit(check.run)) for check in checks
        ]

    def findings(self) -> Iterator[Finding]:
        """Each check's findings as soon as it and those before it are done, or its time is over."""
        for check, future in self._futures:
            remaining = check.seconds - (self._clock.monotonic() - self._started)
            try:
                yield from future.result(max(0.0, remaining))
            except TimeoutError:
                message = f"no result within {check.seconds:g} s"
                yield Finding(
                    check.name, Level.FAIL, message, "Look for a hung disk, network or process, and run again."
                )
            except ForecastdError as error:
                cause, fix = split_message(str(error))
                yield Finding(check.name, Level.FAIL, cause, fix or check.fix)


def split_message(message: str) -> tuple[str, str]:
    """A message of two sentences as cause and fix; of one, as the cause."""
    cause, dot, fix = message.partition(". ")
    return (f"{cause}.", fix) if dot else (message, "")
