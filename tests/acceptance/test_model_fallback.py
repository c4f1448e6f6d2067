"""`--once` with models that misbehave or were spoilt: the last good one serves the epoch, or the reason is told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forecastd.clock import SystemClock
from forecastd.shelf import INDEX, Shelf
from models.base import ModelInput
from models.bundle import Canary, load_bundle, read_manifest, write_bundle
from models.engines import load_engine

Once = Callable[..., Any]
FIRST, SECOND = "2026-03-01T12:30:00Z", "2026-03-02T12:30:00Z"
PHRASE = (
    "battle skin client soda volume govern buddy achieve bike whale same load"  # no other file of tests has this one
)

# The command with faults in the first launches of each model's children.
INJECTED = """
import functools, sys
from forecastd import forecaster
from forecastd.supervise.policy import Setup
forecaster.Setup = functools.partial(Setup, faults=sys.argv[1], faulty=int(sys.argv[2]))
del sys.argv[1:3]
from cli.main import run
run()
"""


@pytest.fixture
def mine(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root / "models" / "demo", tmp_path / "mine"))


@pytest.fixture
def faulty(tmp_path: Path, environment: dict[str, str]) -> Callable[..., dict[str, Any]]:
    """`--once --json` of a model whose children have faults; what it told."""

    def run(faults: str, launches: int, *arguments: str, **more: str) -> dict[str, Any]:
        command = [sys.executable, "-c", INJECTED, faults, str(launches), "--once", "--json", *arguments]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**environment, "PREDICTING_TIMEOUT": "3", "MODEL_MEMORY_MB": "512", **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        assert told["exit_code"] == done.returncode
        return told

    return run


def log(tmp_path: Path) -> str:
    return (tmp_path / "logs" / "submission.log").read_text()


@pytest.mark.parametrize("damage", ["cut off", "gone"])
def test_a_model_that_was_good_once_serves_the_epoch_after_it_was_spoilt(
    once: Once, mine: Path, tmp_path: Path, damage: str
) -> None:
    model = ("--model", str(mine))
    good = once(*model, "--as-of", FIRST)
    assert good.code == 0
    assert good.told["warnings"] == []
    if damage == "gone":
        shutil.rmtree(mine)
    else:
        weights = mine / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:4000])
    done = once(*model, "--as-of", SECOND)
    assert done.code == 0, done.out
    assert done.told["outcome"] == "submitted"
    assert done.told["bundle"] == good.told["bundle"]
    (warning,) = done.told["warnings"]
    assert "stands in" in warning
    assert warning in log(tmp_path)
    elsewhere = once(*model, "--as-of", SECOND, "--topic-id", "69")
    assert elsewhere.code == 5, "another topic has none of its own"


def test_made_up_data_stands_in_on_no_real_network(once: Once, mine: Path) -> None:
    assert once("--model", str(mine), "--as-of", FIRST).code == 0
    (mine / "manifest.json").write_text("{")
    done = once("--model", str(mine), "--network", "testnet", "--source", "exchange:kraken", MNEMONIC=PHRASE)
    assert done.code == 5
    assert "manifest" in done.told["reason"]


@pytest.mark.parametrize("blocked", ["a file", "garbage"])
def test_a_shelf_that_is_of_no_use_costs_no_epoch(once: Once, tmp_path: Path, blocked: str) -> None:
    place = tmp_path / "state" / "bundles"
    place.parent.mkdir(exist_ok=True)
    if blocked == "a file":
        place.write_text("")
    else:
        place.mkdir()
        (place / INDEX).write_bytes(b"\xff" * 100)
    assert once("--as-of", FIRST).code == 0
    assert "bundles" in log(tmp_path)


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ("leak@50", "out of memory"),
        ("print:300,fork,exit:3@50", "exit status 3"),
        ("deaf", "no progress"),
        ("silent@50", "no progress"),
    ],
)
def test_a_child_that_misbehaves_costs_no_epoch(
    faulty: Callable[..., dict[str, Any]], tmp_path: Path, faults: str, words: str
) -> None:
    told = faulty(faults, 1, "--as-of", FIRST)
    assert told["outcome"] == "submitted", told
    assert words in log(tmp_path)


def test_a_model_that_always_misbehaves_is_skipped_with_the_reason_and_then_stood_in_for(
    faulty: Callable[..., dict[str, Any]], once: Once, mine: Path, tmp_path: Path
) -> None:
    told = faulty("raise@loading", 100, "--as-of", FIRST, "--model", str(mine))
    assert (told["outcome"], told["exit_code"], told["check"]) == ("skipped", 4, "model_process")
    assert "a_library_that_is_not_there" in told["reason"]
    assert told["tx_hash"] is None
    index = json.loads((tmp_path / "state" / "bundles" / INDEX).read_text())
    assert list(index["quarantined"]) == [read_manifest(mine).sha256]
    assert once("--as-of", FIRST, "--model", str(mine)).code == 0, "an unsure model is better than none"


def test_a_model_that_fails_in_the_middle_of_the_epoch_is_stood_in_for_by_one_that_needs_more_candles(
    faulty: Callable[..., dict[str, Any]], root: Path, tmp_path: Path
) -> None:
    demo = load_bundle(root / "models" / "demo")
    old, more = demo.canary.inputs, 48
    inputs = ModelInput(
        old.end,
        old.step,
        np.concatenate([old.target[:more] + 0.01, old.target]),
        np.concatenate([old.past[:more], old.past]),
        np.concatenate([old.known[:more], old.known]),
    )
    manifest = replace(demo.manifest, name="longer", encoder_length=demo.manifest.encoder_length + more)
    quantiles = load_engine(replace(demo, manifest=manifest)).predict(inputs).quantiles
    written = write_bundle(tmp_path / "longer", manifest, demo.weights, Canary(inputs, quantiles))
    Shelf(tmp_path / "state" / "bundles", SystemClock()).keep(67, tmp_path / "longer", written)
    told = faulty("exit:9@50", 3, "--as-of", FIRST)
    assert told["outcome"] == "submitted", told
    assert told["bundle"] == written.sha256
    assert "longer" in told["warnings"][0]
