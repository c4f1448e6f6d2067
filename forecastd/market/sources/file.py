"""`file:PATH`: candles from a file that a user downloaded, or that `data export` wrote.

Invariant: the content decides the file's format, never its name, and no content is ever executed. The provenance note
of `data export` marks synthetic candles, so they stay synthetic after an export.
"""

from __future__ import annotations

import os
import stat
from functools import lru_cache
from pathlib import Path

from forecastd.errors import NeedsHuman, SkipEpoch, require_extra
from forecastd.market.candles import HOUR, Candles, Provenance, repair
from forecastd.market.sources.csv_file import read_csv
from forecastd.market.sources.table import MAX_BYTES, CandleTable

UNSUPPORTED_FORMATS = {
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\x89HDF": "an HDF5 file; export it as CSV or Parquet",
    b"SQLite format 3": "an SQLite database; export the table as CSV",
    b"BZh": "a bzip2 archive; unpack it",
    b"\xfd7zXZ": "an xz archive; unpack it",
    b"(\xb5/\xfd": "a zstd archive; unpack it",
    b"%PDF": "a PDF",
    b"<!DOCTYPE": "a web page, not the file; check the download link",
    b"<html": "a web page, not the file; check the download link",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
}


MAX_CACHED_TABLES = 4  # parsed files kept in memory, 48 MB each at most


class FileSource:
    """One file, parsed once and again after a change: a file of several years takes seconds to parse."""

    step = HOUR
    local = True

    def __init__(self, path: Path, symbol: str) -> None:
        self.path = path
        self.symbol = symbol
        self.name = f"file:{path}"
        self._last_table: CandleTable | None = None

    @property
    def synthetic(self) -> bool:
        """Whether the file's provenance note, when it was last read, marks its candles as synthetic.

        Reads the file if it was not read yet, and raises as `fetch`. Fetched candles carry the value of their own read.
        """
        return (self._last_table or self._load_table()).synthetic

    def fetch(self, start: int, end: int, now: float) -> Candles:
        """See `Source.fetch`.

        Raises:
            NeedsHuman: the file is missing, too large, has no table of candles, or another pair or step.
            SkipEpoch: `unreadable`, `empty`, or `duplicate`.
        """
        table = self._load_table()
        origin = Provenance(self.name, now, table.sha256, table.synthetic)
        candles = repair(
            Candles.from_table(self.symbol, self.step, table.time, table.values, origin, repairs=table.notes)
        )
        return candles.between(start, min(end, now - self.step + 1e-6))

    def _load_table(self) -> CandleTable:
        info = self._require_readable_file()
        version = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
        self._last_table = _parse_file(self.path, version, self.symbol, self.step)
        return self._last_table

    def _require_readable_file(self) -> os.stat_result:
        try:
            info = self.path.stat()
        except FileNotFoundError:
            raise NeedsHuman(f"There is no file {self.path}.") from None
        except OSError as error:
            raise NeedsHuman(f"Cannot access {self.path}: {error.strerror}.") from None
        if stat.S_ISDIR(info.st_mode):
            raise NeedsHuman(f"{self.path} is a directory. Give the path of a CSV or Parquet file.")
        if not stat.S_ISREG(info.st_mode):
            raise NeedsHuman(f"{self.path} is not a regular file.")
        if not info.st_size:
            raise SkipEpoch(f"{self.path} is empty: it has no bytes.", check="empty")
        if info.st_size > MAX_BYTES:
            raise NeedsHuman(
                f"{self.path} has {info.st_size >> 20} MB; the limit is {MAX_BYTES >> 20} MB. "
                "Cut it to the required symbol and years."
            )
        try:
            self.path.open("rb").close()
        except OSError as error:
            raise NeedsHuman(f"Cannot read {self.path}: {error.strerror}.") from None
        return info


@lru_cache(maxsize=MAX_CACHED_TABLES)
def _parse_file(path: Path, version: tuple[int, ...], symbol: str, step: int) -> CandleTable:
    """Parse all rows of the pair in the file; cached in this process per `version` (inode, size and times)."""
    with path.open("rb") as stream:
        header = stream.read(16)
    if header.startswith(b"PAR1"):
        require_extra("files", f"Reading the Parquet file {path}")
        from forecastd.market.sources.parquet_file import read_parquet  # imports pyarrow, which takes time to load

        return read_parquet(path, symbol, step)
    for magic, description in UNSUPPORTED_FORMATS.items():
        if header[: len(magic)].lower() == magic.lower():
            raise NeedsHuman(f"{path} is {description}. The supported formats are CSV (also .gz) and Parquet.")
    if header[:1] == b"\x80" and len(header) > 1 and header[1] <= 5:
        raise NeedsHuman(
            f"{path} is a Python pickle, which could run code, so it is not opened. Save it as CSV or Parquet."
        )
    return read_csv(path, symbol, step)
