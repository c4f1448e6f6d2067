"""Damaged files are set aside with what belongs to them; errors of SQLite have a meaning."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from forecastd.runtime.sqlite import classify_error, set_aside


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_damaged_file_is_set_aside_with_its_companions(tmp_path: Path) -> None:
    for name in ("db", "db-journal", "db.mark", "db.damaged-1", "other"):
        (tmp_path / name).touch()
    assert set_aside(tmp_path / "db", (".mark",)) == tmp_path / "db.damaged-2"
    assert names(tmp_path) == ["db.damaged-1", "db.damaged-2", "db.damaged-2-journal", "db.damaged-2.mark", "other"]


def test_last_damaged_file_is_replaced_at_the_limit(tmp_path: Path) -> None:
    for count in range(4):
        (tmp_path / "db").write_text(str(count))
        set_aside(tmp_path / "db", max_files=2)
    assert names(tmp_path) == ["db.damaged-1", "db.damaged-2"]
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["0", "3"]


def test_errors_of_sqlite_are_classified(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database" * 100)
    with pytest.raises(sqlite3.DatabaseError) as damaged:
        sqlite3.connect(tmp_path / "text").execute("SELECT * FROM sqlite_master")
    with pytest.raises(sqlite3.OperationalError) as unwritable:
        sqlite3.connect(tmp_path / "none" / "db")
    first, second = (sqlite3.connect(tmp_path / "db", timeout=0, isolation_level=None) for _ in range(2))
    first.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError) as busy:
        second.execute("BEGIN EXCLUSIVE")
    first.close()
    second.close()
    errors = (damaged.value, unwritable.value, busy.value, OSError("disk"))
    assert [classify_error(error) for error in errors] == ["damaged", "unwritable", "busy", "other"]
