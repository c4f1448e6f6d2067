"""Write candles to files that `file:PATH` reads back exactly, including whether they are synthetic."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Literal

from forecastd.clock import to_iso
from forecastd.errors import NeedsHuman, require_extra
from forecastd.market.candles import COLUMNS, Candles
from forecastd.market.sources.table import PROVENANCE_MARKER
from forecastd.runtime.files import write_atomic

FileFormat = Literal["csv", "parquet"]


def provenance_note(candles: Candles) -> str:
    """The provenance note of a file."""
    provenance = candles.provenance
    source = "_".join(provenance.source.split())
    synthetic = str(provenance.synthetic).lower()
    return (
        f"source={source} synthetic={synthetic} fetched_at={to_iso(provenance.fetched_at)} sha256={provenance.sha256}"
    )


def to_csv(candles: Candles) -> str:
    """CSV text: a comment with the provenance, a header, ISO times, and numbers that read back exactly."""
    buffer = io.StringIO()
    buffer.write(f"# {PROVENANCE_MARKER} {provenance_note(candles)}\n")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["time", "symbol", *COLUMNS])
    for time, *values in zip(candles.time.tolist(), *(column.tolist() for column in candles.columns), strict=True):
        writer.writerow([to_iso(time), candles.symbol, *map(repr, values)])
    return buffer.getvalue()


def to_parquet(candles: Candles) -> bytes:
    """A Parquet file: times as UTC timestamps, the provenance in the metadata."""
    require_extra("files", "Writing a Parquet file")
    import pyarrow as pa
    import pyarrow.parquet as pq

    times = pa.array(candles.time, type=pa.timestamp("s", tz="UTC"))
    columns = {"time": times, "symbol": pa.array([candles.symbol] * len(candles))}
    table = pa.table(columns | {name: getattr(candles, name) for name in COLUMNS})
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({PROVENANCE_MARKER: provenance_note(candles)}), buffer)
    return buffer.getvalue()


def export_candles(candles: Candles, path: Path, file_format: FileFormat | None = None, *, force: bool = False) -> None:
    """Write `candles` to `path` atomically; without `file_format` the file name decides the format.

    Raises:
        NeedsHuman: the file exists and `force` is not given, its format is not known, or it cannot be written.
    """
    name = path.name.lower().removesuffix(".gz")
    file_format = file_format or (
        "parquet" if name.endswith((".parquet", ".pq")) else "csv" if name.endswith(".csv") else None
    )
    if file_format is None:
        raise NeedsHuman(
            f"The format of {path} is unknown. Use a name that ends in .csv or .parquet, or pass --format."
        )
    if path.exists() and not force:
        raise NeedsHuman(f"{path} already exists. Pass --force to replace it.")
    data = to_parquet(candles) if file_format == "parquet" else to_csv(candles).encode()
    if file_format == "csv" and path.name.lower().endswith(".gz"):
        data = gzip.compress(data, mtime=0)
    write_atomic(path, data, mode=0o644)
