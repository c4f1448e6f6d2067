"""`doctor`: one line per check, whatever else is broken, and no changes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PHRASE = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"
TYPO = PHRASE.replace("about", "abuot")
CLOSED = "127.0.0.1:9"  # the discard port; nothing listens there
ALL = {
    "settings", "wallet", "endpoint", "balance", "topic", "sequence", "clock", "source", "model", "disk", "ledger", "service",
}  # fmt: skip


def levels(report: dict[str, Any], level: str) -> set[str]:
    return {finding["check"] for finding in report["findings"] if finding["level"] == level}


@pytest.mark.lean
def test_doctor_defaults_are_healthy(command: Any) -> None:
    result = command("doctor", "--json")
    assert result.code == 0, result.out
    assert result.err == ""
    assert {finding["check"] for finding in result.document["findings"]} == ALL
    assert levels(result.document, "ok") == ALL - {"service"}
    assert (result.document["ok"], result.document["worst"]) == (True, "ok")


def test_doctor_text_output_fits_eighty_columns(command: Any) -> None:
    result = command("doctor")
    assert result.code == 0, result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert result.out.isascii()
    labels = {line.split()[1] for line in result.out.splitlines() if line[:1].strip()}
    assert labels == ALL


@pytest.mark.lean
def test_doctor_after_submission_reports_and_changes_nothing(
    command: Any, once: Callable[..., Any], tmp_path: Path
) -> None:
    outcome = once().document
    ledger = tmp_path / "state" / "ledger.sqlite"
    before = ledger.read_bytes()
    messages = {finding["check"]: finding["message"] for finding in command("doctor", "--json").document["findings"]}
    assert "1 epoch, 0 of them open" in messages["ledger"]
    assert str(outcome["nonce"]) in messages["ledger"]
    assert "next is 2" in messages["sequence"], "after the registration and the submission; the doctor sends nothing"
    assert "the last fee" in messages["balance"]
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
            "synthetic",
            {"source", "model", "endpoint"},
        ),
    ],
)
def test_doctor_failing_check_does_not_stop_others(
    command: Any, tmp_path: Path, *, environment: dict[str, str], check: str, words: str, fails: set[str]
) -> None:
    (tmp_path / "loose").write_text(PHRASE)
    (tmp_path / "loose").chmod(0o644)
    result = command("doctor", "--json", **environment)
    assert result.code == 5, result.out + result.err
    assert result.err == ""
    assert levels(result.document, "fail") == fails
    matching = [
        finding for finding in result.document["findings"] if (finding["check"], finding["level"]) == (check, "fail")
    ]
    assert any(words in finding["message"] for finding in matching), matching
    assert all(finding["fix"] for finding in matching)
    assert {"source", "model", "disk", "service"} <= {finding["check"] for finding in result.document["findings"]}
    assert "abandon" not in result.out
    assert "abuot" not in result.out


def test_doctor_misspelled_setting_warns(command: Any) -> None:
    result = command("doctor", "--json", RPC_ENDPOINT=CLOSED)
    assert result.code == 0
    (warning,) = [finding for finding in result.document["findings"] if finding["level"] == "warn"]
    assert "RPC_ENDPOINT in the environment" in warning["message"]
    assert "RPC_ENDPOINTS" in warning["fix"]


def test_doctor_foreign_signer_and_damaged_ledger_fail(command: Any, once: Callable[..., Any], tmp_path: Path) -> None:
    assert once().code == 0
    database = sqlite3.connect(tmp_path / "state" / "ledger.sqlite")
    database.execute("DELETE FROM uses")
    database.execute("UPDATE epochs SET value = '0.5'")
    database.commit()
    database.close()
    result = command("doctor", "--json")
    assert result.code == 5
    assert levels(result.document, "fail") == {"sequence", "ledger"}
    text = " ".join(finding["message"] + finding["fix"] for finding in result.document["findings"])
    assert "another program used this key: sequence 0" in text
    assert "ledger trust" in text
    assert "is not what was written" in text


def test_doctor_reports_each_topic_of_a_file(command: Any, tmp_path: Path) -> None:
    (tmp_path / "topics.toml").write_text("[[topic]]\nid = 67\n[[topic]]\nid = 4242\n")
    result = command("doctor", "--json", "--topics", "topics.toml")
    assert result.code == 5
    topics = [finding["message"] for finding in result.document["findings"] if finding["check"] == "topic"]
    assert any(message.startswith("67 is active") for message in topics)
    assert any(message.startswith("4242 does not exist") for message in topics)
    assert sum(finding["check"] == "model" for finding in result.document["findings"]) == 1, (
        "a shared model is loaded once"
    )
