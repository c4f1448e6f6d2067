"""A disk for SQLite that fails or loses power at a chosen operation, and keeps what would survive.

It wraps SQLite's file access with apsw. Reads see every write. A power cut keeps what was synced; of each later write
it keeps nothing, all, or the first sectors. The name of a file, and its removal, survive once the directory was synced.
Sync follows Linux: after a failed sync the pages look clean, so they never reach the disk by themselves.
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


class DiskFault(StrEnum):
    """The fault at the chosen operation."""

    POWER_CUT = "the power is cut"
    FULL = "the disk is full once"
    STAYS_FULL = "the disk is full from there on"
    ERROR = "the disk fails once"
    STAYS_FAILING = "the disk fails from there on"


_PERSISTENT = (DiskFault.POWER_CUT, DiskFault.STAYS_FULL, DiskFault.STAYS_FAILING)


@dataclass
class _FileImage:
    """A file as it is on disk, and later writes that may be lost. A truncation is (size, None)."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        for offset, data in self.pending:
            _apply(self.durable, offset, data)
        self.pending.clear()


class FaultyDisk(apsw.VFS):
    """The files of one database.

    `fault_operation`: the number of the write, truncation, sync or removal at which `fault` occurs.
    """

    def __init__(self, name: str, fault: DiskFault | None, fault_operation: int, seed: int) -> None:
        self.name, self._fault, self._fault_operation = name, fault, fault_operation
        self._random = random.Random(seed)
        self.operations: list[str] = []
        self.triggered = False
        self._images: dict[str, _FileImage] = {}
        self._names: set[str] = set()  # names that survive
        self._removed: dict[str, _FileImage] = {}  # by name: files whose removal may not survive
        super().__init__(name, base="")

    def connect(self, path: Path, wait: float) -> sqlite3.Connection:
        """A connection over this disk, for a `Ledger`."""
        return _Connection(path, wait, self.name)  # type: ignore[return-value]  # only what a ledger uses

    def write_surviving_files(self, directory: Path) -> None:
        """Write what is left after a power cut now into `directory`."""
        for name, image in {**self._removed, **self._images}.items():
            name_survives = name in self._names
            if not name_survives and self._random.random() < 0.5:
                continue
            if name not in self._images and self._random.random() < 0.5:
                continue
            data = image.durable[:]
            for offset, content in image.pending:
                chance = self._random.random()
                if chance < 0.4:
                    _apply(data, offset, content)
                elif chance < 0.6 and content is not None:
                    _apply(data, offset, content[: SECTOR * self._random.randrange(1 + len(content) // SECTOR)])
            (directory / Path(name).name).write_bytes(data)

    # Callbacks of SQLite

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - SQLite's name
        file = _File(self, name, flags)
        self._images.setdefault(file.path, _FileImage())
        return file

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802 - SQLite's name
        self.count_operation("remove", filename)
        super().xDelete(filename, False)
        image = self._images.pop(filename, None)
        if image is not None:
            self._removed[filename] = image
        if syncdir:
            self.sync_names()

    # Called by the files

    def count_operation(self, kind: str, path: str) -> None:
        """Count an operation, and raise when it must fail."""
        self.operations.append(f"{kind} {Path(path).suffix or path[-8:]}")
        number = len(self.operations)
        if (
            self._fault is None
            or number < self._fault_operation
            or (number > self._fault_operation and self._fault not in _PERSISTENT)
        ):
            return
        full = self._fault in (DiskFault.FULL, DiskFault.STAYS_FULL)
        if full and kind != "write":
            return
        self.triggered = True
        if kind == "sync" and self._fault is not DiskFault.POWER_CUT and path in self._images:
            self._images[path].pending.clear()
        raise apsw.exception_for(apsw.SQLITE_FULL if full else _CODES[kind])

    def record_write(self, path: str, offset: int, data: bytes | None) -> None:
        self._images[path].pending.append((offset, data))

    def record_sync(self, path: str) -> None:
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
        self._disk.count_operation("write", self.path)
        super().xWrite(data, offset)
        self._disk.record_write(self.path, offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - SQLite's name
        self._disk.count_operation("truncate", self.path)
        super().xTruncate(newsize)
        self._disk.record_write(self.path, newsize, None)

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        del flags  # the real file is discarded; only its image counts
        self._disk.count_operation("sync", self.path)
        self._disk.record_sync(self.path)


class _Rows:
    """A complete result, with the interface of a cursor of the sqlite3 module."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def fetchall(self) -> list[Any]:
        return self._rows

    def fetchone(self) -> Any:
        return self._rows[0] if self._rows else None

    def __iter__(self) -> Any:
        return iter(self._rows)


class _Connection:
    """The part of `sqlite3.Connection` that a ledger uses, over apsw."""

    def __init__(self, path: Path, wait: float, vfs: str) -> None:
        try:
            self._db = apsw.Connection(str(path), vfs=vfs)
            self._db.set_busy_timeout(int(wait * 1000))
        except apsw.Error as error:
            raise _translate_error(error) from error

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    def execute(self, sql: str, values: tuple[Any, ...] = ()) -> _Rows:
        try:
            return _Rows(list(self._db.execute(sql, values)))
        except apsw.Error as error:
            raise _translate_error(error) from error

    def close(self) -> None:
        with suppress(apsw.Error):  # the sqlite3 module does not report errors while a file is closed
            self._db.close(True)


def _translate_error(error: apsw.Error) -> sqlite3.Error:
    """The error that the sqlite3 module would raise."""
    sqlite_error = sqlite3.OperationalError(str(error))
    sqlite_error.sqlite_errorcode = getattr(error, "extendedresult", apsw.SQLITE_IOERR)
    return sqlite_error


def _apply(data: bytearray, offset: int, content: bytes | None) -> None:
    if content is None:
        del data[offset:]
        return
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(content)] = content
