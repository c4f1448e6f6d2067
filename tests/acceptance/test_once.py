"""`--once`: one forecast submitted, the same epoch never twice, and every refusal with its documented code."""

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

Once = Callable[..., Any]
KEYS = {
    "outcome", "reason", "chain_id", "topic_id", "nonce", "wallet", "value", "quantiles", "tx_hash", "height", "source",
    "synthetic", "as_of", "bundle", "stages",
}  # fmt: skip
# BIP-39's own example.
PHRASE = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"
CLOSED = "127.0.0.1:9"  # the discard port, which nothing listens on


def rows(state: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(state / "ledger.sqlite") as database:
        query = (
            "SELECT nonce, state, tx_hash, height FROM epochs JOIN attempts USING (chain_id, topic_id, nonce, wallet)"
        )
        return database.execute(query).fetchall()


@pytest.mark.usefixtures("time_left_in_the_hour")
def test_the_embedded_defaults_end_with_a_submission_in_a_block(command: Any, tmp_path: Path) -> None:
    done = command("--once", "--json")
    told = done.told
    assert (done.code, told["exit_code"]) == (0, 0), done.err
    assert set(told) >= KEYS
    assert (told["outcome"], told["chain_id"], told["topic_id"]) == ("submitted", "localnet", 67)
    assert told["source"] == "sample"
    assert told["synthetic"] is True
    assert list(told["quantiles"].values()) == sorted(told["quantiles"].values())
    assert abs(told["value"] - told["quantiles"]["0.5"]) < 1e-12
    assert set(told["stages"]) == {"chain", "data", "model", "forecast", "guards", "sign", "submit"}
    assert rows(tmp_path / "state") == [(told["nonce"], "included", told["tx_hash"], told["height"])]


def test_the_same_epoch_is_submitted_once_and_the_second_run_says_so(once: Once, tmp_path: Path) -> None:
    moment = ("--as-of", "2026-03-01T12:30:00Z")
    first, second = once(*moment), once(*moment)
    assert (first.code, second.code) == (0, 0)
    assert second.told["outcome"] == "already_submitted"
    for field in ("nonce", "tx_hash", "value", "height"):
        assert second.told[field] == first.told[field], field
    assert len(rows(tmp_path / "state")) == 1


def test_a_lost_ledger_does_not_lead_to_a_second_submission(once: Once, tmp_path: Path) -> None:
    moment = ("--as-of", "2026-03-01T12:30:00Z")
    first = once(*moment)
    (tmp_path / "state" / "ledger.sqlite").unlink()
    second = once(*moment)
    assert second.told["outcome"] == "already_submitted"
    assert second.told["nonce"] == first.told["nonce"]


def test_a_replay_stands_at_its_reference_time_and_is_a_chain_of_its_own(once: Once) -> None:
    told = once("--as-of", "2026-03-01T12:30:00+02:00").told
    assert told["as_of"] == "2026-03-01T10:30:00Z"
    assert told["chain_id"].startswith("localnet-20260301T103000Z-")
    again = once("--as-of", "2026-03-01T10:30:00Z", "--state-dir", "elsewhere").told
    assert again["value"] == told["value"], "the same candles and the same model give the same forecast"


def test_the_same_moment_from_another_source_is_another_replay(once: Once) -> None:
    first, second = (
        once("--as-of", "2026-03-01T12:30:00Z", "--source", source).told for source in ("sample", "sample:7")
    )
    assert (first["outcome"], second["outcome"]) == ("submitted", "submitted")
    assert first["chain_id"] != second["chain_id"]
    assert first["value"] != second["value"]


def test_a_dry_run_after_the_submission_forecasts_and_says_that_nothing_would_be_signed(once: Once) -> None:
    moment = ("--as-of", "2026-03-01T12:30:00Z")
    sent = once(*moment).told
    told = once("--dry-run", *moment).told
    assert told["outcome"] == "dry_run"
    assert "has its submission already" in told["reason"]
    assert told["value"] == pytest.approx(sent["value"])


def test_a_replay_does_not_sign_for_a_node_that_is_running_now(once: Once) -> None:
    done = once("--as-of", "2026-03-01T12:30:00Z", RPC_ENDPOINTS="127.0.0.1:9090")
    assert done.code == 5
    assert "RPC_ENDPOINTS" in done.told["reason"]


@pytest.mark.usefixtures("one_epoch")
@pytest.mark.parametrize("lines", [0, 1, 8])
def test_an_output_that_breaks_does_not_cost_the_epoch(
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
    assert [row[1] for row in rows(tmp_path / "state")] == ["included"]


@pytest.mark.usefixtures("one_epoch")
def test_a_log_on_a_full_disk_is_told_once_and_goes_on(command: Any, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "submission.log").symlink_to("/dev/full")
    done = command("--once")
    assert done.code == 0
    assert "Traceback" not in done.err
    assert done.err.count("Cannot write the log") == 1


@pytest.mark.usefixtures("one_epoch")
def test_the_log_says_how_every_cycle_ended(command: Any, tmp_path: Path) -> None:
    command("--once")
    command("--once", "--topic-id", "4242")
    log = (tmp_path / "logs" / "submission.log").read_text()
    assert "outcome: submitted, exit code 0" in log
    assert "outcome: failed, exit code 5" in log
    assert "Topic 4242 does not exist" in log


def test_a_dry_run_shows_what_would_be_signed_and_sends_nothing(command: Any, once: Once, tmp_path: Path) -> None:
    moment = ("--as-of", "2026-03-01T12:30:00Z")
    shown = command("--once", "--dry-run", *moment)
    assert shown.code == 0
    for words in ("dry run", "nonce", "fee", "value"):
        assert words in shown.out
    assert rows(tmp_path / "state") == []
    assert once("--dry-run", *moment).told["tx_hash"] is None
    assert once(*moment).told["outcome"] == "submitted"


@pytest.mark.usefixtures("one_epoch")
def test_the_output_fits_eighty_columns_and_needs_no_colours(command: Any) -> None:
    done = command("--once")
    assert done.code == 0
    assert max(len(line) for line in done.out.splitlines()) <= 80
    assert "\x1b" not in done.out
    assert done.out.isascii()
    labels = [line.split()[0] for line in done.out.splitlines() if line[:1].strip()]
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
def test_each_refusal_has_its_code_and_names_its_cause(
    once: Once, root: Path, *, arguments: tuple[str, ...], variables: dict[str, str], code: int, words: str
) -> None:
    demo = str(root / "models" / "demo")
    done = once(*(demo if argument == "DEMO" else argument for argument in arguments), **variables)
    assert done.code == code, done.out
    assert words in done.told["reason"]
    assert done.told["tx_hash"] is None


def test_a_mnemonic_file_that_others_can_read_is_refused(once: Once, tmp_path: Path) -> None:
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
def test_a_bad_file_of_candles_is_told(once: Once, tmp_path: Path, content: str, code: int) -> None:
    path = tmp_path / "candles.csv"
    path.write_text(content)
    done = once("--source", f"file:{path}", "--as-of", "2026-03-01T12:30:00Z")
    assert done.code in (4, 5), done.out
    assert "candles.csv" in done.told["reason"]


def test_features_in_another_order_than_the_bundles_are_refused(once: Once, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "features.json"
    path.write_text((root / "features.json").read_text().replace('"ret_1h"', '"x"').replace('"ret_24h"', '"ret_1h"'))
    path.write_text(path.read_text().replace('"x"', '"ret_24h"'))
    done = once("--features", str(path))
    assert done.code == 5
    assert "another order" in done.told["reason"]


@pytest.mark.parametrize("damage", ["truncated weights", "flipped bit", "no manifest", "pickle"])
def test_a_damaged_bundle_is_refused_and_nothing_is_signed(once: Once, root: Path, tmp_path: Path, damage: str) -> None:
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
    done = once("--model", str(bundle))
    assert done.code == 5, done.out
    assert not (tmp_path / "owned").exists()
    assert done.told["tx_hash"] is None


@pytest.mark.usefixtures("one_epoch")
def test_no_word_of_the_mnemonic_appears_in_any_output_or_file(command: Any, tmp_path: Path) -> None:
    # No other file of tests has this one.
    phrase = "canoe ostrich banana giraffe tortoise gorilla mushroom lizard turtle donkey trumpet raccoon"
    said = ""
    for more in ((), ("-v",), ("--json",), ("--dry-run",), ("--topic-id", "4242")):
        done = command("--once", "-v", *more, MNEMONIC=phrase)
        said += done.out + done.err
    done = command("--once", "-v", MNEMONIC=phrase.replace("raccoon", "canoe"))
    said += done.out + done.err
    for path in tmp_path.rglob("*"):
        if path.is_file():
            said += path.read_bytes().decode("latin-1")
    for word in sorted(set(phrase.split())):
        assert not re.search(rf"\b{word}\b", said), f"{word!r} leaked"


def test_the_childs_environment_holds_no_secret() -> None:
    from forecastd.supervise.process import child_environment

    assert set(child_environment()) == {"PATH", "LANG", "PYTHONPATH", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"}
