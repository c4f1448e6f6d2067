"""The doctor's findings as lines that fit 80 columns and a log."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from cli.rows import console
from forecastd.doctor import Finding, Level

LEVEL_STYLES = {Level.OK: "green", Level.WARN: "bold yellow", Level.FAIL: "bold red", Level.SKIP: "dim"}


def print_finding(finding: Finding) -> None:
    """Print the level, the check and the finding; the fix on a separate line."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=4, no_wrap=True)
    table.add_column(width=9, no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    text = Text(finding.message)
    if finding.fix:
        text.append(f"\n{finding.fix}", style="bold")
    table.add_row(Text(finding.level, style=LEVEL_STYLES[finding.level]), finding.check, text)
    console().print(table)
