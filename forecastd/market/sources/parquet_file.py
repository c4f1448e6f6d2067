"""Read candles from Parquet files with a time column or index and any of many column names."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.market.candles import COLUMNS
from forecastd.market.sources.headers import find_layout
from forecastd.market.sources.table import (
    INVALID_NUMBER,
    INVALID_TIME,
    MAX_ROWS,
    PROVENANCE_MARKER,
    SYNTHETIC_MARKER,
    CandleTable,
    choose_symbol,
    require_step,
    unreadable_error,
)
from forecastd.market.sources.times import TimeTextError, seconds_of_number, seconds_of_texts

MAX_FILE_ROWS = 5 * MAX_ROWS  # of all symbols; a file of a few kB can contain that many rows


def read_parquet(path: Path, symbol: str, step: int) -> CandleTable:
    """Read all rows of the pair `symbol`.

    Raises:
        SkipEpoch: `unreadable` or `empty`; the column is named.
        NeedsHuman: no column for time or a price, another pair, another step, too many rows.
    """
    try:
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            file = pq.ParquetFile(stream)
            return _read_table(path, file, symbol, step, sha256)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise unreadable_error(
            str(path), f"the Parquet file is truncated or damaged ({reason}). Download it again."
        ) from None


def _read_table(path: Path, file: Any, symbol: str, step: int, sha256: str) -> CandleTable:  # Any: pyarrow has no types
    if file.metadata.num_rows > MAX_FILE_ROWS:
        raise NeedsHuman(
            f"{path} holds {file.metadata.num_rows} rows; the limit is {MAX_FILE_ROWS}. Cut it to the required range."
        )
    names = list(file.schema_arrow.names)
    layout = find_layout(names, symbol)
    if layout is None:
        raise NeedsHuman(f"{path} has no columns for time, open, high, low and close; it has {', '.join(names[:12])}.")
    if not file.metadata.num_rows:
        raise SkipEpoch(f"{path} is empty: it has no candles.", check="empty")
    notes = []
    places = (layout.time, layout.time_of_day, *layout.prices, layout.volume, layout.symbol)
    data = file.read(columns=[names[place] for place in places if place is not None])
    if layout.symbol is not None:
        symbol_column = data.column(names[layout.symbol]).cast(pa.string())
        symbols = [str(name) for name in symbol_column.unique().to_pylist()]
        symbol_name = choose_symbol(str(path), symbols, symbol)
        data = data.filter(pc.equal(symbol_column, symbol_name))
        if len(symbols) > 1:
            notes.append(f"took {len(data)} rows of {symbol_name}; the file has {len(symbols)} symbols")
    time = _parse_times(
        path, data, names[layout.time], None if layout.time_of_day is None else names[layout.time_of_day]
    )
    require_step(str(path), time, step)
    values = np.zeros((len(time), len(COLUMNS)))
    for index, place in enumerate((*layout.prices, layout.volume)):
        if place is not None:
            values[:, index] = _parse_numbers(path, data.column(names[place]), names[place])
    if layout.volume is None:
        notes.append("the file has no volume; it is taken as 0")
    note = (file.schema_arrow.metadata or {}).get(PROVENANCE_MARKER.encode(), b"").decode(errors="replace")
    return CandleTable(time, values, sha256, bool(SYNTHETIC_MARKER.search(f"{PROVENANCE_MARKER} {note}")), tuple(notes))


def _parse_times(path: Path, data: Any, name: str, time_of_day_name: str | None) -> NDArray[np.int64]:
    column = data.column(name)
    if column.null_count:
        raise unreadable_error(str(path), f"column {name!r} has no time in row {_first_null(column)}.")
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(column.type):
        ticks = column.cast(pa.int64()).to_numpy()
        return np.asarray(ticks // {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit], dtype=np.int64)
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        counts = column.to_pylist()
        for row, value in enumerate(counts, start=1):
            if not -1e19 < value < 1e19:  # NaN too
                raise unreadable_error(str(path), f"row {row}, column {name!r}: {value} {INVALID_TIME}")
        return np.array([int(seconds_of_number(value)) for value in counts], dtype=np.int64)
    texts = [str(value) for value in column.to_pylist()]
    if time_of_day_name is not None:
        texts = [f"{day} {hour}" for day, hour in zip(texts, data.column(time_of_day_name).to_pylist(), strict=True)]
    try:
        return seconds_of_texts(texts)
    except TimeTextError as error:
        where = f"row {error.index + 1}, column {name!r}: {error.text[:40]!r}"
        if error.ambiguous:
            raise NeedsHuman(
                f"{path}, {where}: day and month are ambiguous. Write times as 2019-10-17 09:00."
            ) from None
        raise unreadable_error(str(path), f"{where} {INVALID_TIME}") from None


def _parse_numbers(path: Path, column: Any, name: str) -> NDArray[np.float64]:
    try:
        return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    for row, value in enumerate(column.to_pylist(), start=1):
        try:
            float(value)
        except (TypeError, ValueError):
            if value is not None:
                raise unreadable_error(
                    str(path), f"row {row}, column {name!r}: {str(value)[:40]!r} {INVALID_NUMBER}"
                ) from None
    raise unreadable_error(str(path), f"column {name!r} holds {column.type}, not numbers. Save it as numbers.")


def _first_null(column: Any) -> int:
    return int(np.argmax(column.is_null().to_numpy())) + 1
