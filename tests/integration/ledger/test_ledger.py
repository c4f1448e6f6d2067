"""The ledger on a real disk: durable commits, one process at a time, and a damaged file is renamed and recreated."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from forecastd.chain.codec import tx_hash
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.ledger.file import _EPOCHS_TABLE, EPOCH_COLUMNS, SCHEMA_VERSION, find_problems, row_checksum
from forecastd.ledger.ledger import OPEN_STATES, Ledger, LedgerRow, Submission, SubmissionState
from forecastd.ledger.snapshot import open_snapshot

BYTES = b"\x00signed bytes"
SUBMISSION = Submission("localnet", 67, 720, "allo1x", "0.0123", 4, BYTES, tx_hash(BYTES), 1439, 200_000, 10**22)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    opened = Ledger(path)
    yield opened
    opened.close()


def other_submission(number: int, base: Submission = SUBMISSION) -> Submission:
    """New bytes for the same epoch."""
    content = BYTES + bytes([number])
    return replace(base, tx_bytes=content, tx_hash=tx_hash(content), sequence=base.sequence + number)


def test_commit_is_read_back_by_another_process(path: Path) -> None:
    first = Ledger(path)
    first.commit(SUBMISSION, 12.5)
    first.close()
    reopened = Ledger(path)
    entry = reopened.find(SUBMISSION.key)
    assert entry is not None
    assert entry.row == LedgerRow(SubmissionState.SIGNED, SUBMISSION.sequence, SUBMISSION.timeout_height)
    assert (entry.value, entry.first_at, entry.settled_at) == (SUBMISSION.value, 12.5, None)
    assert reopened.attempts(SUBMISSION.key) == [SUBMISSION]
    reopened.close()


def test_commit_epoch_with_open_submission_is_refused(ledger: Ledger) -> None:
    row = ledger.commit(SUBMISSION, 1.0)
    for state in SubmissionState:
        ledger.record(SUBMISSION.key, replace(row, state=state), 2.0)
        if state is SubmissionState.ABANDONED:
            continue
        with pytest.raises(NeedsHuman, match="never signed"):
            ledger.commit(other_submission(1), 3.0)
    assert ledger.attempts(SUBMISSION.key) == [SUBMISSION]


def test_commit_after_abandoned_attempt_keeps_both_attempts(ledger: Ledger) -> None:
    row = ledger.commit(SUBMISSION, 1.0)
    ledger.record(SUBMISSION.key, replace(row, state=SubmissionState.ABANDONED), 2.0)
    assert ledger.commit(other_submission(1), 3.0).attempts == 2
    assert ledger.attempts(SUBMISSION.key) == [SUBMISSION, other_submission(1)]


def test_settled_epoch_is_not_listed_as_unsettled(ledger: Ledger) -> None:
    row = ledger.commit(SUBMISSION, 1.0)
    assert [entry.key for entry in ledger.entries("localnet", "allo1x", states=OPEN_STATES)] == [SUBMISSION.key]
    ledger.record(SUBMISSION.key, replace(row, state=SubmissionState.ADMITTED, height=730), 2.0)
    assert ledger.entries("localnet", "allo1x", states=OPEN_STATES) == []
    entry = ledger.find(SUBMISSION.key)
    assert entry is not None
    assert (entry.row.height, entry.settled_at) == (730, 2.0)


def test_missed_epoch_never_overwrites_an_entry(ledger: Ledger) -> None:
    missed_key = ("localnet", 67, 1440, "allo1x")
    ledger.record_unsigned(missed_key, SubmissionState.MISSED, 5.0, reason="the worker did not run")
    entry = ledger.find(missed_key)
    assert entry is not None
    assert (entry.row.state, entry.row.reason, entry.value) == (SubmissionState.MISSED, "the worker did not run", None)
    ledger.commit(SUBMISSION, 1.0)
    ledger.record_unsigned(SUBMISSION.key, SubmissionState.MISSED, 5.0, reason="no")
    original = ledger.find(SUBMISSION.key)
    assert original is not None
    assert original.row.state is SubmissionState.SIGNED


def test_entry_is_invisible_to_other_wallets_and_chains(ledger: Ledger) -> None:
    ledger.commit(SUBMISSION, 1.0)
    assert ledger.find(("testnet", 67, 720, "allo1x")) is None
    assert ledger.find(("localnet", 67, 720, "allo1y")) is None


def test_free_sequence_skips_open_submissions(ledger: Ledger) -> None:
    other = ("localnet", 68, 720, "allo1x")
    assert ledger.next_free_sequence(other, 4) == 4
    row = ledger.commit(SUBMISSION, 1.0)
    assert ledger.next_free_sequence(other, 4) == 5
    assert ledger.next_free_sequence(SUBMISSION.key, 4) == 4
    ledger.record(SUBMISSION.key, replace(row, state=SubmissionState.MISSED), 2.0)
    assert ledger.next_free_sequence(other, 4) == 4


def test_free_sequence_skips_included_sequences_of_lagging_endpoints(ledger: Ledger) -> None:
    other = ("localnet", 67, 1440, "allo1x")
    row = ledger.commit(SUBMISSION, 1.0)
    for state in (SubmissionState.INCLUDED, SubmissionState.ADMITTED, SubmissionState.PASSIVE, SubmissionState.EVICTED):
        ledger.record(SUBMISSION.key, replace(row, state=state), 2.0)
        assert ledger.next_free_sequence(other, SUBMISSION.sequence) == SUBMISSION.sequence + 1, state
    assert ledger.next_free_sequence(other, SUBMISSION.sequence + 5) == SUBMISSION.sequence + 5
    ledger.record_unsigned(("localnet", 67, 2160, "allo1x"), SubmissionState.ADMITTED, 3.0, reason="on the chain")
    assert ledger.next_free_sequence(other, SUBMISSION.sequence) == SUBMISSION.sequence + 1


def test_used_sequences_contains_every_signed_sequence(ledger: Ledger) -> None:
    ledger.commit(SUBMISSION, 1.0)
    ledger.record_sequence_use("localnet", "allo1x", 3, "AA", "register for topic 67")
    assert ledger.used_sequences("localnet", "allo1x") == {3, 4}
    assert ledger.used_sequences("localnet", "allo1y") == set()


def test_second_process_cannot_open_the_ledger(ledger: Ledger) -> None:
    code = (
        "import sys; from pathlib import Path; from forecastd.ledger.ledger import Ledger\n"
        "from forecastd.errors import RetryLater\n"
        "try: Ledger(Path(sys.argv[1]), timeout_seconds=0.1)\n"
        "except RetryLater as error: print(error); sys.exit(6)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ledger.path)], capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert "Another forecastd process uses the ledger" in done.stdout


def test_newer_ledger_is_not_modified(path: Path) -> None:
    path.parent.mkdir()
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    database.close()
    before = path.read_bytes()
    with pytest.raises(NeedsHuman, match="newer forecastd"):
        Ledger(path)
    assert path.read_bytes() == before


def downgrade_to_version_2(path: Path) -> None:
    """Rewrite a closed ledger as version 2 wrote it: `dead` for `abandoned`, and the high-water mark under its old name."""
    database = sqlite3.connect(path, isolation_level=None)
    columns = ", ".join(EPOCH_COLUMNS)
    rows = database.execute(f"SELECT {columns} FROM epochs").fetchall()  # noqa: S608
    database.execute("DROP TABLE epochs")
    database.execute(_EPOCHS_TABLE.replace("'abandoned'", "'dead'"))
    for row in rows:
        values = ["dead" if value == "abandoned" else value for value in row]
        marks = ",".join("?" * (len(values) + 1))
        database.execute(f"INSERT INTO epochs ({columns}, crc) VALUES ({marks})", (*values, row_checksum(values)))  # noqa: S608
    database.execute("PRAGMA user_version=2")
    database.close()
    high_water = path.with_name(path.name + ".high-water")
    high_water.replace(path.with_name(path.name + ".witness"))


def fill_and_downgrade(path: Path) -> Submission:
    """A ledger of version 2 with an abandoned epoch and an open one; returns the submission of the open one."""
    ledger = Ledger(path)
    row = ledger.commit(SUBMISSION, 1.0)
    ledger.record(SUBMISSION.key, replace(row, state=SubmissionState.ABANDONED), 2.0)
    open_submission = replace(other_submission(1), nonce=1440)
    ledger.commit(open_submission, 3.0)
    ledger.close()
    downgrade_to_version_2(path)
    return open_submission


def test_version_2_ledger_is_migrated(path: Path) -> None:
    open_submission = fill_and_downgrade(path)
    ledger = Ledger(path)
    assert list(find_problems(ledger._db)) == []
    entries = {entry.nonce: entry for entry in ledger.entries("localnet", "allo1x", states=OPEN_STATES)}
    assert {nonce: entry.row.state for nonce, entry in entries.items()} == {
        720: SubmissionState.ABANDONED,
        1440: SubmissionState.SIGNED,
    }
    assert ledger.attempts(open_submission.key) == [open_submission]
    assert ledger.commit(other_submission(2), 4.0).attempts == 2
    ledger.close()
    assert not list(path.parent.glob("*.damaged-*"))
    assert [file.name for file in sorted(path.parent.iterdir())] == ["ledger.sqlite", "ledger.sqlite.high-water"]


def test_version_2_ledger_older_than_its_high_water_mark_is_set_aside(path: Path) -> None:
    fill_and_downgrade(path)
    path.with_name(path.name + ".witness").write_text("3")
    ledger = Ledger(path)
    assert ledger.find(SUBMISSION.key) is None
    ledger.close()
    assert path.with_name(f"{path.name}.damaged-1.witness").exists()


def test_version_2_ledger_with_changed_row_is_set_aside(path: Path) -> None:
    fill_and_downgrade(path)
    database = sqlite3.connect(path)
    database.execute("UPDATE epochs SET value = '0.0124' WHERE state = 'dead'")
    database.commit()
    database.close()
    ledger = Ledger(path)
    assert ledger.find(SUBMISSION.key) is None
    ledger.close()
    assert list(path.parent.glob("ledger.sqlite.damaged-1"))


def test_version_2_ledger_is_read_by_a_snapshot_and_unchanged(path: Path) -> None:
    fill_and_downgrade(path)
    before = path.read_bytes()
    with open_snapshot(path) as snapshot:
        assert snapshot.find_problems() == []
        states = {entry.nonce: entry.row.state for entry in snapshot.newest_entries()}
    assert states == {720: SubmissionState.ABANDONED, 1440: SubmissionState.SIGNED}
    assert path.read_bytes() == before


def commit_many(path: Path, number: int = 0) -> bytes:
    """The bytes of a closed ledger with `number + 1` commits."""
    ledger = Ledger(path)
    for index in range(number + 1):
        ledger.commit(replace(other_submission(index), nonce=720 * (index + 1)), 1.0)
    ledger.close()
    return path.read_bytes()


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "zeroed":
        path.write_bytes(b"")
    elif kind == "no database":
        path.write_bytes(b"not a database at all" * 100)
    elif kind == "cut in half":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "a page of zeroes":
        path.write_bytes(content[:4096] + bytes(4096) + content[8192:])
    elif kind == "a flipped bit in the signed bytes":
        content[content.index(BYTES) + 3] ^= 1
        path.write_bytes(content)
    elif kind == "a flipped bit in the value":
        content[content.index(b"0.0123") + 2] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()


DAMAGE_KINDS = [
    "zeroed", "no database", "cut in half", "a page of zeroes", "a flipped bit in the signed bytes",
    "a flipped bit in the value", "deleted",
]  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE_KINDS)
def test_damaged_ledger_is_set_aside_and_recreated(path: Path, kind: str) -> None:
    commit_many(path)
    damage(path, kind)
    ledger = Ledger(path)
    assert ledger.find(SUBMISSION.key) is None
    assert ledger.known_from("localnet", "allo1x") is None
    ledger.commit(SUBMISSION, 2.0)
    ledger.close()
    assert list(path.parent.glob("ledger.sqlite.damaged-1"))
    Ledger(path).close()


def test_restored_older_ledger_is_set_aside(path: Path, tmp_path: Path) -> None:
    commit_many(path)
    shutil.copy(path, tmp_path / "backup")
    ledger = Ledger(path)
    ledger.commit(replace(other_submission(1), nonce=1440), 2.0)
    ledger.close()
    shutil.copy(tmp_path / "backup", path)
    reopened = Ledger(path)
    assert reopened.find(SUBMISSION.key) is None
    reopened.close()
    assert (path.parent / "ledger.sqlite.damaged-1").read_bytes() == (tmp_path / "backup").read_bytes()


def test_path_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NeedsHuman, match="STATE_DIR"):
        Ledger(tmp_path / "file" / "state" / "ledger.sqlite")


def test_commit_on_full_disk_fails_and_keeps_the_ledger(path: Path) -> None:
    ledger = Ledger(path)
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count={pages}")  # SQLite then reports a full disk
    content = b"x" * 100_000
    with pytest.raises(RetryLater, match="full; nothing was sent"):
        ledger.commit(replace(SUBMISSION, tx_bytes=content, tx_hash=tx_hash(content)), 1.0)
    assert ledger.find(SUBMISSION.key) is None
    assert ledger.find_problems() == []
    ledger.close()
    Ledger(path).close()


def test_ledger_file_is_private(ledger: Ledger) -> None:
    assert ledger.path.stat().st_mode & 0o777 == 0o600
