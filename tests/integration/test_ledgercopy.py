"""The ledger read beside the process that holds it: whole states only, and its lock untouched."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from forecastd.chain.codec import tx_hash
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.ledger import Ledger, State, Submission
from forecastd.ledgercopy import NoLedger, read_ledger
from forecastd.ledgerfile import VERSION

BYTES = b"\x00signed bytes"
SENT = Submission("localnet", 67, 720, "allo1x", "0.0123", 4, BYTES, tx_hash(BYTES), 1439, 200_000, 10**22)

OWNER = """
import sys
from dataclasses import replace
from pathlib import Path
from forecastd.chain.codec import tx_hash
from forecastd.ledger import Ledger, Submission

ledger = Ledger(Path(sys.argv[1]))
raw = b"signed bytes" * 300
first = Submission("localnet", 67, 720, "allo1x", "0.0123", 4, raw, tx_hash(raw), 1439, 200_000, 10**22)
"""
IN_A_TRANSACTION = """
for number in range(30):
    ledger.commit(replace(first, nonce=720 * number), 1.0)
db = ledger._db
db.execute("PRAGMA cache_size=2")  # pages reach the file before the commit, as in a large transaction
db.execute("BEGIN IMMEDIATE")
db.execute("UPDATE epochs SET value = 'half done'")
db.execute("UPDATE attempts SET value = 'half done'")
print("ready", flush=True)
sys.stdin.readline()
db.execute("ROLLBACK")
print(ledger.check(), len(ledger.entries("localnet", "allo1x")), flush=True)
sys.stdin.readline()
"""
COMMITTING = """
print("ready", flush=True)
for number in range(1000):
    ledger.commit(replace(first, nonce=720 * number, sequence=number), 1.0)
"""


@contextmanager
def owner(path: Path, work: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the ledger and has told that it is ready."""
    child = subprocess.Popen(
        [sys.executable, "-c", OWNER + work, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.communicate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with one epoch, held by nobody."""
    path = tmp_path / "state" / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.know_from(SENT.chain_id, SENT.wallet, 4)
    ledger.commit(SENT, 12.5)
    ledger.close()
    return path


def test_a_transaction_under_way_is_not_seen_and_the_owner_keeps_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with owner(path, IN_A_TRANSACTION) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert b"half done" in path.read_bytes(), "the premise: unfinished pages are in the file"
        for _ in range(3):
            with read_ledger(path) as ledger:
                assert ledger.problems() == []
                assert [entry.value for entry in ledger.newest()] == ["0.0123"] * 30
        with pytest.raises(RetryLater, match="holds the ledger"):
            Ledger(path, wait=0)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "ok 30\n"


def test_every_reading_beside_a_busy_worker_is_a_state_that_was_committed(tmp_path: Path) -> None:
    path, seen = tmp_path / "ledger.sqlite", [0]
    with owner(path, COMMITTING):
        for _ in range(40):
            with read_ledger(path, wait=60) as ledger:
                assert ledger.problems() == []
                entries = ledger.newest()
                assert sorted(entry.nonce for entry in entries) == [720 * number for number in range(len(entries))]
                assert all(len(ledger.attempts(entry.key)) == 1 for entry in entries)
                seen.append(len(entries))
    assert seen == sorted(seen)


def test_the_copy_has_everything_and_what_is_written_into_it_is_lost(path: Path) -> None:
    before = path.read_bytes()
    with read_ledger(path) as ledger:
        assert ledger.accounts() == [("localnet", "allo1x")]
        (entry,) = ledger.newest()
        assert (entry.key, entry.value, entry.first_at) == (SENT.key, SENT.value, 12.5)
        assert ledger.attempts(SENT.key) == [SENT]
        assert ledger.signed_at(SENT.key) == [12.5]
        ledger.know_from("localnet", "allo1x", 99)
        place = [Path(values[2]) for values in ledger._run("PRAGMA database_list", ())]
    assert path.read_bytes() == before
    assert not any(file.exists() for file in place)
    with read_ledger(path) as ledger:
        assert ledger.known_from("localnet", "allo1x") == 4


def test_the_newest_come_first_whatever_the_chain(path: Path) -> None:
    ledger = Ledger(path)
    ledger.commit(replace(SENT, chain_id="localnet-2019", nonce=1), 20.0)
    ledger.adopt(("localnet", 67, 1440, "allo1x"), State.MISSED, 20.0, reason="asleep")
    ledger.close()
    with read_ledger(path) as copy:
        assert [entry.nonce for entry in copy.newest()] == [1440, 1, 720]


def test_what_is_not_there_is_not_made(tmp_path: Path) -> None:
    for path in (tmp_path / "absent" / "ledger.sqlite", tmp_path / "empty.sqlite"):
        if path.name.startswith("empty"):
            path.touch()
        with pytest.raises(NoLedger, match="nothing was signed"), read_ledger(path):
            pass
    assert [file.name for file in tmp_path.iterdir()] == ["empty.sqlite"]


def test_a_newer_ledger_or_something_else_is_refused_and_stays_as_it_is(path: Path, tmp_path: Path) -> None:
    newer, other, garbage = tmp_path / "newer", tmp_path / "other", tmp_path / "garbage"
    shutil.copy(path, newer)
    for file, statement in ((newer, f"PRAGMA user_version={VERSION + 1}"), (other, "CREATE TABLE notes (text)")):
        database = sqlite3.connect(file)
        database.execute(statement)
        database.close()
    garbage.write_bytes(b"\x01\x02" * 5000)
    for file, words in ((newer, "newer forecastd"), (other, "not a ledger"), (garbage, "cannot be used")):
        before = file.read_bytes()
        with pytest.raises(NeedsHuman, match=words), read_ledger(file):
            pass
        assert file.read_bytes() == before
    assert not list(tmp_path.glob("*damaged*")), "only the owner sets a ledger aside"


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE epochs SET value = '0.0124'", "row of topic 67 nonce 720"),
        ("UPDATE attempts SET tx_bytes = x'00'", f"transaction {SENT.tx_hash}"),
    ],
)
def test_a_row_that_is_not_what_was_written_is_named(path: Path, statement: str, words: str) -> None:
    database = sqlite3.connect(path)
    database.execute(statement)
    database.commit()
    database.close()
    with read_ledger(path) as ledger:
        (problem,) = ledger.problems()
    assert words in problem


def test_a_state_that_there_is_none_of_is_told_and_no_traceback(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA ignore_check_constraints=ON")
    database.execute("UPDATE epochs SET state = 'lost'")
    database.commit()
    database.close()
    with read_ledger(path) as ledger, pytest.raises(NeedsHuman, match="damaged"):
        ledger.newest()
