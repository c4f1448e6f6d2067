"""`ledger export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.ledger.common import TOPIC_OPTION, read_epochs
from forecastd.ledger.export import format_export, write_export
from forecastd.runtime.formatting import format_count


@click.command(name="export")
@TOPIC_OPTION
@click.option("--format", "form", type=click.Choice(["csv", "json"]), default="csv", show_default=True,
              help="JSON has every signature with its bytes, CSV the newest signature of each epoch.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="PATH", help="Write to a file instead of stdout.")
@click.option("--force", is_flag=True, help="Replace PATH if it exists.")
@click.pass_obj
def command(
    shared: dict[str, Any] | None, /, form: Any, out: Path | None, force: bool, topic_id: int | None
) -> None:  # fmt: skip
    """Export all epochs as CSV or JSON."""
    epochs = read_epochs(shared, topic_id=topic_id)
    text = format_export(epochs, form)
    if out is None:
        click.echo(text, nl=False)
        return
    write_export(text, out, force=force)
    click.echo(f"Wrote {format_count(len(epochs), 'epoch')} to {out}", err=True)
