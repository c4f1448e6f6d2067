"""`doctor`: a line each for everything a worker stands on, whatever else is broken, and nothing changed by it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PHRASE = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"
TYPO = PHRASE.replace("about", "abuot")
CLOSED = "127.0.0.1:9"  # the discard port, which nothing listens on
ALL = {
    "settings", "wallet", "endpoint", "balance", "topic", "sequence", "clock", "source", "model", "disk", "ledger", "service",
}  # fmt: skip


def levels(told: dict[str, Any], level: str) -> set[str]:
    return {finding["check"] for finding in told["findings"] if finding["level"] == level}


def test_the_embedded_defaults_are_healthy(command: Any) -> None:
    done = command("doctor", "--json")
    assert done.code == 0, done.out
    assert done.err == ""
    assert {finding["check"] for finding in done.told["findings"]} == ALL
    assert levels(done.told, "ok") == ALL - {"service"}
    assert (done.told["ok"], done.told["worst"]) == (True, "ok")


def test_people_get_the_same_in_eighty_columns(command: Any) -> None:
    done = command("doctor")
    assert done.code == 0, done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert done.out.isascii()
    labels = {line.split()[1] for line in done.out.splitlines() if line[:1].strip()}
    assert labels == ALL


def test_after_a_submission_it_knows_ledger_sequence_and_fee_and_changes_nothing(
    command: Any, once: Callable[..., Any], tmp_path: Path
) -> None:
    served = once().told
    ledger = tmp_path / "state" / "ledger.sqlite"
    before = ledger.read_bytes()
    told = {finding["check"]: finding["found"] for finding in command("doctor", "--json").told["findings"]}
    assert "1 epochs, 0 of them open" in told["ledger"]
    assert str(served["nonce"]) in told["ledger"]
    assert "next is 2" in told["sequence"], "the registration and the submission, and nothing of the doctor's"
    assert "the last fee" in told["balance"]
    assert ledger.read_bytes() == before


@pytest.mark.parametrize(
    ("environment", "check", "words", "fails"),
    [
        ({"MNEMONIC": TYPO}, "wallet", "word 12", {"wallet"}),
        ({"MNEMONIC": PHRASE, "ALLORA_WALLET_ADDR": "allo1other"}, "wallet", "allo1other", {"wallet"}),
        ({"MNEMONIC_FILE": "loose"}, "wallet", "mode 0644", {"wallet"}),
        ({"TOPIC_ID": "x"}, "settings", "TOPIC_ID", {"settings"}),
        ({"TOPIC_ID": "4242"}, "topic", "4242 does not exist", {"topic"}),
        ({"RPC_ENDPOINTS": CLOSED}, "endpoint", CLOSED, {"endpoint"}),
        ({"RPC_ENDPOINTS": "a:1,not an endpoint"}, "endpoint", "Item 2", {"endpoint"}),
        ({"DATA_SOURCE": "moon"}, "source", "moon", {"source"}),
        ({"DATA_SOURCE": "file:nowhere.csv"}, "source", "nowhere.csv", {"source"}),
        ({"DATA_SOURCE": "tiingo"}, "source", "TIINGO_API_KEY", {"source"}),
        ({"MODEL": "nowhere"}, "model", "nowhere", {"model"}),
        ({"STATE_DIR": "loose"}, "disk", "STATE_DIR", {"disk", "wallet", "endpoint", "ledger"}),
        ({"ALLORA_NETWORK": "moon"}, "settings", "ALLORA_NETWORK", {"settings"}),
        (
            {"ALLORA_NETWORK": "testnet", "MNEMONIC": PHRASE, "RPC_ENDPOINTS": CLOSED},
            "source",
            "made up",
            {"source", "model", "endpoint"},
        ),
    ],
)
def test_what_is_broken_fails_and_everything_else_is_still_looked_at(
    command: Any, tmp_path: Path, *, environment: dict[str, str], check: str, words: str, fails: set[str]
) -> None:
    (tmp_path / "loose").write_text(PHRASE)
    (tmp_path / "loose").chmod(0o644)
    done = command("doctor", "--json", **environment)
    assert done.code == 5, done.out + done.err
    assert done.err == ""
    assert levels(done.told, "fail") == fails
    named = [finding for finding in done.told["findings"] if (finding["check"], finding["level"]) == (check, "fail")]
    assert any(words in finding["found"] for finding in named), named
    assert all(finding["fix"] for finding in named)
    assert {"source", "model", "disk", "service"} <= {finding["check"] for finding in done.told["findings"]}
    assert "abandon" not in done.out
    assert "abuot" not in done.out


def test_a_setting_that_is_misspelt_is_a_warning(command: Any) -> None:
    done = command("doctor", "--json", RPC_ENDPOINT=CLOSED)
    assert done.code == 0
    (warning,) = [finding for finding in done.told["findings"] if finding["level"] == "warn"]
    assert "RPC_ENDPOINT in the environment" in warning["found"]
    assert "RPC_ENDPOINTS" in warning["fix"]


def test_a_foreign_signer_and_a_damaged_ledger_are_told(command: Any, once: Callable[..., Any], tmp_path: Path) -> None:
    assert once().code == 0
    database = sqlite3.connect(tmp_path / "state" / "ledger.sqlite")
    database.execute("DELETE FROM uses")
    database.execute("UPDATE epochs SET value = '0.5'")
    database.commit()
    database.close()
    done = command("doctor", "--json")
    assert done.code == 5
    assert levels(done.told, "fail") == {"sequence", "ledger"}
    told = " ".join(finding["found"] + finding["fix"] for finding in done.told["findings"])
    assert "somebody else signed with this key: 0" in told
    assert "ledger trust" in told
    assert "is not what was written" in told


def test_each_topic_of_a_file_has_its_lines(command: Any, tmp_path: Path) -> None:
    (tmp_path / "topics.toml").write_text("[[topic]]\nid = 67\n[[topic]]\nid = 4242\n")
    done = command("doctor", "--json", "--topics", "topics.toml")
    assert done.code == 5
    topics = [finding["found"] for finding in done.told["findings"] if finding["check"] == "topic"]
    assert any(found.startswith("67 is active") for found in topics)
    assert any(found.startswith("4242 does not exist") for found in topics)
    assert sum(finding["check"] == "model" for finding in done.told["findings"]) == 1, "a shared model is loaded once"
