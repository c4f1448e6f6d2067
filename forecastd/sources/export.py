"""Candles as files that `file:PATH` reads back, number for number, made-up ones staying made up."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Literal

from forecastd.candles import COLUMNS, Candles
from forecastd.clock import iso
from forecastd.errors import NeedsHuman
from forecastd.sources.table import MARK
from forecastd.wholefile import write_whole

Format = Literal["csv", "parquet"]


def note(candles: Candles) -> str:
    """What a file says about where its candles came from."""
    origin = candles.provenance
    source = "_".join(origin.source.split())
    made_up = str(origin.synthetic).lower()
    return f"source={source} synthetic={made_up} fetched_at={iso(origin.fetched_at)} sha256={origin.sha256}"


def to_csv(candles: Candles) -> str:
    """CSV text: a comment with the provenance, a header, ISO times, numbers that read back exactly."""
    text = io.StringIO()
    text.write(f"# {MARK} {note(candles)}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["time", "symbol", *COLUMNS])
    for time, *values in zip(candles.time.tolist(), *(column.tolist() for column in candles.columns), strict=True):
        writer.writerow([iso(time), candles.symbol, *map(repr, values)])
    return text.getvalue()


def to_parquet(candles: Candles) -> bytes:
    """A Parquet file: times as UTC timestamps, the provenance in its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    times = pa.array(candles.time, type=pa.timestamp("s", tz="UTC"))
    columns = {"time": times, "symbol": pa.array([candles.symbol] * len(candles))}
    table = pa.table(columns | {name: getattr(candles, name) for name in COLUMNS})
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({MARK: note(candles)}), sink)
    return sink.getvalue()


def write(candles: Candles, path: Path, form: Format | None = None, *, force: bool = False) -> None:
    """Write `candles` to `path`, whole or not at all; the format is that of its name where none is given.

    Raises:
        NeedsHuman: the file exists and `force` is not given, its format is not known, or it cannot be written.
    """
    name = path.name.lower().removesuffix(".gz")
    form = form or ("parquet" if name.endswith((".parquet", ".pq")) else "csv" if name.endswith(".csv") else None)
    if form is None:
        raise NeedsHuman(f"What format {path} shall have is not clear. End it in .csv or .parquet, or give --format.")
    if path.exists() and not force:
        raise NeedsHuman(f"{path} exists. Give --force to replace it.")
    data = to_parquet(candles) if form == "parquet" else to_csv(candles).encode()
    if form == "csv" and path.name.lower().endswith(".gz"):
        data = gzip.compress(data, mtime=0)
    write_whole(path, data, mode=0o644)
