"""CSV as people download it: comments on top, any of many headers or none, any order, plain or gzipped.

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

from forecastd.candles import COLUMNS
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.sources.headers import HEADERLESS, Layout, find_layout
from forecastd.sources.numerals import NumeralError, Numerals
from forecastd.sources.table import (
    MADE_UP,
    MOST_BYTES,
    MOST_ROWS,
    NO_TIME,
    Table,
    choose_symbol,
    require_step,
    same_pair,
    unreadable,
)
from forecastd.sources.times import TimeTextError, seconds_of_texts

LONGEST_LINE = 65_536
PREAMBLE = 30  # lines in which a header must have come
EARLY = 5_000  # rows after which the step is looked at: a file of minutes need not be read to its end


def read_csv(path: Path, symbol: str, step: int) -> Table:
    """All rows of the pair `symbol`.

    Raises:
        SkipEpoch: `unreadable` or `empty`; the line and the column are named.
        NeedsHuman: no column for time or a price, another pair, another step.
    """
    reader = _Reader(path, symbol, step)
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            reader.read(cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise unreadable(str(path), f"the gzip archive is cut off or damaged ({error}). Download it again.") from None
    except csv.Error as error:
        raise unreadable(str(path), f"line {reader.line} is not CSV ({error}).") from None
    return reader.table()


class _Reader:
    """One pass over one file."""

    def __init__(self, path: Path, symbol: str, step: int) -> None:
        self.path, self.symbol, self.step = str(path), symbol, step
        self.digest = hashlib.sha256()
        self.line = 0
        self.made_up = False
        self.names: list[str] = []
        self.texts: list[str] = []
        self.lines = array("q")
        self.values = array("d")
        self.symbols: dict[str, bool] = {}
        self.numerals = Numerals()

    def read(self, stream: BinaryIO) -> None:
        lines = self._lines(stream)
        layout, first = self._header(lines)
        rows = csv.reader(lines, delimiter=self.delimiter)
        if first is not None:
            self._row(first, layout)
        for row in rows:
            if row and not (len(row) == 1 and not row[0].strip()):
                self._row(row, layout)
            if len(self.texts) == EARLY:
                require_step(self.path, self._times(), self.step)
            if len(self.texts) > MOST_ROWS:
                raise NeedsHuman(
                    f"{self.path} holds more than {MOST_ROWS} rows of {self.symbol}. Cut it to what is needed."
                )

    def table(self) -> Table:
        if not self.texts:
            if self.symbols:
                choose_symbol(self.path, list(self.symbols), self.symbol)
            raise SkipEpoch(f"{self.path} is empty: it has no candles.", check="empty")
        try:
            self.numerals.settle()
        except NumeralError as error:
            raise unreadable(self.path, str(error)) from None
        time = self._times()
        require_step(self.path, time, self.step)
        told = []
        if len(self.symbols) > 1:
            taken = [name for name, fits in self.symbols.items() if fits]
            if len(taken) > 1:
                raise NeedsHuman(
                    f"{self.path} holds {', '.join(taken)}, each of which could be {self.symbol}. Keep one."
                )
            told.append(f"took {len(time)} rows of {taken[0]}; the file holds {len(self.symbols)} symbols")
        if self.layout.volume is None:
            told.append("the file has no volume; it is taken as 0")
        values = np.frombuffer(self.values, dtype=np.float64).reshape(-1, len(COLUMNS))
        return Table(time, values, self.digest.hexdigest(), self.made_up, tuple(told))

    def _lines(self, stream: BinaryIO) -> Iterator[str]:
        size = 0
        while raw := stream.readline(LONGEST_LINE):
            self.line += 1
            size += len(raw)
            self.digest.update(raw)
            if size > MOST_BYTES:
                raise NeedsHuman(f"{self.path} unpacks to more than {MOST_BYTES >> 20} MB. Cut it to what is needed.")
            if len(raw) == LONGEST_LINE and not raw.endswith(b"\n"):
                raise unreadable(
                    self.path, f"line {self.line} is longer than {LONGEST_LINE} characters; this is no CSV."
                )
            try:
                text = raw.decode("utf-8-sig" if self.line == 1 else "utf-8")
            except UnicodeDecodeError:
                raise unreadable(
                    self.path, f"line {self.line} is not UTF-8 text. Save the file as UTF-8 CSV."
                ) from None
            if "\0" in text:
                raise unreadable(self.path, f"line {self.line} holds binary data; this is no CSV.")
            if text.lstrip().startswith("#"):
                self.made_up |= bool(MADE_UP.search(text))
            else:
                yield text

    def _header(self, lines: Iterator[str]) -> tuple[Layout, list[str] | None]:
        """The layout, and the first row where it is data already."""
        seen: list[str] = []
        self.delimiter = ","
        for _, text in zip(range(PREAMBLE), lines, strict=False):
            if not text.strip():
                continue
            # A comma may be a decimal mark where another delimiter is there for all columns.
            self.delimiter = next((mark for mark in ";\t|" if text.count(mark) >= len(COLUMNS) - 1), None) or max(
                ",;\t|", key=text.count
            )
            self.numerals = Numerals(commas_are_decimal=self.delimiter != ",")
            fields = next(csv.reader([text], delimiter=self.delimiter))
            layout = find_layout(fields, self.symbol)
            if layout is not None:
                self.names, self.layout = [name.strip() for name in fields], layout
                self.width = len(fields)
                return layout, None
            if len(fields) > len(COLUMNS) and all(self._is_number(field) for field in fields[: len(COLUMNS) + 1]):
                self.names, self.layout = ["time", *COLUMNS], HEADERLESS
                self.width = len(fields)
                return HEADERLESS, fields
            seen.append(text.strip()[:60])
        if not seen:
            raise SkipEpoch(f"{self.path} is empty: it has no lines.", check="empty")
        raise NeedsHuman(
            f"{self.path} has no line that names columns for time, open, high, low and close; it begins with {seen[0]!r}. "
            "Is it a file of candles?"
        )

    def _row(self, row: list[str], layout: Layout) -> None:
        try:
            if layout.symbol is not None:
                name = row[layout.symbol].strip()
                if name not in self.symbols:
                    self.symbols[name] = same_pair(name, self.symbol)
                if not self.symbols[name]:
                    return
            text = row[layout.time] if layout.clock is None else f"{row[layout.time]} {row[layout.clock]}"
            fields = [row[place] for place in layout.prices]
            volume = row[layout.volume] if layout.volume is not None else "0"
        except IndexError:
            raise self._miscounted(row, "Is it cut off?") from None
        if len(row) > self.width and any(field.strip() for field in row[self.width :]):
            raise self._miscounted(row, "A comma inside a number must stand in quotes.")
        try:
            self.values.extend([*map(float, fields), float(volume)])
            self.numerals.see_plain(fields, volume, self.line)
        except ValueError:
            places = (*layout.prices, layout.volume)
            self.values.extend([self._number(field, at) for field, at in zip((*fields, volume), places, strict=True)])
        self.texts.append(text)
        self.lines.append(self.line)

    def _miscounted(self, row: list[str], hint: str) -> SkipEpoch:
        return unreadable(self.path, f"line {self.line} has {len(row)} fields where {self.width} are expected. {hint}")

    def _number(self, text: str, place: int | None) -> float:
        text = text.strip()
        if not text:
            return float("nan")  # no value: the checks say whether it matters
        name = self.names[place] if place is not None and place < len(self.names) else "?"
        try:
            return self.numerals.read(text, f"line {self.line}, column {name!r}", self.line)
        except NumeralError as error:
            raise unreadable(self.path, str(error)) from None

    def _is_number(self, text: str) -> bool:
        try:
            Numerals(commas_are_decimal=self.delimiter != ",").read(text, "", 0)
        except NumeralError:
            return False
        return True

    def _times(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        try:
            return seconds_of_texts(self.texts)
        except TimeTextError as error:
            where = f"line {self.lines[error.index]}, column {self.names[self.layout.time]!r}"
            if error.ambiguous:
                raise NeedsHuman(
                    f"{self.path}, {where}: day and month of {error.text!r} can be mistaken for each other. "
                    "Write times as 2019-10-17 09:00."
                ) from None
            raise unreadable(self.path, f"{where}: {error.text[:40]!r} {NO_TIME}") from None
