"""Shows something that changes: refreshed in place on a terminal, printed repeatedly elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import Event

from rich.console import RenderableType
from rich.live import Live

from cli.rows import console


def show_live(render: Callable[[], RenderableType], stop: Event, seconds: float) -> None:
    """Show the result of `render`, refreshed every `seconds`, until `stop` is set or the output is closed.

    The last one stays on the terminal. If it is taller than the terminal, its beginning is shown.
    """
    screen = console()
    if not screen.is_terminal:
        repeat(lambda: screen.print(render(), "", sep="\n"), stop, seconds)
        return
    with Live(render(), console=screen, auto_refresh=False) as live:
        live.refresh()
        while not stop.wait(seconds):
            live.update(render(), refresh=True)


def repeat(action: Callable[[], None], stop: Event, seconds: float) -> None:
    """Call `action` every `seconds`, until `stop` is set or the output is closed."""
    while True:
        action()
        if getattr(sys.stdout, "broken", None) is not None or stop.wait(seconds):
            return
