"""What nobody caught, in whichever thread, is logged: redacted, one line on the console, the traceback in the file."""

from __future__ import annotations

import logging
import sys
import threading
from types import TracebackType

log = logging.getLogger(__name__)


def install_hooks() -> None:
    """Log uncaught exceptions of the main thread, of other threads and of finalizers at CRITICAL; nothing prints them."""
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        log.warning("Interrupted.")
    else:
        log.critical("Unforeseen error; the program ends.", exc_info=(kind, error, trace))


def _uncaught_in_thread(told: threading.ExceptHookArgs) -> None:
    if told.exc_value is None or issubclass(told.exc_type, SystemExit):
        return
    name = told.thread.name if told.thread else "that has ended"
    log.critical(
        "Unforeseen error in the thread %s.", name, exc_info=(told.exc_type, told.exc_value, told.exc_traceback)
    )


def _unraisable(told: sys.UnraisableHookArgs) -> None:
    name = getattr(told.object, "__qualname__", type(told.object).__qualname__)
    where = f"{told.err_msg or 'Exception ignored in'} {name}"
    if told.exc_value is None:
        log.critical("Unforeseen error that could not be raised: %s (%s).", where, told.exc_type.__name__)
    else:
        trace = (told.exc_type, told.exc_value, told.exc_traceback)
        log.critical("Unforeseen error that could not be raised: %s.", where, exc_info=trace)
