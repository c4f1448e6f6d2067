"""`--once`: one submission per epoch, never two, and each refusal with its documented exit code."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forecastd.supervise.process import child_environment

Once = Callable[..., Any]
KEYS = {
    "outcome", "reason", "chain_id", "topic_id", "nonce", "wallet", "value", "quantiles", "tx_hash", "height", "source",
    "synthetic", "as_of", "bundle", "stages",
}  # fmt: skip
# BIP-39's own example.
PHRASE = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"
CLOSED = "127.0.0.1:9"  # the discard port: nothing listens there


def query_ledger(state: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(state / "ledger.sqlite") as database:
        query = (
            "SELECT nonce, state, tx_hash, height FROM epochs JOIN attempts USING (chain_id, topic_id, nonce, wallet)"
        )
        return database.execute(query).fetchall()


@pytest.mark.usefixtures("time_left_in_the_hour")
@pytest.mark.lean
def test_defaults_submit_in_a_block(command: Any, tmp_path: Path) -> None:
    result = command("--once", "--json")
    document = result.document
    assert (result.code, document["exit_code"]) == (0, 0), result.err
    assert set(document) >= KEYS
    assert (document["outcome"], document["chain_id"], document["topic_id"]) == ("submitted", "localnet", 67)
    assert document["source"] == "sample"
    assert document["synthetic"] is True
    assert list(document["quantiles"].values()) == sorted(document["quantiles"].values())
    assert abs(document["value"] - document["quantiles"]["0.5"]) < 1e-12
    assert set(document["stages"]) == {"chain", "data", "model", "forecast", "guards", "sign", "submit"}
    assert query_ledger(tmp_path / "state") == [
        (document["nonce"], "included", document["tx_hash"], document["height"])
    ]


@pytest.mark.lean
def test_second_run_reports_already_submitted(once: Once, tmp_path: Path) -> None:
    moment = ("--as-of", "2026-03-01T12:30:00Z")
    first, second = once(*moment), once(*moment)
    assert (first.code, second.code) == (0, 0)
    assert second.document["outcome"] == "already_submitted"
    for field in ("nonce", "tx_hash", "value", "height"):
        assert second.document[field] == first.document[field], field
    assert len(query_ledger(tmp_path / "state")) == 1


@pytest.mark.lean
def test_lost_ledger_does_not_submit_twice(once: Once, tmp_path: Path) -> None:
    moment = ("--as-of", "2026-03-01T12:30:00Z")
    first = once(*moment)
    (tmp_path / "state" / "ledger.sqlite").unlink()
    second = once(*moment)
    assert second.document["outcome"] == "already_submitted"
    assert second.document["nonce"] == first.document["nonce"]


@pytest.mark.lean
def test_replay_uses_reference_time_and_own_chain(once: Once) -> None:
    document = once("--as-of", "2026-03-01T12:30:00+02:00").document
    assert document["as_of"] == "2026-03-01T10:30:00Z"
    assert document["chain_id"].startswith("localnet-20260301T103000Z-")
    repeated_run = once("--as-of", "2026-03-01T10:30:00Z", "--state-dir", "elsewhere").document
    assert repeated_run["value"] == document["value"], "the same candles and the same model must give the same forecast"


def test_replay_from_other_source_is_another_chain(once: Once) -> None:
    first, second = (
        once("--as-of", "2026-03-01T12:30:00Z", "--source", source).document for source in ("sample", "sample:7")
    )
    assert (first["outcome"], second["outcome"]) == ("submitted", "submitted")
    assert first["chain_id"] != second["chain_id"]
    assert first["value"] != second["value"]


def test_dry_run_after_submission_signs_nothing(once: Once) -> None:
    moment = ("--as-of", "2026-03-01T12:30:00Z")
    submission = once(*moment).document
    document = once("--dry-run", *moment).document
    assert document["outcome"] == "dry_run"
    assert "already has its submission" in document["reason"]
    assert document["value"] == pytest.approx(submission["value"])


def test_replay_refuses_a_running_node(once: Once) -> None:
    result = once("--as-of", "2026-03-01T12:30:00Z", RPC_ENDPOINTS="127.0.0.1:9090")
    assert result.code == 5
    assert "RPC_ENDPOINTS" in result.document["reason"]


@pytest.mark.usefixtures("one_epoch")
@pytest.mark.parametrize("lines", [0, 1, 8])
def test_broken_stdout_does_not_lose_the_epoch(
    root: Path, tmp_path: Path, environment: dict[str, str], lines: int
) -> None:
    arguments = [sys.executable, str(root / "submit_prediction.py"), "--once"]
    with subprocess.Popen(
        arguments, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 0
    assert [row[1] for row in query_ledger(tmp_path / "state")] == ["included"]


@pytest.mark.usefixtures("one_epoch")
def test_full_log_disk_warns_once_and_continues(command: Any, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "submission.log").symlink_to("/dev/full")
    result = command("--once")
    assert result.code == 0
    assert "Traceback" not in result.err
    assert result.err.count("Cannot write the log") == 1


@pytest.mark.usefixtures("one_epoch")
def test_log_contains_every_outcome(command: Any, tmp_path: Path) -> None:
    command("--once")
    command("--once", "--topic-id", "4242")
    log = (tmp_path / "logs" / "submission.log").read_text()
    assert "outcome: submitted, exit code 0" in log
    assert "outcome: failed, exit code 5" in log
    assert "Topic 4242 does not exist" in log


@pytest.mark.lean
def test_dry_run_shows_submission_and_sends_nothing(command: Any, once: Once, tmp_path: Path) -> None:
    moment = ("--as-of", "2026-03-01T12:30:00Z")
    result = command("--once", "--dry-run", *moment)
    assert result.code == 0
    for words in ("dry run", "nonce", "fee", "value"):
        assert words in result.out
    assert query_ledger(tmp_path / "state") == []
    assert once("--dry-run", *moment).document["tx_hash"] is None
    assert once(*moment).document["outcome"] == "submitted"


@pytest.mark.usefixtures("one_epoch")
def test_output_fits_80_columns_without_colours(command: Any) -> None:
    result = command("--once")
    assert result.code == 0
    assert max(len(line) for line in result.out.splitlines()) <= 80
    assert "\x1b" not in result.out
    assert result.out.isascii()
    labels = [line.split()[0] for line in result.out.splitlines() if line[:1].strip()]
    assert labels == ["chain", "data", "model", "forecast", "guards", "sign", "submit", "outcome", "tx"]


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "words"),
    [
        ((), {"RPC_ENDPOINTS": CLOSED}, 6, "127.0.0.1:9"),
        ((), {"RPC_ENDPOINTS": "not an endpoint"}, 5, "RPC_ENDPOINTS"),
        (("--topic-id", "4242"), {}, 5, "Topic 4242 does not exist"),
        (("--model", "nowhere"), {}, 5, "nowhere"),
        (("--features", "nowhere.json"), {}, 5, "nowhere.json"),
        (("--source", "moon"), {}, 5, "moon"),
        (("--source", "tiingo"), {}, 5, "TIINGO_API_KEY"),
        (("--source", "tiingo"), {"TIINGO_API_KEY": "k3y", "TIINGO_URL": f"http://{CLOSED}"}, 6, "cannot be reached"),
        (("--source", "file:nowhere.csv"), {}, 5, "nowhere.csv"),
        (("--source", "file:."), {}, 5, "directory"),
        (("--network", "testnet", "--model", "DEMO"), {"MNEMONIC": PHRASE}, 5, "synthetic"),
        (("--network", "testnet"), {"MNEMONIC": PHRASE}, 5, "model"),
        (("--network", "testnet", "--as-of", "2026-03-01T12:30:00Z"), {}, 5, "local network only"),
        ((), {"MNEMONIC": PHRASE, "ALLORA_WALLET_ADDR": "allo1other"}, 5, "allo1other"),
        ((), {"MNEMONIC": PHRASE.replace("about", "abuot")}, 5, "word 12"),
        ((), {"MNEMONIC": PHRASE.replace("about", "zoo")}, 5, "checksum"),
        ((), {"MNEMONIC_FILE": "nowhere"}, 5, "nowhere"),
        ((), {"TOPIC_ID": "x"}, 5, "TOPIC_ID"),
    ],
)
def test_refusal_has_exit_code_and_cause(
    once: Once, root: Path, *, arguments: tuple[str, ...], variables: dict[str, str], code: int, words: str
) -> None:
    demo = str(root / "models" / "demo")
    result = once(*(demo if argument == "DEMO" else argument for argument in arguments), **variables)
    assert result.code == code, result.out
    assert words in result.document["reason"]
    assert result.document["tx_hash"] is None


def test_readable_mnemonic_file_is_refused(once: Once, tmp_path: Path) -> None:
    path = tmp_path / "phrase"
    path.write_text(PHRASE)
    path.chmod(0o644)
    assert once(MNEMONIC_FILE=str(path)).code == 5
    path.chmod(0o600)
    assert once(MNEMONIC_FILE=str(path)).code == 0


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("", 5),
        ("date,open,high,low,close,volume\n", 4),
        ("date,open,high,low,close,volume\n2026-03-01T00:00:00Z,1,2,0.5,many,3\n", 5),
    ],
)
@pytest.mark.lean
def test_invalid_candle_file_is_reported(once: Once, tmp_path: Path, content: str, code: int) -> None:
    path = tmp_path / "candles.csv"
    path.write_text(content)
    result = once("--source", f"file:{path}", "--as-of", "2026-03-01T12:30:00Z")
    assert result.code in (4, 5), result.out
    assert "candles.csv" in result.document["reason"]


def test_features_in_other_order_are_refused(once: Once, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "features.json"
    path.write_text((root / "features.json").read_text().replace('"ret_1h"', '"x"').replace('"ret_24h"', '"ret_1h"'))
    path.write_text(path.read_text().replace('"x"', '"ret_24h"'))
    result = once("--features", str(path))
    assert result.code == 5
    assert "another order" in result.document["reason"]


@pytest.mark.parametrize("damage", ["truncated weights", "flipped bit", "no manifest", "pickle"])
@pytest.mark.lean
def test_damaged_bundle_signs_nothing(once: Once, root: Path, tmp_path: Path, damage: str) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(root / "models" / "demo", bundle)
    weights = bundle / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "truncated weights":
        weights.write_bytes(content[: len(content) // 2])
    elif damage == "flipped bit":
        content[-100] ^= 1
        weights.write_bytes(content)
    elif damage == "no manifest":
        (bundle / "manifest.json").unlink()
    else:
        bundle = tmp_path / "model.pkl"
        bundle.write_bytes(b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.")
    result = once("--model", str(bundle))
    assert result.code == 5, result.out
    assert not (tmp_path / "owned").exists()
    assert result.document["tx_hash"] is None


@pytest.mark.usefixtures("one_epoch")
def test_mnemonic_never_appears_in_output_or_files(command: Any, tmp_path: Path) -> None:
    # No other test file contains this mnemonic.
    phrase = "canoe ostrich banana giraffe tortoise gorilla mushroom lizard turtle donkey trumpet raccoon"
    all_output = ""
    for options in ((), ("-v",), ("--json",), ("--dry-run",), ("--topic-id", "4242")):
        result = command("--once", "-v", *options, MNEMONIC=phrase)
        all_output += result.out + result.err
    result = command("--once", "-v", MNEMONIC=phrase.replace("raccoon", "canoe"))
    all_output += result.out + result.err
    for path in tmp_path.rglob("*"):
        if path.is_file():
            all_output += path.read_bytes().decode("latin-1")
    for word in sorted(set(phrase.split())):
        assert not re.search(rf"\b{word}\b", all_output), f"{word!r} leaked"


def test_child_environment_contains_no_secret() -> None:
    assert set(child_environment()) == {"PATH", "LANG", "PYTHONPATH", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"}
