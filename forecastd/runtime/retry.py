"""Retries: an operation that fails temporarily is repeated after a growing pause."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from threading import Event
from typing import TypeVar

from forecastd.errors import ForecastdError, RetryLater, SkipEpoch

T = TypeVar("T")
log = logging.getLogger(__name__)

MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.5, 30.0  # between two attempts
MAX_DOUBLINGS = 20  # of a pause; more would not fit into a float after some months of failures


def backoff_seconds(failures: int, first: float, longest: float, *, jitter: float = 0.2) -> float:
    """The pause after `failures` failures in a row, 1 or more: `first`, doubled with each, at most `longest`.

    `jitter`: the pause varies at random by up to this fraction of it, so that many processes do not retry at once.
    """
    pause = min(first * 2.0 ** min(failures - 1, MAX_DOUBLINGS), longest)
    return pause * random.uniform(1 - jitter, 1 + jitter)  # noqa: S311 - jitter is no secret


class Pauses:
    """The pauses between the attempts of one operation. `wake` ends a pause, because the worker must stop."""

    def __init__(self, wake: Event) -> None:
        self._wake, self._failures, self._last_message = wake, 0, ""

    def wait(self, error: ForecastdError) -> bool:
        """Pause after an attempt failed with `error`; return whether there may be another one."""
        # An outage of hours gets one line, and another line each time its reason changes.
        level = logging.DEBUG if str(error) == self._last_message else logging.WARNING
        log.log(level, "%s Retrying.", error)
        self._last_message = str(error)
        self._failures += 1
        return not self._wake.wait(backoff_seconds(self._failures, MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS))


def retry_until_stopped(operation: Callable[[], T], wake: Event) -> T:
    """The result of `operation`, repeated on `RetryLater` and `SkipEpoch`.

    Raises:
        RetryLater: `wake` was set, because the worker must stop.
    """
    pauses = Pauses(wake)
    while True:
        try:
            return operation()
        except (RetryLater, SkipEpoch) as error:
            if not pauses.wait(error):
                raise RetryLater("Stopped before it succeeded.") from error
