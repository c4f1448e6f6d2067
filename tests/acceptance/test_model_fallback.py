"""`--once` with faulty or damaged models: the last good bundle serves the epoch, or the reason is reported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forecastd.clock import SystemClock
from forecastd.inference.bundle_store import INDEX_NAME, BundleStore
from models.market.bundle import load_market_bundle
from models.market.manifest import MarketManifest
from tests.support.bundles import write_longer_bundle

Once = Callable[..., Any]
FIRST, SECOND = "2026-03-01T12:30:00Z", "2026-03-02T12:30:00Z"
PHRASE = "battle skin client soda volume govern buddy achieve bike whale same load"  # used by no other test file

# The command, with faults injected into the first launches of each model.
FAULTY_COMMAND = """
import functools, sys
from forecastd.inference import forecaster
from forecastd.inference.market_runner import market_setup
forecaster.market_setup = functools.partial(market_setup, faults=sys.argv[1], faulty_launches=int(sys.argv[2]))
del sys.argv[1:3]
from cli.main import run
run()
"""


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root / "models" / "demo", tmp_path / "copy"))


@pytest.fixture
def faulty(tmp_path: Path, environment: dict[str, str]) -> Callable[..., dict[str, Any]]:
    """Runs `--once --json` with faults in the first launches; gives the JSON document."""

    def run(faults: str, launches: int, *arguments: str, **more: str) -> dict[str, Any]:
        command = [sys.executable, "-c", FAULTY_COMMAND, faults, str(launches), "--once", "--json", *arguments]
        result = subprocess.run(
            command,
            cwd=tmp_path,
            env={**environment, "PREDICTING_TIMEOUT": "3", "MODEL_MEMORY_MB": "512", **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert "Traceback" not in result.stderr, result.stderr
        report: dict[str, Any] = json.loads(result.stdout)
        assert report["exit_code"] == result.returncode
        return report

    return run


def read_log(tmp_path: Path) -> str:
    return (tmp_path / "logs" / "submission.log").read_text()


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_model_is_replaced_by_its_last_good_copy(once: Once, copy: Path, tmp_path: Path, damage: str) -> None:
    model = ("--model", str(copy))
    good = once(*model, "--as-of", FIRST)
    assert good.code == 0
    assert good.document["warnings"] == []
    if damage == "missing":
        shutil.rmtree(copy)
    else:
        weights = copy / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:4000])
    result = once(*model, "--as-of", SECOND)
    assert result.code == 0, result.out
    assert result.document["outcome"] == "submitted"
    assert result.document["bundle"] == good.document["bundle"]
    (warning,) = result.document["warnings"]
    assert "Falling back to the last good model" in warning
    assert warning in read_log(tmp_path)
    other_topic = once(*model, "--as-of", SECOND, "--topic-id", "69")
    assert other_topic.code == 5, "another topic has no fallback"


def test_fallback_trained_on_synthetic_data_is_refused_on_testnet(once: Once, copy: Path) -> None:
    assert once("--model", str(copy), "--as-of", FIRST).code == 0
    (copy / "manifest.json").write_text("{")
    result = once("--model", str(copy), "--network", "testnet", "--source", "exchange:kraken", MNEMONIC=PHRASE)
    assert result.code == 5
    assert "manifest" in result.document["reason"]


@pytest.mark.parametrize("blocked", ["a file", "garbage"])
def test_unusable_bundle_store_does_not_prevent_submission(once: Once, tmp_path: Path, blocked: str) -> None:
    directory = tmp_path / "state" / "bundles"
    directory.parent.mkdir(exist_ok=True)
    if blocked == "a file":
        directory.write_text("")
    else:
        directory.mkdir()
        (directory / INDEX_NAME).write_bytes(b"\xff" * 100)
    assert once("--as-of", FIRST).code == 0
    assert "bundles" in read_log(tmp_path)


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ("leak@50", "out of memory"),
        ("print:300,fork,exit:3@50", "exit status 3"),
        ("deaf", "no progress"),
        ("silent@50", "no progress"),
    ],
)
def test_misbehaving_child_does_not_prevent_submission(
    faulty: Callable[..., dict[str, Any]], tmp_path: Path, faults: str, message: str
) -> None:
    report = faulty(faults, 1, "--as-of", FIRST)
    assert report["outcome"] == "submitted", report
    assert message in read_log(tmp_path)


def test_always_failing_model_skips_epoch_then_runs_again(
    faulty: Callable[..., dict[str, Any]], once: Once, copy: Path, tmp_path: Path
) -> None:
    report = faulty("raise@loading", 100, "--as-of", FIRST, "--model", str(copy))
    assert (report["outcome"], report["exit_code"], report["check"]) == ("skipped", 4, "model_process")
    assert "a_library_that_is_not_there" in report["reason"]
    assert report["tx_hash"] is None
    index = json.loads((tmp_path / "state" / "bundles" / INDEX_NAME).read_text())
    assert list(index["quarantined"]) == [MarketManifest.read(copy).sha256]
    assert once("--as-of", FIRST, "--model", str(copy)).code == 0, "a doubtful model is better than none"


def test_fallback_with_longer_encoder_serves_the_same_epoch(
    faulty: Callable[..., dict[str, Any]], root: Path, tmp_path: Path
) -> None:
    demo = load_market_bundle(root / "models" / "demo")
    written = write_longer_bundle(tmp_path / "longer", demo, 48)
    BundleStore(tmp_path / "state" / "bundles", SystemClock()).add(67, tmp_path / "longer", written)
    report = faulty("exit:9@50", 3, "--as-of", FIRST)
    assert report["outcome"] == "submitted", report
    assert report["bundle"] == written.sha256
    assert "longer" in report["warnings"][0]
