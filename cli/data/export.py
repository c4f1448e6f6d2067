"""`data export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.data.common import load_report, range_options
from forecastd.market.sources.export import export_candles, to_csv, to_parquet
from forecastd.runtime.formatting import format_count


@click.command(name="export")
@click.argument("path", type=click.Path(path_type=Path, allow_dash=True))
@range_options
@click.option(
    "--format", "form", type=click.Choice(["csv", "parquet"]), help="Default: by the file name; CSV for stdout."
)
@click.option("--force", is_flag=True, help="Replace PATH if it exists.")
@click.pass_obj
def command(shared: dict[str, Any], /, path: Path, form: Any, force: bool, **options: Any) -> None:
    """Write candles to a file or to stdout.

    PATH ends in .csv, .csv.gz or .parquet, or is - for stdout. `--source file:PATH` reads the file back.
    """
    candles, _ = load_report(shared, **options)
    if str(path) == "-":
        click.echo(to_parquet(candles) if form == "parquet" else to_csv(candles), nl=False)
        return
    export_candles(candles, path, form, force=force)
    count = format_count(len(candles), "candle")
    click.echo(f"Wrote {count} of {candles.provenance.source} to {path}", err=True)
