"""Retries: an operation that fails temporarily is repeated after a growing pause while there is time."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from threading import Event
from typing import TypeVar

from forecastd.errors import RetryLater, SkipEpoch

T = TypeVar("T")
log = logging.getLogger(__name__)

MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.5, 30.0  # between two attempts; each is twice the last, with 20 % jitter


def retry_while(time_left: Callable[[], bool], operation: Callable[[], T], wake: Event) -> T:
    """The result of `operation`, repeated on `RetryLater` and `SkipEpoch` while `time_left()` is true.

    Raises:
        RetryLater, SkipEpoch: the last failure, when there is no time left.
        RetryLater: `wake` was set, because the worker must stop.
    """
    pause_seconds, last_message = MIN_PAUSE_SECONDS, ""
    while True:
        try:
            return operation()
        except (RetryLater, SkipEpoch) as error:
            failure = error
            if not time_left():
                raise
            # An outage of hours gets one line, and another line each time its reason changes.
            log.log(logging.DEBUG if str(error) == last_message else logging.WARNING, "%s Retrying.", error)
            last_message = str(error)
        if wake.wait(pause_seconds * random.uniform(0.8, 1.2)):  # noqa: S311 - jitter is no secret
            raise RetryLater("Stopped before a forecast was signed; the next run serves this epoch.")
        if not time_left():  # the pause has used the rest of the time
            raise failure
        pause_seconds = min(2 * pause_seconds, MAX_PAUSE_SECONDS)
