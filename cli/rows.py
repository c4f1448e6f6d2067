"""The rows that commands print for people: always the same form, readable in 80 columns and in a log."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from forecastd.inference.stages import StageResult

LABEL_WIDTH, SECONDS_WIDTH = 10, 9


def console() -> Console:
    """The console for results; plain text when stdout is not a terminal."""
    return Console(highlight=False)


def row(label: str, text: Text, seconds: str = "") -> Table:
    """A label, a wrapped text, and a duration if there is one."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=LABEL_WIDTH, no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    if not seconds:
        table.add_row(label, text)
        return table
    table.add_column(width=SECONDS_WIDTH, justify="right", no_wrap=True)
    table.add_row(label, text, seconds)
    return table


def stage_row(stage: StageResult) -> Table:
    """A stage as a row: its name, its result, its duration."""
    return row(stage.name, Text(stage.text), f"{stage.seconds:.3f} s")
