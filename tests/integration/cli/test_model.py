"""The `model` commands: the output for a good bundle, and the failed check of an invalid one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.main import main
from cli.manifest import part_tables
from cli.rows import console

AS_OF = ("--source", "sample", "--as-of", "2025-01-01T00:00:00Z")


@pytest.fixture
def bundle(root: Path, tmp_path: Path) -> Path:
    """A copy of the demo bundle."""
    shutil.copytree(root / "models" / "demo", tmp_path / "mine")
    return tmp_path / "mine"


@pytest.fixture
def state(tmp_path: Path) -> tuple[str, str]:
    return "--state-dir", str(tmp_path / "state")


@pytest.mark.lean
def test_check_good_bundle_passes_with_notes(
    bundle: Path, state: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "notes.txt").write_text("mine")
    assert main([*state, "model", "check", str(bundle), *AS_OF]) == 0
    output = " ".join(capsys.readouterr().out.split())
    for words in (
        "hashes, weights and canary are correct",
        "testnet and mainnet refuse it",
        "never read: notes.txt",
        "good",
    ):
        assert words in output


def test_check_json_reports_the_same(bundle: Path, state: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*state, "model", "check", str(bundle), *AS_OF, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], document["synthetic"]) == (True, True)
    assert [stage["name"] for stage in document["stages"]] == ["model", "data", "forecast", "guards"]


def truncate(name: str) -> Callable[[Path], object]:
    return lambda bundle: (bundle / name).write_bytes((bundle / name).read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (shutil.rmtree, "missing"),
        (lambda bundle: (bundle / "manifest.json").rename(bundle / "model.ckpt"), "pickle"),
        (truncate("weights.safetensors"), "hash"),
        (lambda bundle: (bundle / "manifest.json").write_text("{"), "schema"),
    ],
)
def test_check_bad_bundle_names_the_failed_check(
    damage: Callable[[Path], object], check: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(bundle)
    for flags in ([], ["--json"]):
        assert main(["--state-dir", str(tmp_path), "model", "check", str(bundle), *AS_OF, *flags]) == 5
        captured = capsys.readouterr()
        message = json.dumps(json.loads(captured.out)) if flags else " ".join(captured.err.split())
        assert f"(check: {check})" in message
        assert re.search(r"restore|train one|train the model", message, re.IGNORECASE)


def test_show_bad_bundle_prints_one_json_object(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "manifest.json").write_text("{")
    assert main(["model", "show", str(bundle), "--json"]) == 5
    assert "(check: schema)" in json.dumps(json.loads(capsys.readouterr().out))


def test_show_bundle_fits_80_columns(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["model", "show", str(bundle)]) == 0
    output = capsys.readouterr().out
    assert max(len(line) for line in output.splitlines()) <= 80
    assert "…" not in output
    assert "2016-07-06T00:00:00Z to 2023-06-23T02:00:00Z" in " ".join(output.split())
    # The scores of the last step: 74 % of the outcomes at the horizon; at all steps it would be 76 %.
    assert re.search(r"this model .* 74% +56%", output)
    assert {"validation", "test"} <= set(output.split())


def test_manifest_with_other_scores_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    for scores in (5, {}, {"model": {"coverage_last": 3, "pinball": "low"}}, {"other": {"mae": None}}):
        for table in part_tables("test", scores, is_fleet=False):
            console().print(table)
    assert "other" in capsys.readouterr().out
