"""What the commands print for people: one row a stage, the same shape each time, readable in 80 columns and in a log."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from forecastd.inference.stages import StageResult

LABEL_WIDTH, SECONDS_WIDTH = 10, 9


def console() -> Console:
    """The console for results. Plain where it is not a terminal."""
    return Console(highlight=False)


def row(label: str, text: Text, seconds: str = "") -> Table:
    """A label, a text wrapped under itself, and a time where there is one."""
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
    """One stage as a row: name, what it found, seconds."""
    return row(stage.name, Text(stage.text), f"{stage.seconds:.3f} s")
