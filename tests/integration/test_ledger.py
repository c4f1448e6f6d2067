"""The ledger on a real disk: durable before anything is sent, one process at a time, set aside when it is not reliable."""

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
from forecastd.ledger import Ledger, Row, State, Submission
from forecastd.ledgerfile import VERSION

BYTES = b"\x00signed bytes"
SENT = Submission("localnet", 67, 720, "allo1x", "0.0123", 4, BYTES, tx_hash(BYTES), 1439, 200_000, 10**22)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    opened = Ledger(path)
    yield opened
    opened.close()


def another(number: int, base: Submission = SENT) -> Submission:
    """New bytes for the same epoch."""
    content = BYTES + bytes([number])
    return replace(base, tx_bytes=content, tx_hash=tx_hash(content), sequence=base.sequence + number)


def test_a_commit_is_found_again_by_another_process_with_every_field(path: Path) -> None:
    first = Ledger(path)
    first.commit(SENT, 12.5)
    first.close()
    again = Ledger(path)
    entry = again.find(SENT.key)
    assert entry is not None
    assert entry.row == Row(State.SIGNED, SENT.sequence, SENT.timeout_height)
    assert (entry.value, entry.first_at, entry.settled_at) == (SENT.value, 12.5, None)
    assert again.attempts(SENT.key) == [SENT]
    again.close()


def test_an_epoch_with_live_bytes_is_not_signed_again(ledger: Ledger) -> None:
    row = ledger.commit(SENT, 1.0)
    for state in State:
        ledger.record(SENT.key, replace(row, state=state), 2.0)
        if state is State.DEAD:
            continue
        with pytest.raises(NeedsHuman, match="never signed"):
            ledger.commit(another(1), 3.0)
    assert ledger.attempts(SENT.key) == [SENT]


def test_dead_bytes_are_followed_by_new_ones_and_both_stay_on_record(ledger: Ledger) -> None:
    row = ledger.commit(SENT, 1.0)
    ledger.record(SENT.key, replace(row, state=State.DEAD), 2.0)
    assert ledger.commit(another(1), 3.0).attempts == 2
    assert ledger.attempts(SENT.key) == [SENT, another(1)]


def test_a_settled_epoch_is_no_longer_listed_as_unsettled(ledger: Ledger) -> None:
    row = ledger.commit(SENT, 1.0)
    assert [entry.key for entry in ledger.entries("localnet", "allo1x", unsettled=True)] == [SENT.key]
    ledger.record(SENT.key, replace(row, state=State.ADMITTED, height=730), 2.0)
    assert ledger.entries("localnet", "allo1x", unsettled=True) == []
    entry = ledger.find(SENT.key)
    assert entry is not None
    assert (entry.row.height, entry.settled_at) == (730, 2.0)


def test_a_missed_epoch_is_an_entry_and_never_overwrites_one(ledger: Ledger) -> None:
    missed = ("localnet", 67, 1440, "allo1x")
    ledger.adopt(missed, State.MISSED, 5.0, reason="the worker did not run")
    entry = ledger.find(missed)
    assert entry is not None
    assert (entry.row.state, entry.row.reason, entry.value) == (State.MISSED, "the worker did not run", None)
    ledger.commit(SENT, 1.0)
    ledger.adopt(SENT.key, State.MISSED, 5.0, reason="no")
    kept = ledger.find(SENT.key)
    assert kept is not None
    assert kept.row.state is State.SIGNED


def test_other_wallets_and_chains_do_not_see_an_entry(ledger: Ledger) -> None:
    ledger.commit(SENT, 1.0)
    assert ledger.find(("testnet", 67, 720, "allo1x")) is None
    assert ledger.find(("localnet", 67, 720, "allo1y")) is None


def test_sequences_are_given_to_one_open_submission_each(ledger: Ledger) -> None:
    other = ("localnet", 68, 720, "allo1x")
    assert ledger.free_sequence(other, 4) == 4
    row = ledger.commit(SENT, 1.0)
    assert ledger.free_sequence(other, 4) == 5
    assert ledger.free_sequence(SENT.key, 4) == 4
    ledger.record(SENT.key, replace(row, state=State.MISSED), 2.0)
    assert ledger.free_sequence(other, 4) == 4


def test_a_sequence_that_a_block_has_used_is_not_signed_with_again_whatever_an_endpoint_says(ledger: Ledger) -> None:
    other = ("localnet", 67, 1440, "allo1x")
    row = ledger.commit(SENT, 1.0)
    for state in (State.INCLUDED, State.ADMITTED, State.PASSIVE, State.EVICTED):
        ledger.record(SENT.key, replace(row, state=state), 2.0)
        assert ledger.free_sequence(other, SENT.sequence) == SENT.sequence + 1, state
    assert ledger.free_sequence(other, SENT.sequence + 5) == SENT.sequence + 5
    ledger.adopt(("localnet", 67, 2160, "allo1x"), State.ADMITTED, 3.0, reason="the chain has it")
    assert ledger.free_sequence(other, SENT.sequence) == SENT.sequence + 1


def test_every_sequence_signed_with_is_remembered(ledger: Ledger) -> None:
    ledger.commit(SENT, 1.0)
    ledger.note_use("localnet", "allo1x", 3, "AA", "register for topic 67")
    assert ledger.used_sequences("localnet", "allo1x") == {3, 4}
    assert ledger.used_sequences("localnet", "allo1y") == set()


def test_a_second_process_is_turned_away(ledger: Ledger) -> None:
    code = (
        "import sys; from pathlib import Path; from forecastd.ledger import Ledger; from forecastd.errors import RetryLater\n"
        "try: Ledger(Path(sys.argv[1]), wait=0.1)\n"
        "except RetryLater as error: print(error); sys.exit(6)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ledger.path)], capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert "Another forecastd holds the ledger" in done.stdout


def test_a_newer_ledger_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version={VERSION + 1}")
    database.close()
    before = path.read_bytes()
    with pytest.raises(NeedsHuman, match="newer forecastd"):
        Ledger(path)
    assert path.read_bytes() == before


def committed(path: Path, number: int = 0) -> bytes:
    """A closed ledger with a commit (`number` more than one), as its file's bytes."""
    ledger = Ledger(path)
    for at in range(number + 1):
        ledger.commit(replace(another(at), nonce=720 * (at + 1)), 1.0)
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


KINDS = [
    "zeroed", "no database", "cut in half", "a page of zeroes", "a flipped bit in the signed bytes",
    "a flipped bit in the value", "deleted",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_ledger_that_cannot_be_relied_on_is_set_aside_and_begun_again(path: Path, kind: str) -> None:
    committed(path)
    damage(path, kind)
    ledger = Ledger(path)
    assert ledger.find(SENT.key) is None
    assert ledger.known_from("localnet", "allo1x") is None
    ledger.commit(SENT, 2.0)
    ledger.close()
    assert list(path.parent.glob("ledger.sqlite.damaged-1"))
    Ledger(path).close()


def test_an_older_ledger_put_in_place_is_noticed_and_set_aside(path: Path, tmp_path: Path) -> None:
    committed(path)
    shutil.copy(path, tmp_path / "backup")
    ledger = Ledger(path)
    ledger.commit(replace(another(1), nonce=1440), 2.0)
    ledger.close()
    shutil.copy(tmp_path / "backup", path)
    again = Ledger(path)
    assert again.find(SENT.key) is None
    again.close()
    assert (path.parent / "ledger.sqlite.damaged-1").read_bytes() == (tmp_path / "backup").read_bytes()


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NeedsHuman, match="STATE_DIR"):
        Ledger(tmp_path / "file" / "state" / "ledger.sqlite")


def test_a_full_disk_refuses_the_commit_and_keeps_the_ledger_whole(path: Path) -> None:
    ledger = Ledger(path)
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count={pages}")  # SQLite's own way to be out of space
    content = b"x" * 100_000
    with pytest.raises(RetryLater, match="full; nothing was sent"):
        ledger.commit(replace(SENT, tx_bytes=content, tx_hash=tx_hash(content)), 1.0)
    assert ledger.find(SENT.key) is None
    assert ledger.check() == "ok"
    ledger.close()
    Ledger(path).close()


def test_the_ledger_is_private(ledger: Ledger) -> None:
    assert ledger.path.stat().st_mode & 0o777 == 0o600
