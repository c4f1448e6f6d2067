"""Parquet as people save it: a column or an index of times, prices under any of many names."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecastd.candles import COLUMNS
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.sources.headers import find_layout
from forecastd.sources.table import (
    MADE_UP,
    MARK,
    MOST_ROWS,
    NO_NUMBER,
    NO_TIME,
    Table,
    choose_symbol,
    require_step,
    unreadable,
)
from forecastd.sources.times import TimeTextError, seconds_of_number, seconds_of_texts

MOST_ROWS_OF_ALL = 5 * MOST_ROWS  # symbols; a file of a few kB can hold as many


def read_parquet(path: Path, symbol: str, step: int) -> Table:
    """All rows of the pair `symbol`.

    Raises:
        SkipEpoch: `unreadable` or `empty`; the column is named.
        NeedsHuman: no column for time or a price, another pair, another step, too many rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            file = pq.ParquetFile(stream)
            return _read(path, file, symbol, step, sha256)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise unreadable(str(path), f"the Parquet file is cut off or damaged ({reason}). Download it again.") from None


def _read(path: Path, file: Any, symbol: str, step: int, sha256: str) -> Table:  # Any: pyarrow has no types
    import pyarrow as pa
    import pyarrow.compute as pc

    if file.metadata.num_rows > MOST_ROWS_OF_ALL:
        raise NeedsHuman(
            f"{path} holds {file.metadata.num_rows} rows; at most {MOST_ROWS_OF_ALL} are read. Cut it down."
        )
    names = list(file.schema_arrow.names)
    layout = find_layout(names, symbol)
    if layout is None:
        raise NeedsHuman(f"{path} has no columns for time, open, high, low and close; it has {', '.join(names[:12])}.")
    if not file.metadata.num_rows:
        raise SkipEpoch(f"{path} is empty: it has no candles.", check="empty")
    told = []
    places = (layout.time, layout.clock, *layout.prices, layout.volume, layout.symbol)
    data = file.read(columns=[names[place] for place in places if place is not None])
    if layout.symbol is not None:
        written = data.column(names[layout.symbol]).cast(pa.string())
        found = [str(name) for name in written.unique().to_pylist()]
        chosen = choose_symbol(str(path), found, symbol)
        data = data.filter(pc.equal(written, chosen))
        if len(found) > 1:
            told.append(f"took {len(data)} rows of {chosen}; the file holds {len(found)} symbols")
    time = _times(path, data, names[layout.time], None if layout.clock is None else names[layout.clock])
    require_step(str(path), time, step)
    values = np.zeros((len(time), len(COLUMNS)))
    for at, place in enumerate((*layout.prices, layout.volume)):
        if place is not None:
            values[:, at] = _numbers(path, data.column(names[place]), names[place])
    if layout.volume is None:
        told.append("the file has no volume; it is taken as 0")
    note = (file.schema_arrow.metadata or {}).get(MARK.encode(), b"").decode(errors="replace")
    return Table(time, values, sha256, bool(MADE_UP.search(f"{MARK} {note}")), tuple(told))


def _times(path: Path, data: Any, name: str, clock: str | None) -> NDArray[np.int64]:
    import pyarrow as pa

    column = data.column(name)
    if column.null_count:
        raise unreadable(str(path), f"column {name!r} has no time in row {_first_null(column)}.")
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(column.type):
        count = column.cast(pa.int64()).to_numpy()
        return np.asarray(count // {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit], dtype=np.int64)
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        counts = column.to_pylist()
        for row, value in enumerate(counts, start=1):
            if not -1e19 < value < 1e19:  # NaN too
                raise unreadable(str(path), f"row {row}, column {name!r}: {value} {NO_TIME}")
        return np.array([int(seconds_of_number(value)) for value in counts], dtype=np.int64)
    texts = [str(value) for value in column.to_pylist()]
    if clock is not None:
        texts = [f"{day} {hour}" for day, hour in zip(texts, data.column(clock).to_pylist(), strict=True)]
    try:
        return seconds_of_texts(texts)
    except TimeTextError as error:
        where = f"row {error.index + 1}, column {name!r}: {error.text[:40]!r}"
        if error.ambiguous:
            raise NeedsHuman(
                f"{path}, {where}: day and month can be mistaken for each other. Write times as 2019-10-17 09:00."
            ) from None
        raise unreadable(str(path), f"{where} {NO_TIME}") from None


def _numbers(path: Path, column: Any, name: str) -> NDArray[np.float64]:
    import pyarrow as pa

    try:
        return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    for row, value in enumerate(column.to_pylist(), start=1):
        try:
            float(value)
        except (TypeError, ValueError):
            if value is not None:
                raise unreadable(str(path), f"row {row}, column {name!r}: {str(value)[:40]!r} {NO_NUMBER}") from None
    raise unreadable(str(path), f"column {name!r} holds {column.type}, not numbers. Save it as numbers.")


def _first_null(column: Any) -> int:
    return int(np.argmax(column.is_null().to_numpy())) + 1
