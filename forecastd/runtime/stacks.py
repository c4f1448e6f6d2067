"""The stacks of all threads of this process, for the log."""

from __future__ import annotations

import sys
import threading
import traceback


def format_stacks() -> str:
    """The current stack of every thread, each under the thread's name."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        parts.append(f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}")
    return "\n".join(parts)
