"""The outermost exception handler: an unexpected exception ends one unit of work, never the process.

Invariant: this is the only place in the project that catches every exception. None is lost: the console gets one
line, the log file the traceback, and the caller an `UnexpectedError` with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnexpectedError:
    """An exception that is not an error of `errors.py`, as one line of text."""

    reason: str


def run_guarded(description: str, work: Callable[[], T]) -> T | UnexpectedError:
    """Return the result of `work`. `description` names the work in the log, for example `the cycle of topic 67`."""
    try:
        return work()
    except Exception as error:  # the outermost handler, the only one of its kind
        reason = f"{type(error).__name__}: {error}"
        log.error("unexpected error in %s: %s.", description, reason, extra={"action": "unexpected_error"})  # noqa: TRY400 - one line on the console
        log.debug("%s", description, exc_info=error, extra={"action": "unexpected_error"})
        return UnexpectedError(reason)
