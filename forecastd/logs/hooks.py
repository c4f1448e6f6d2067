"""Hooks that log uncaught exceptions of every thread: redacted, one line on the console, the traceback in the file."""

from __future__ import annotations

import logging
import sys
import threading
from types import TracebackType

log = logging.getLogger(__name__)


def install_hooks() -> None:
    """Log uncaught exceptions of the main thread, other threads and finalizers at CRITICAL instead of printing them."""
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable


def _log_uncaught(error_type: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(error_type, KeyboardInterrupt):
        log.warning("Interrupted.")
    else:
        log.critical("Unexpected error; the program exits.", exc_info=(error_type, error, traceback))


def _log_uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None and not issubclass(arguments.exc_type, SystemExit):
        name = arguments.thread.name if arguments.thread else "(already ended)"
        log.critical("Unexpected error in the thread %s.", name, exc_info=arguments.exc_value)


def _log_unraisable(arguments: sys.UnraisableHookArgs) -> None:
    name = getattr(arguments.object, "__qualname__", type(arguments.object).__qualname__)
    location = f"{arguments.err_msg or 'Exception ignored in'} {name}"
    log.critical("Unexpected error that could not be raised: %s.", location, exc_info=arguments.exc_value)
