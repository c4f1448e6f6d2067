"""Trying again: what fails for a passing reason is done once more after a growing pause, while there is time for it."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from threading import Event
from typing import TypeVar

from forecastd.errors import RetryLater, SkipEpoch

T = TypeVar("T")
log = logging.getLogger(__name__)

MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = (
    0.5,
    30.0,
)  # seconds between two tries; each is twice the last, with a fifth of jitter


def retry_while(time_left: Callable[[], bool], operation: Callable[[], T], wake: Event) -> T:
    """What `work` gives, tried again on `RetryLater` and `SkipEpoch` while `time_left` says so.

    Raises:
        RetryLater, SkipEpoch: the last failure, when there is no time left.
        RetryLater: `wake` was set: the worker is to stop.
    """
    pause_seconds, last_message = MIN_PAUSE_SECONDS, ""
    while True:
        try:
            return operation()
        except (RetryLater, SkipEpoch) as error:
            failure = error
            if not time_left():
                raise
            # An outage of hours is worth one line, and each time a line that it is another one now.
            log.log(logging.DEBUG if str(error) == last_message else logging.WARNING, "%s Trying again.", error)
            last_message = str(error)
        if wake.wait(pause_seconds * random.uniform(0.8, 1.2)):  # noqa: S311 - jitter is no secret
            raise RetryLater("Stopped before a forecast was signed; the next run serves this epoch.")
        if not time_left():  # what the pause used up is not there for another try
            raise failure
        pause_seconds = min(2 * pause_seconds, MAX_PAUSE_SECONDS)
