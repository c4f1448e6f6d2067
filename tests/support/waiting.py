"""Waiting for a condition that another thread or process brings about."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

PAUSE_SECONDS = 0.02


def wait_until(condition: Callable[[], object], description: str = "the condition", seconds: float = 60.0) -> None:
    """Return as soon as `condition()` is true; fail the test when it is not within `seconds`, long for a busy machine."""
    pause = threading.Event()
    for _ in range(int(seconds / PAUSE_SECONDS)):
        if condition():
            return
        pause.wait(PAUSE_SECONDS)
    pytest.fail(f"{description} did not become true within {seconds:g} s")
