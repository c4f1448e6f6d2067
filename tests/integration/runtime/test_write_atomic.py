"""Files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from forecastd.errors import NeedsHuman
from forecastd.runtime.files import write_atomic


def test_new_file_is_private_and_its_directory_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomic(path, b"text")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"text", 0o600)


@pytest.mark.parametrize(("overwrite", "content"), [(True, b"new"), (False, b"old")])
def test_existing_file_is_replaced_only_with_overwrite(tmp_path: Path, overwrite: bool, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    write_atomic(path, b"new", overwrite=overwrite)
    assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_unwritable_path_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "directory" / "entry").mkdir(parents=True)
    with pytest.raises(NeedsHuman, match=r"Cannot write .*directory: .*\. Do this"):
        write_atomic(tmp_path / "directory", b"text", fix="Do this.")
    assert [entry.name for entry in tmp_path.iterdir()] == ["directory"]
