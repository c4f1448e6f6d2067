"""A disk beneath SQLite that fails or loses power at a chosen operation, and remembers what would have survived.

A shim over SQLite's own file access, by apsw. Reads see every write; a power cut keeps what was synced, and of each write
after that nothing, the whole, or its first sectors. A file's name, and its removal, survive once its directory was synced.
Sync follows Linux: one that fails leaves the pages looking clean, so that they never reach the disk by themselves.
"""

from __future__ import annotations

import random
import sqlite3
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import apsw

SECTOR = 512


class Ill(StrEnum):
    """What goes wrong at the chosen operation."""

    CUT = "the power is cut"
    FULL = "the disk is full once"
    STAYS_FULL = "the disk is full from there on"
    ERROR = "the disk fails once"
    STAYS_BROKEN = "the disk fails from there on"


_LASTING = (Ill.CUT, Ill.STAYS_FULL, Ill.STAYS_BROKEN)


@dataclass
class _Image:
    """A file as it is on the platter, and what was written since and may be lost. A truncation is (size, None)."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        for offset, data in self.pending:
            _apply(self.durable, offset, data)
        self.pending.clear()


class FaultyDisk(apsw.VFS):
    """The files of one database. `at`: the number of the write, truncation, sync or removal at which `ill` strikes."""

    def __init__(self, name: str, ill: Ill | None, at: int, seed: int) -> None:
        self.name, self._ill, self._at = name, ill, at
        self._random = random.Random(seed)
        self.operations: list[str] = []
        self.struck = False
        self._images: dict[str, _Image] = {}
        self._names: set[str] = set()  # that survive
        self._removed: dict[str, _Image] = {}  # by name: files whose removal may not survive
        super().__init__(name, base="")

    def connect(self, path: Path, wait: float) -> sqlite3.Connection:
        """A connection over this disk, for a `Ledger`."""
        return _Connection(path, wait, self.name)  # type: ignore[return-value]  # the part of it that a ledger uses

    def survivors(self, place: Path) -> None:
        """Write what is left after the power was cut now into `place`."""
        for name, image in {**self._removed, **self._images}.items():
            known = name in self._names
            if not known and self._random.random() < 0.5:
                continue
            if name not in self._images and self._random.random() < 0.5:
                continue
            data = image.durable[:]
            for offset, written in image.pending:
                chance = self._random.random()
                if chance < 0.4:
                    _apply(data, offset, written)
                elif chance < 0.6 and written is not None:
                    _apply(data, offset, written[: SECTOR * self._random.randrange(1 + len(written) // SECTOR)])
            (place / Path(name).name).write_bytes(data)

    # SQLite's side

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - SQLite's name
        file = _File(self, name, flags)
        self._images.setdefault(file.path, _Image())
        return file

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802 - SQLite's name
        self.operate("remove", filename)
        super().xDelete(filename, False)
        image = self._images.pop(filename, None)
        if image is not None:
            self._removed[filename] = image
        if syncdir:
            self.sync_names()

    # The files' side

    def operate(self, what: str, path: str) -> None:
        """Count an operation, and fail it when its time has come."""
        self.operations.append(f"{what} {Path(path).suffix or path[-8:]}")
        number = len(self.operations)
        if self._ill is None or number < self._at or (number > self._at and self._ill not in _LASTING):
            return
        full = self._ill in (Ill.FULL, Ill.STAYS_FULL)
        if full and what != "write":
            return
        self.struck = True
        if what == "sync" and self._ill is not Ill.CUT and path in self._images:
            self._images[path].pending.clear()
        raise apsw.exception_for(apsw.SQLITE_FULL if full else _CODES[what])

    def wrote(self, path: str, offset: int, data: bytes | None) -> None:
        self._images[path].pending.append((offset, data))

    def synced(self, path: str) -> None:
        self._images[path].sync()
        if path.endswith("-journal"):  # SQLite syncs the directory with a new journal
            self.sync_names()

    def sync_names(self) -> None:
        self._names = set(self._images)
        self._removed.clear()


_CODES = {
    "write": apsw.SQLITE_IOERR_WRITE,
    "truncate": apsw.SQLITE_IOERR_TRUNCATE,
    "sync": apsw.SQLITE_IOERR_FSYNC,
    "remove": apsw.SQLITE_IOERR_DELETE,
}


class _File(apsw.VFSFile):
    """One open file."""

    def __init__(self, disk: FaultyDisk, name: Any, flags: list[int]) -> None:
        self._disk = disk
        self.path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's name
        self._disk.operate("write", self.path)
        super().xWrite(data, offset)
        self._disk.wrote(self.path, offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - SQLite's name
        self._disk.operate("truncate", self.path)
        super().xTruncate(newsize)
        self._disk.wrote(self.path, newsize, None)

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        del flags  # the real file is thrown away: only its image is asked what survived
        self._disk.operate("sync", self.path)
        self._disk.synced(self.path)


class _Rows:
    """An answer, read whole, as a cursor of Python's own module gives it."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def fetchall(self) -> list[Any]:
        return self._rows

    def fetchone(self) -> Any:
        return self._rows[0] if self._rows else None

    def __iter__(self) -> Any:
        return iter(self._rows)


class _Connection:
    """What a ledger uses of `sqlite3.Connection`, over apsw."""

    def __init__(self, path: Path, wait: float, vfs: str) -> None:
        try:
            self._db = apsw.Connection(str(path), vfs=vfs)
            self._db.set_busy_timeout(int(wait * 1000))
        except apsw.Error as error:
            raise _translated(error) from error

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    def execute(self, sql: str, values: tuple[Any, ...] = ()) -> _Rows:
        try:
            return _Rows(list(self._db.execute(sql, values)))
        except apsw.Error as error:
            raise _translated(error) from error

    def close(self) -> None:
        with suppress(apsw.Error):  # Python's own module does not tell what fails while a file is closed
            self._db.close(True)


def _translated(error: apsw.Error) -> sqlite3.Error:
    """The error as Python's own module raises it."""
    translated = sqlite3.OperationalError(str(error))
    translated.sqlite_errorcode = getattr(error, "extendedresult", apsw.SQLITE_IOERR)
    return translated


def _apply(data: bytearray, offset: int, written: bytes | None) -> None:
    if written is None:
        del data[offset:]
        return
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(written)] = written
