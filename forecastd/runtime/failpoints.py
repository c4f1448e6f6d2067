"""Named places where a test may end or disturb the process. In production they do nothing."""

from __future__ import annotations

from collections.abc import Callable

FAILPOINTS = (
    "before sign", "after sign", "after commit", "before send", "after send", "after record", "before recover", "before register",
)  # fmt: skip
_hook: Callable[[str], None] | None = None


def failpoint(name: str) -> None:
    """Reached the place `name`."""
    if _hook is not None:
        _hook(name)


def install_hook(hook: Callable[[str], None] | None) -> None:
    """Have `hook` called with the name of every failpoint reached; None removes it."""
    global _hook  # noqa: PLW0603 - one process, one hook: that is the point
    _hook = hook
