"""Failpoints: named points of the code where a test may kill or disturb the process. In production they do nothing."""

from __future__ import annotations

from collections.abc import Callable

FAILPOINTS = (
    "before sign", "after sign", "after commit", "before send", "after send", "after record", "before recover",
    "before register",
)  # fmt: skip
_hook: Callable[[str], None] | None = None


def failpoint(name: str) -> None:
    """Call the hook, if there is one, with the name of this failpoint."""
    if _hook is not None:
        _hook(name)


def install_hook(hook: Callable[[str], None] | None) -> None:
    """Set the hook that is called with the name of every failpoint reached; None removes it."""
    global _hook  # noqa: PLW0603 - one hook per process is intended
    _hook = hook
