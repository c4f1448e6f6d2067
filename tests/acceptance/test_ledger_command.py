"""`ledger`: what was submitted, listed, shown, exported, and held against the chain."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sqlite3
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from forecastd.ledger import Ledger
from forecastd.ledgerfile import EPOCH_COLUMNS, checksum

CLOSED = "127.0.0.1:9"  # the discard port, which nothing listens on


@pytest.fixture
def served(once: Callable[..., Any]) -> dict[str, Any]:
    """An epoch that was submitted: its outcome."""
    done = once()
    assert done.code == 0, done.err
    told: dict[str, Any] = done.told
    return told


@contextmanager
def changed(state: Path) -> Iterator[sqlite3.Connection]:
    """The ledger's database to be changed behind the program's back."""
    database = sqlite3.connect(state / "ledger.sqlite")
    yield database
    database.commit()
    database.close()


def claim(place: Path, column: str, value: object) -> None:
    """Make the only epoch's row claim something else, checksum and all."""
    with changed(place) as database:
        database.execute(f"UPDATE epochs SET {column} = ?", (value,))  # noqa: S608
        values = database.execute(f"SELECT {', '.join(EPOCH_COLUMNS)} FROM epochs").fetchone()  # noqa: S608
        database.execute("UPDATE epochs SET crc = ?", (checksum(values),))


def test_without_a_ledger_there_is_nothing_to_list_and_nothing_is_made(command: Any, tmp_path: Path) -> None:
    for arguments in (("list", "--json"), ("export", "--format", "json")):
        done = command("ledger", *arguments)
        assert (done.code, done.told) == (0, {"epochs": []})
        assert "nothing was signed" in done.err
    for line in ("show 720", "verify", "trust --yes"):
        done = command("ledger", *line.split())
        assert (done.code, done.out) == (5, "")
        assert "Traceback" not in done.err
    assert not (tmp_path / "state" / "ledger.sqlite").exists()


def test_an_epoch_is_listed_shown_exported_and_agrees_with_the_chain(
    command: Any, served: dict[str, Any], tmp_path: Path
) -> None:
    nonce = str(served["nonce"])
    (listed,) = command("ledger", "list", "--json").told["epochs"]
    for field in ("nonce", "tx_hash", "height", "chain_id", "wallet", "topic_id"):
        assert listed[field] == served[field], field
    assert listed["state"] == "included"
    assert float(listed["value"]) == served["value"]

    (shown,) = command("ledger", "show", nonce, "--json").told["epochs"]
    (signature,) = shown["signatures"]
    assert hashlib.sha256(b64decode(signature["tx_bytes"])).hexdigest().upper() == served["tx_hash"]
    assert {name: shown[name] for name in listed} == listed

    text = command("ledger", "export").out
    (row,) = csv.DictReader(io.StringIO(text))
    assert row == {name: "" if value is None else str(value) for name, value in listed.items()}
    file = tmp_path / "out" / "ledger.json"
    assert command("ledger", "export", "--format", "json", "--out", str(file)).code == 0
    assert json.loads(file.read_text()) == {"epochs": [shown]}
    assert command("ledger", "export", "--out", str(file)).code == 5, "a file is not replaced unasked"
    assert command("ledger", "export", "--out", str(file), "--force").code == 0
    assert file.read_text() == text

    verified = command("ledger", "verify", "--json")
    assert verified.code == 0, verified.out
    assert verified.told["agrees"] is True
    assert [epoch["said"] for epoch in verified.told["epochs"]] == ["agrees"]


def test_what_people_see_fits_eighty_columns(command: Any, served: dict[str, Any]) -> None:
    for arguments in (("list",), ("show", str(served["nonce"])), ("verify",)):
        done = command("ledger", *arguments)
        assert done.code == 0, done.err
        assert str(served["nonce"]) in done.out or arguments == ("verify",)
        assert max(map(len, done.out.splitlines())) <= 80
        assert done.out.isascii()


def test_a_list_is_narrowed_by_topic_state_and_number(command: Any, once: Callable[..., Any]) -> None:
    moments = ("2026-03-01T12:30:00Z", "2026-03-01T15:30:00Z", "2026-03-02T12:30:00Z")
    nonces = [once("--as-of", moment).told["nonce"] for moment in moments]

    def listed(*arguments: str) -> list[int]:
        return [epoch["nonce"] for epoch in command("ledger", "list", "--json", *arguments).told["epochs"]]

    assert listed() == nonces[::-1]
    assert listed("--limit", "2") == nonces[:0:-1]
    assert listed("--state", "included") == nonces[::-1]
    assert listed("--state", "missed") == listed("--topic-id", "68") == []
    told = command("ledger", "verify", "--json").told
    assert (told["checked"], sum(told["not_asked"].values())) == (0, 3), "a replay's chain is another one"


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("state", "missed", "the ledger says missed, but block"),
        ("state", "dead", "the ledger says dead, but block"),
        ("height", 3, "not 3"),
    ],
)
def test_a_false_claim_ends_with_five_and_is_named(
    command: Any, served: dict[str, Any], tmp_path: Path, *, column: str, value: object, words: str
) -> None:
    claim(tmp_path / "state", column, value)
    done = command("ledger", "verify", "--json")
    assert done.code == 5
    (disagreement,) = done.told["disagreements"]
    assert words in disagreement
    assert str(served["nonce"]) in disagreement
    assert "1 disagreement" in command("ledger", "verify").out


def test_a_transaction_that_no_block_has_and_a_changed_row_are_disagreements(
    command: Any, served: dict[str, Any], tmp_path: Path
) -> None:
    with changed(tmp_path / "state") as database:
        bytes_ = b"never sent"
        database.execute(
            "UPDATE attempts SET tx_bytes = ?, tx_hash = ?", (bytes_, hashlib.sha256(bytes_).hexdigest().upper())
        )
        database.execute("UPDATE epochs SET nonce = nonce - 720")
    told = command("ledger", "verify", "--json").told
    assert "the file: the row of topic 67" in told["disagreements"][0]
    assert any("no endpoint has a transaction of it" in one for one in told["disagreements"])
    assert served["nonce"] - 720 in [epoch["nonce"] for epoch in told["epochs"]]


def test_a_chain_that_cannot_be_asked_ends_with_six(command: Any, served: dict[str, Any]) -> None:
    done = command("ledger", "verify", RPC_ENDPOINTS=CLOSED)
    assert (done.code, done.out) == (6, "")
    assert CLOSED in done.err
    assert command("ledger", "list", "--json", RPC_ENDPOINTS=CLOSED).told["epochs"][0]["nonce"] == served["nonce"]


def test_reading_works_beside_a_worker_and_trusting_does_not(
    command: Any, served: dict[str, Any], tmp_path: Path
) -> None:
    worker = Ledger(tmp_path / "state" / "ledger.sqlite")
    try:
        assert command("ledger", "list", "--json").told["epochs"][0]["nonce"] == served["nonce"]
        assert command("ledger", "verify").code == 0
        done = command("ledger", "trust", "--yes")
        assert done.code == 6
        assert "stop the other first" in done.err
    finally:
        worker.close()


def test_after_a_foreign_signature_nothing_is_signed_until_the_account_is_trusted(
    command: Any, once: Callable[..., Any], served: dict[str, Any], tmp_path: Path
) -> None:
    assert "nothing was changed" in command("ledger", "trust").out
    with changed(tmp_path / "state") as database:  # as if the registration had been somebody else's
        database.execute("DELETE FROM uses")
    stopped = once()
    assert stopped.code == 5
    assert "ledger trust" in stopped.told["reason"]
    assert "sequences 0" in command("ledger", "verify", "--json").told["disagreements"][0]
    assert command("ledger", "trust").code != 0, "without an answer nothing is given up"
    assert once().code == 5
    done = command("ledger", "trust", "--yes")
    assert done.code == 0
    assert "used by somebody else: 0" in done.out
    assert once().told["outcome"] == "already_submitted"
    assert command("ledger", "verify").code == 0
    assert served["nonce"] == once().told["nonce"]


@pytest.mark.parametrize("name", ["list", "show", "export", "verify", "trust"])
def test_every_command_explains_itself(command: Any, name: str) -> None:
    assert "Usage: forecastd ledger" in command("ledger", name, "--help").out
