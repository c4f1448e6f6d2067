"""The ledger on a real disk: durable before anything is sent, one process at a time, clear about damage."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forecastd.errors import NeedsHuman, RetryLater
from forecastd.ledger import SCHEMA_VERSION, Ledger, Submission

SENT = Submission("localnet", 67, 720, "allo1x", "0.0123", 4, b"\x00bytes", "AB12", 1439, 200_000, 10**22)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "state" / "ledger.sqlite")
    yield opened
    opened.close()


def test_a_commit_is_found_again_by_another_process_with_every_field(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    first = Ledger(path)
    first.commit(SENT, 12.5)
    first.close()
    again = Ledger(path)
    row = again.find(*SENT.key)
    assert row is not None
    assert row.submission == SENT
    assert (row.state, row.signed_at, row.settled_at) == ("signed", 12.5, None)
    again.close()


def test_an_epoch_is_committed_once(ledger: Ledger) -> None:
    ledger.commit(SENT, 1.0)
    with pytest.raises(NeedsHuman, match="never signed"):
        ledger.commit(SENT, 2.0)


def test_a_settled_row_is_no_longer_open(ledger: Ledger) -> None:
    ledger.commit(SENT, 1.0)
    assert [row.submission for row in ledger.open_rows("localnet", "allo1x")] == [SENT]
    ledger.settle(SENT, "confirmed", 2.0, height=730, reason="")
    assert ledger.open_rows("localnet", "allo1x") == []
    row = ledger.find(*SENT.key)
    assert row is not None
    assert (row.state, row.height, row.settled_at) == ("confirmed", 730, 2.0)


def test_other_wallets_and_chains_do_not_see_a_row(ledger: Ledger) -> None:
    ledger.commit(SENT, 1.0)
    assert ledger.find("testnet", 67, 720, "allo1x") is None
    assert ledger.find("localnet", 67, 720, "allo1y") is None


def test_a_second_process_is_turned_away(ledger: Ledger) -> None:
    code = (
        "import sys; from pathlib import Path; from forecastd.ledger import Ledger; from forecastd.errors import RetryLater\n"
        "try: Ledger(Path(sys.argv[1]), wait=0.1)\n"
        "except RetryLater as error: print(error); sys.exit(6)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ledger.path)], capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert "Another forecastd holds the ledger" in done.stdout


def test_a_newer_ledger_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    database.close()
    before = path.read_bytes()
    with pytest.raises(NeedsHuman, match="newer forecastd"):
        Ledger(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_ledger_is_told_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(NeedsHuman, match="damaged"):
        Ledger(path)
    assert path.read_bytes().startswith(b"not a database")


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NeedsHuman, match="STATE_DIR"):
        Ledger(tmp_path / "file" / "state" / "ledger.sqlite")


def test_a_full_disk_refuses_the_commit_and_keeps_the_ledger_whole(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count={pages}")  # SQLite's own way to be out of space
    big = Submission(*SENT.key, "0.1", 5, b"x" * 100_000, "CD", 1439, 1, 1)
    with pytest.raises(RetryLater, match="full; nothing was sent"):
        ledger.commit(big, 1.0)
    assert ledger.find(*SENT.key) is None
    ledger.close()
    Ledger(path).close()


def test_the_ledger_is_private(ledger: Ledger) -> None:
    assert ledger.path.stat().st_mode & 0o777 == 0o600
