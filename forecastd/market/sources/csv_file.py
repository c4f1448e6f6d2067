"""Read candles from CSV files as vendors offer them: with comments, many kinds of headers or none, plain or gzipped.

It is read line by line with the standard library, so that an error can name its line, a huge file costs little memory,
and a program that reads one small file does not wait for a table library to load.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.market.candles import COLUMNS
from forecastd.market.sources.headers import HEADERLESS, ColumnLayout, find_layout
from forecastd.market.sources.numerals import NumberFormatError, NumberParser
from forecastd.market.sources.table import (
    INVALID_TIME,
    MAX_BYTES,
    MAX_ROWS,
    SYNTHETIC_MARKER,
    CandleTable,
    choose_symbol,
    is_same_pair,
    require_step,
    unreadable_error,
)
from forecastd.market.sources.times import TimeTextError, seconds_of_texts
from forecastd.runtime.formatting import format_count

MAX_LINE_BYTES = 65_536
MAX_PREAMBLE_LINES = 30  # a header must come within these lines
STEP_CHECK_ROWS = 5_000  # rows after which the step is checked, so that a file of minutes is not read to its end


def read_csv(path: Path, symbol: str, step: int) -> CandleTable:
    """Read all rows of the pair `symbol`.

    Raises:
        SkipEpoch: `unreadable` or `empty`; the line and the column are named.
        NeedsHuman: no column for time or a price, another pair, another step.
    """
    reader = _CsvReader(path, symbol, step)
    try:
        with path.open("rb") as raw:
            is_gzip = raw.peek(2)[:2] == b"\x1f\x8b"
            reader.read(cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if is_gzip else raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise unreadable_error(
            str(path), f"the gzip archive is truncated or damaged ({error}). Download it again."
        ) from None
    except csv.Error as error:
        raise unreadable_error(str(path), f"line {reader.line_number} is not CSV ({error}).") from None
    return reader.to_table()


class _CsvReader:
    """Parses one file in one pass."""

    def __init__(self, path: Path, symbol: str, step: int) -> None:
        self.path, self.symbol, self.step = str(path), symbol, step
        self.digest = hashlib.sha256()
        self.line_number = 0
        self.synthetic = False
        self.column_names: list[str] = []
        self.time_texts: list[str] = []
        self.line_numbers = array("q")
        self.values = array("d")
        self.symbol_matches: dict[str, bool] = {}
        self.number_parser = NumberParser()

    def read(self, stream: BinaryIO) -> None:
        lines = self._read_lines(stream)
        layout, first_row = self._read_header(lines)
        rows = csv.reader(lines, delimiter=self.delimiter)
        if first_row is not None:
            self._add_row(first_row, layout)
        for row in rows:
            if row and not (len(row) == 1 and not row[0].strip()):
                self._add_row(row, layout)
            if len(self.time_texts) == STEP_CHECK_ROWS:
                require_step(self.path, self._parse_times(), self.step)
            if len(self.time_texts) > MAX_ROWS:
                raise NeedsHuman(
                    f"{self.path} has more than {MAX_ROWS} rows of {self.symbol}. Cut it to the required range."
                )

    def to_table(self) -> CandleTable:
        if not self.time_texts:
            if self.symbol_matches:
                choose_symbol(self.path, list(self.symbol_matches), self.symbol)
            raise SkipEpoch(f"{self.path} is empty: it has no candles.", check="empty")
        try:
            self.number_parser.require_consistent()
        except NumberFormatError as error:
            raise unreadable_error(self.path, str(error)) from None
        time = self._parse_times()
        require_step(self.path, time, self.step)
        notes = []
        if len(self.symbol_matches) > 1:
            matches = [name for name, fits in self.symbol_matches.items() if fits]
            if len(matches) > 1:
                raise NeedsHuman(
                    f"{self.path} contains {', '.join(matches)}, each of which could be {self.symbol}. Keep one of them."
                )
            notes.append(f"took {len(time)} rows of {matches[0]}; the file has {len(self.symbol_matches)} symbols")
        if self.layout.volume is None:
            notes.append("the file has no volume; it is taken as 0")
        values = np.frombuffer(self.values, dtype=np.float64).reshape(-1, len(COLUMNS))
        return CandleTable(time, values, self.digest.hexdigest(), self.synthetic, tuple(notes))

    def _read_lines(self, stream: BinaryIO) -> Iterator[str]:
        size = 0
        while raw := stream.readline(MAX_LINE_BYTES):
            self.line_number += 1
            size += len(raw)
            self.digest.update(raw)
            if size > MAX_BYTES:
                raise NeedsHuman(
                    f"{self.path} unpacks to more than {MAX_BYTES >> 20} MB. Cut it to the required range."
                )
            if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
                raise unreadable_error(
                    self.path,
                    f"line {self.line_number} is longer than {MAX_LINE_BYTES} characters; the file is not CSV.",
                )
            try:
                text = raw.decode("utf-8-sig" if self.line_number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise unreadable_error(
                    self.path, f"line {self.line_number} is not UTF-8 text. Save the file as UTF-8 CSV."
                ) from None
            if "\0" in text:
                raise unreadable_error(self.path, f"line {self.line_number} contains binary data; the file is not CSV.")
            if text.lstrip().startswith("#"):
                self.synthetic |= bool(SYNTHETIC_MARKER.search(text))
            else:
                yield text

    def _read_header(self, lines: Iterator[str]) -> tuple[ColumnLayout, list[str] | None]:
        """The column layout, and the first row if the file has no header."""
        preamble: list[str] = []
        self.delimiter = ","
        for _, text in zip(range(MAX_PREAMBLE_LINES), lines, strict=False):
            if not text.strip():
                continue
            # If another delimiter separates all columns, a comma may be a decimal mark.
            self.delimiter = next((mark for mark in ";\t|" if text.count(mark) >= len(COLUMNS) - 1), None) or max(
                ",;\t|", key=text.count
            )
            self.number_parser = NumberParser(commas_are_decimal=self.delimiter != ",")
            fields = next(csv.reader([text], delimiter=self.delimiter))
            layout = find_layout(fields, self.symbol)
            if layout is not None:
                self.column_names, self.layout = [name.strip() for name in fields], layout
                self.width = len(fields)
                return layout, None
            if len(fields) > len(COLUMNS) and all(self._is_number(field) for field in fields[: len(COLUMNS) + 1]):
                self.column_names, self.layout = ["time", *COLUMNS], HEADERLESS
                self.width = len(fields)
                return HEADERLESS, fields
            preamble.append(text.strip()[:60])
        if not preamble:
            raise SkipEpoch(f"{self.path} is empty: it has no lines.", check="empty")
        raise NeedsHuman(
            f"{self.path} has no header line with columns for time, open, high, low and close; it begins with "
            f"{preamble[0]!r}. Check that it is a file of candles."
        )

    def _add_row(self, row: list[str], layout: ColumnLayout) -> None:
        try:
            if layout.symbol is not None:
                name = row[layout.symbol].strip()
                if name not in self.symbol_matches:
                    self.symbol_matches[name] = is_same_pair(name, self.symbol)
                if not self.symbol_matches[name]:
                    return
            text = row[layout.time] if layout.time_of_day is None else f"{row[layout.time]} {row[layout.time_of_day]}"
            fields = [row[place] for place in layout.prices]
            volume = row[layout.volume] if layout.volume is not None else "0"
        except IndexError:
            raise self._field_count_error(row, "Check whether the file is truncated.") from None
        if len(row) > self.width and any(field.strip() for field in row[self.width :]):
            raise self._field_count_error(row, "Put a number that contains a comma in quotes.")
        try:
            self.values.extend([*map(float, fields), float(volume)])
            self.number_parser.record_decimal_point(fields, volume, self.line_number)
        except ValueError:
            places = (*layout.prices, layout.volume)
            self.values.extend(
                [self._parse_number(field, column) for field, column in zip((*fields, volume), places, strict=True)]
            )
        self.time_texts.append(text)
        self.line_numbers.append(self.line_number)

    def _field_count_error(self, row: list[str], hint: str) -> SkipEpoch:
        fields = format_count(len(row), "field")
        return unreadable_error(self.path, f"line {self.line_number} has {fields} instead of {self.width}. {hint}")

    def _parse_number(self, text: str, place: int | None) -> float:
        text = text.strip()
        if not text:
            return float("nan")  # no value; the candle checks decide whether it matters
        name = self.column_names[place] if place is not None and place < len(self.column_names) else "?"
        try:
            return self.number_parser.parse(text, f"line {self.line_number}, column {name!r}", self.line_number)
        except NumberFormatError as error:
            raise unreadable_error(self.path, str(error)) from None

    def _is_number(self, text: str) -> bool:
        try:
            NumberParser(commas_are_decimal=self.delimiter != ",").parse(text, "", 0)
        except NumberFormatError:
            return False
        return True

    def _parse_times(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        try:
            return seconds_of_texts(self.time_texts)
        except TimeTextError as error:
            where = f"line {self.line_numbers[error.index]}, column {self.column_names[self.layout.time]!r}"
            if error.ambiguous:
                raise NeedsHuman(
                    f"{self.path}, {where}: day and month of {error.text!r} are ambiguous. "
                    "Write times as 2019-10-17 09:00."
                ) from None
            raise unreadable_error(self.path, f"{where}: {error.text[:40]!r} {INVALID_TIME}") from None
