"""Snapshots of the ledger while another process holds it: committed states only, and its lock stays."""

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
from forecastd.ledger.file import SCHEMA_VERSION
from forecastd.ledger.ledger import Ledger, Submission, SubmissionState
from forecastd.ledger.snapshot import LedgerNotFound, open_snapshot

BYTES = b"\x00signed bytes"
SUBMISSION = Submission("localnet", 67, 720, "allo1x", "0.0123", 4, BYTES, tx_hash(BYTES), 1439, 200_000, 10**22)

OWNER = """
import sys
from dataclasses import replace
from pathlib import Path
from forecastd.chain.codec import tx_hash
from forecastd.ledger.ledger import Ledger, Submission

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
print(ledger.find_problems(), len(ledger.entries("localnet", "allo1x")), flush=True)
sys.stdin.readline()
"""
COMMITTING = """
print("ready", flush=True)
for number in range(1000):
    ledger.commit(replace(first, nonce=720 * number, sequence=number), 1.0)
"""


@contextmanager
def owner(path: Path, work: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the ledger and is ready."""
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
    """A ledger with one epoch, not held by any process."""
    path = tmp_path / "state" / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.set_known_from(SUBMISSION.chain_id, SUBMISSION.wallet, 4)
    ledger.commit(SUBMISSION, 12.5)
    ledger.close()
    return path


def test_open_transaction_is_invisible_and_keeps_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with owner(path, IN_A_TRANSACTION) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert b"half done" in path.read_bytes(), "uncommitted pages must be in the file"
        for _ in range(3):
            with open_snapshot(path) as ledger:
                assert ledger.find_problems() == []
                assert [entry.value for entry in ledger.newest_entries()] == ["0.0123"] * 30
        with pytest.raises(RetryLater, match="uses the ledger"):
            Ledger(path, timeout_seconds=0)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "[] 30\n"


def test_snapshot_beside_busy_worker_is_a_committed_state(tmp_path: Path) -> None:
    path, sizes = tmp_path / "ledger.sqlite", [0]
    with owner(path, COMMITTING):
        for _ in range(40):
            with open_snapshot(path, timeout_seconds=60) as ledger:
                assert ledger.find_problems() == []
                entries = ledger.newest_entries()
                assert sorted(entry.nonce for entry in entries) == [720 * number for number in range(len(entries))]
                assert all(len(ledger.attempts(entry.key)) == 1 for entry in entries)
                sizes.append(len(entries))
    assert sizes == sorted(sizes)


def test_snapshot_is_complete_and_its_writes_are_discarded(path: Path) -> None:
    before = path.read_bytes()
    with open_snapshot(path) as ledger:
        assert ledger.accounts() == [("localnet", "allo1x")]
        (entry,) = ledger.newest_entries()
        assert (entry.key, entry.value, entry.first_at) == (SUBMISSION.key, SUBMISSION.value, 12.5)
        assert ledger.attempts(SUBMISSION.key) == [SUBMISSION]
        assert ledger.attempt_times(SUBMISSION.key) == [12.5]
        ledger.set_known_from("localnet", "allo1x", 99)
        copies = [Path(values[2]) for values in ledger._query("PRAGMA database_list", ())]
    assert path.read_bytes() == before
    assert not any(file.exists() for file in copies)
    with open_snapshot(path) as ledger:
        assert ledger.known_from("localnet", "allo1x") == 4


def test_newest_entries_are_first_across_chains(path: Path) -> None:
    ledger = Ledger(path)
    ledger.commit(replace(SUBMISSION, chain_id="localnet-2019", nonce=1), 20.0)
    ledger.record_unsigned(("localnet", 67, 1440, "allo1x"), SubmissionState.MISSED, 20.0, reason="suspended")
    ledger.close()
    with open_snapshot(path) as copy:
        assert [entry.nonce for entry in copy.newest_entries()] == [1440, 1, 720]


def test_missing_ledger_is_not_created(tmp_path: Path) -> None:
    for path in (tmp_path / "absent" / "ledger.sqlite", tmp_path / "empty.sqlite"):
        if path.name.startswith("empty"):
            path.touch()
        with pytest.raises(LedgerNotFound, match="nothing was signed"), open_snapshot(path):
            pass
    assert [file.name for file in tmp_path.iterdir()] == ["empty.sqlite"]


def test_foreign_or_newer_file_is_refused_and_unchanged(path: Path, tmp_path: Path) -> None:
    newer, other, garbage = tmp_path / "newer", tmp_path / "other", tmp_path / "garbage"
    shutil.copy(path, newer)
    for file, statement in ((newer, f"PRAGMA user_version={SCHEMA_VERSION + 1}"), (other, "CREATE TABLE notes (text)")):
        database = sqlite3.connect(file)
        database.execute(statement)
        database.close()
    garbage.write_bytes(b"\x01\x02" * 5000)
    for file, words in ((newer, "newer forecastd"), (other, "not a ledger"), (garbage, "Cannot use")):
        before = file.read_bytes()
        with pytest.raises(NeedsHuman, match=words), open_snapshot(file):
            pass
        assert file.read_bytes() == before
    assert not list(tmp_path.glob("*damaged*")), "only the owner renames a damaged ledger"


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE epochs SET value = '0.0124'", "row of topic 67 nonce 720"),
        ("UPDATE attempts SET tx_bytes = x'00'", f"transaction {SUBMISSION.tx_hash}"),
    ],
)
def test_changed_row_is_reported(path: Path, statement: str, words: str) -> None:
    database = sqlite3.connect(path)
    database.execute(statement)
    database.commit()
    database.close()
    with open_snapshot(path) as ledger:
        (problem,) = ledger.find_problems()
    assert words in problem


def test_unknown_state_is_a_plain_error(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA ignore_check_constraints=ON")
    database.execute("UPDATE epochs SET state = 'lost'")
    database.commit()
    database.close()
    with open_snapshot(path) as ledger, pytest.raises(NeedsHuman, match="damaged"):
        ledger.newest_entries()
