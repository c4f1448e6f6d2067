"""The outermost handler: what nobody foresaw ends one piece of work, never the daemon.

It is the only place in the project where every exception is caught. Nothing is swallowed: the console gets one line, the
log file the traceback, and the caller an `Unforeseen` that says what to tell of it.
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
    """An error that nobody foresaw, in one line."""

    reason: str


def run_guarded(description: str, work: Callable[[], T]) -> T | UnexpectedError:
    """What `work` gives. `what` names it in the line that tells of an error, as in `the cycle of topic 67`."""
    try:
        return work()
    except Exception as error:  # the outermost handler, the only one of its kind
        reason = f"{type(error).__name__}: {error}"
        log.error("unforeseen error in %s: %s.", description, reason, extra={"action": "unforeseen"})  # noqa: TRY400 - one line on the console
        log.debug("%s", description, exc_info=error, extra={"action": "unforeseen"})
        return UnexpectedError(reason)
