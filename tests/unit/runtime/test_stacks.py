"""The stacks of all threads."""

from __future__ import annotations

from forecastd.runtime.stacks import format_stacks


def test_stacks_name_the_thread_and_the_function() -> None:
    stacks = format_stacks()
    assert "MainThread" in stacks
    assert "test_stacks_name_the_thread" in stacks
