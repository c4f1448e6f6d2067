"""The `ledger` commands: list, show, export, verify and trust."""

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

from cli.main import main
from forecastd.ledger.file import EPOCH_COLUMNS, row_checksum
from forecastd.ledger.ledger import Ledger

CLOSED = "127.0.0.1:9"  # the discard port: nothing listens there


@pytest.fixture
def submitted_epoch(once: Callable[..., Any]) -> dict[str, Any]:
    """The outcome of a submitted epoch."""
    result = once()
    assert result.code == 0, result.err
    document: dict[str, Any] = result.document
    return document


@contextmanager
def edit_database(state: Path) -> Iterator[sqlite3.Connection]:
    """The ledger's database, to change it without the program."""
    database = sqlite3.connect(state / "ledger.sqlite")
    yield database
    database.commit()
    database.close()


def edit_entry(state: Path, column: str, value: object) -> None:
    """Change the row of the only epoch, together with its checksum."""
    with edit_database(state) as database:
        database.execute(f"UPDATE epochs SET {column} = ?", (value,))  # noqa: S608
        values = database.execute(f"SELECT {', '.join(EPOCH_COLUMNS)} FROM epochs").fetchone()  # noqa: S608
        database.execute("UPDATE epochs SET crc = ?", (row_checksum(values),))


@pytest.mark.lean
def test_missing_ledger_lists_nothing_and_creates_nothing(command: Any, tmp_path: Path) -> None:
    for arguments in (("list", "--json"), ("export", "--format", "json")):
        result = command("ledger", *arguments)
        assert (result.code, result.document) == (0, {"epochs": []})
        assert "nothing was signed" in result.err
    for line in ("show 720", "verify", "trust --yes"):
        result = command("ledger", *line.split())
        assert (result.code, result.out) == (5, "")
        assert "Traceback" not in result.err
    assert not (tmp_path / "state" / "ledger.sqlite").exists()


@pytest.mark.lean
def test_epoch_is_listed_shown_exported_and_verified(
    command: Any, submitted_epoch: dict[str, Any], tmp_path: Path
) -> None:
    nonce = str(submitted_epoch["nonce"])
    (epoch_row,) = command("ledger", "list", "--json").document["epochs"]
    for field in ("nonce", "tx_hash", "height", "chain_id", "wallet", "topic_id"):
        assert epoch_row[field] == submitted_epoch[field], field
    assert epoch_row["state"] == "included"
    assert float(epoch_row["value"]) == submitted_epoch["value"]

    (epoch_document,) = command("ledger", "show", nonce, "--json").document["epochs"]
    (signature,) = epoch_document["signatures"]
    assert hashlib.sha256(b64decode(signature["tx_bytes"])).hexdigest().upper() == submitted_epoch["tx_hash"]
    assert {name: epoch_document[name] for name in epoch_row} == epoch_row

    text = command("ledger", "export").out
    (row,) = csv.DictReader(io.StringIO(text))
    assert row == {name: "" if value is None else str(value) for name, value in epoch_row.items()}
    file = tmp_path / "out" / "ledger.json"
    assert command("ledger", "export", "--format", "json", "--out", str(file)).code == 0
    assert json.loads(file.read_text()) == {"epochs": [epoch_document]}
    assert command("ledger", "export", "--out", str(file)).code == 5, "a file must not be replaced without --force"
    assert command("ledger", "export", "--out", str(file), "--force").code == 0
    assert file.read_text() == text

    verification = command("ledger", "verify", "--json")
    assert verification.code == 0, verification.out
    assert verification.document["agrees"] is True
    assert [epoch["verdict"] for epoch in verification.document["epochs"]] == ["agrees"]


def test_text_output_fits_80_columns(command: Any, submitted_epoch: dict[str, Any]) -> None:
    for arguments in (("list",), ("show", str(submitted_epoch["nonce"])), ("verify",)):
        result = command("ledger", *arguments)
        assert result.code == 0, result.err
        assert str(submitted_epoch["nonce"]) in result.out or arguments == ("verify",)
        assert max(map(len, result.out.splitlines())) <= 80
        assert result.out.isascii()


def test_list_is_filtered_by_topic_state_and_limit(command: Any, once: Callable[..., Any]) -> None:
    moments = ("2026-03-01T12:30:00Z", "2026-03-01T15:30:00Z", "2026-03-02T12:30:00Z")
    nonces = [once("--as-of", moment).document["nonce"] for moment in moments]

    def list_epochs(*arguments: str) -> list[int]:
        return [epoch["nonce"] for epoch in command("ledger", "list", "--json", *arguments).document["epochs"]]

    assert list_epochs() == nonces[::-1]
    assert list_epochs("--limit", "2") == nonces[:0:-1]
    assert list_epochs("--state", "included") == nonces[::-1]
    assert list_epochs("--state", "missed") == list_epochs("--topic-id", "68") == []
    document = command("ledger", "verify", "--json").document
    assert (document["checked"], sum(document["other_chains"].values())) == (0, 3), "a replay has another chain"


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("state", "missed", "the ledger has missed, but block"),
        ("state", "abandoned", "the ledger has abandoned, but block"),
        ("height", 3, "not 3"),
    ],
)
def test_verify_false_entry_exits_5(
    command: Any, submitted_epoch: dict[str, Any], tmp_path: Path, *, column: str, value: object, words: str
) -> None:
    edit_entry(tmp_path / "state", column, value)
    result = command("ledger", "verify", "--json")
    assert result.code == 5
    (disagreement,) = result.document["disagreements"]
    assert words in disagreement
    assert str(submitted_epoch["nonce"]) in disagreement
    assert "1 disagreement" in command("ledger", "verify").out


def test_verify_unknown_transaction_and_changed_row_disagree(
    command: Any, submitted_epoch: dict[str, Any], tmp_path: Path
) -> None:
    with edit_database(tmp_path / "state") as database:
        bytes_ = b"never sent"
        database.execute(
            "UPDATE attempts SET tx_bytes = ?, tx_hash = ?", (bytes_, hashlib.sha256(bytes_).hexdigest().upper())
        )
        database.execute("UPDATE epochs SET nonce = nonce - 720")
    document = command("ledger", "verify", "--json").document
    assert "the file: the row of topic 67" in document["disagreements"][0]
    assert any("no endpoint has its transaction" in disagreement for disagreement in document["disagreements"])
    assert submitted_epoch["nonce"] - 720 in [epoch["nonce"] for epoch in document["epochs"]]


def test_verify_unreachable_chain_exits_6(command: Any, submitted_epoch: dict[str, Any]) -> None:
    result = command("ledger", "verify", RPC_ENDPOINTS=CLOSED)
    assert (result.code, result.out) == (6, "")
    assert CLOSED in result.err
    assert (
        command("ledger", "list", "--json", RPC_ENDPOINTS=CLOSED).document["epochs"][0]["nonce"]
        == submitted_epoch["nonce"]
    )


def test_reading_beside_worker_works_and_trust_does_not(
    command: Any, submitted_epoch: dict[str, Any], tmp_path: Path
) -> None:
    worker = Ledger(tmp_path / "state" / "ledger.sqlite")
    try:
        assert command("ledger", "list", "--json").document["epochs"][0]["nonce"] == submitted_epoch["nonce"]
        assert command("ledger", "verify").code == 0
        result = command("ledger", "trust", "--yes")
        assert result.code == 6
        assert "Stop it first" in result.err
    finally:
        worker.close()


def test_foreign_signature_blocks_signing_until_trust(
    command: Any, once: Callable[..., Any], submitted_epoch: dict[str, Any], tmp_path: Path
) -> None:
    assert "nothing was changed" in command("ledger", "trust").out
    with edit_database(tmp_path / "state") as database:  # as if another signer had made the registration
        database.execute("DELETE FROM uses")
    stopped = once()
    assert stopped.code == 5
    assert "ledger trust" in stopped.document["reason"]
    assert "sequences 0" in command("ledger", "verify", "--json").document["disagreements"][0]
    assert command("ledger", "trust").code != 0, "without an answer nothing may be accepted"
    assert once().code == 5
    result = command("ledger", "trust", "--yes")
    assert result.code == 0
    assert "used by another signer: 0" in result.out
    assert once().document["outcome"] == "already_submitted"
    assert command("ledger", "verify").code == 0
    assert submitted_epoch["nonce"] == once().document["nonce"]


@pytest.mark.parametrize("name", ["list", "show", "export", "verify", "trust"])
def test_every_ledger_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", name, "--help"]) == 0
    assert "Usage: forecastd ledger" in capsys.readouterr().out
