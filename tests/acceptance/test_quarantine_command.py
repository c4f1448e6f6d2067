"""`model quarantine` and what the doctor says of a bundle that is in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forecastd.clock import SystemClock
from forecastd.inference.bundle_store import INDEX_NAME, BundleStore
from models.bundle.files import MANIFEST
from models.market.bundle import read_market_manifest
from models.market.manifest import MarketManifest

REASON = "Model process 4711 hung (no progress for 30.0 s, predicting may take 30 s); 3 failures in a row."


@pytest.fixture
def shelf(tmp_path: Path) -> BundleStore:
    """The shelf of the command's own state directory."""
    return BundleStore(tmp_path / "state" / "bundles", SystemClock())


@pytest.fixture
def bundle(root: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A good bundle of this name: the demo's network under another manifest."""

    def make(name: str) -> Path:
        path = tmp_path / name
        shutil.copytree(root / "models" / "demo", path)
        text = (path / MANIFEST).read_text()
        assert '"demo"' in text
        (path / MANIFEST).write_text(text.replace('"demo"', f'"{name}"'))
        return path

    return make


@pytest.fixture
def held(shelf: BundleStore, bundle: Callable[[str], Path]) -> list[MarketManifest]:
    """Two bundles in quarantine."""
    found = [read_market_manifest(bundle(name)) for name in ("alpha", "beta")]
    for manifest in found:
        shelf.quarantine(manifest, REASON)
    return found


def test_empty_quarantine_is_reported(command: Any) -> None:
    assert "no bundle is in it" in command("model", "quarantine").out
    assert command("model", "quarantine", "--json").told == {"quarantined": []}
    assert command("model", "quarantine", "--release", "all", "--json").told == {"released": []}


def test_quarantine_list_fits_eighty_columns(command: Any, held: list[MarketManifest]) -> None:
    done = command("model", "quarantine")
    assert done.code == 0
    for manifest in held:
        assert f"{manifest.name} ({manifest.sha256[:12]})" in done.out
    assert "3 failures in a row" in " ".join(done.out.split())
    assert max(map(len, done.out.splitlines())) <= 80
    entries = command("model", "quarantine", "--json").told["quarantined"]
    assert {(entry["sha256"], entry["name"], entry["reason"]) for entry in entries} == {
        (manifest.sha256, manifest.name, REASON) for manifest in held
    }


def test_release_by_hash_prefix_releases_one_bundle(
    command: Any, held: list[MarketManifest], shelf: BundleStore
) -> None:
    done = command("model", "quarantine", "--release", held[0].sha256[:12].upper(), "--json")
    assert [entry["name"] for entry in done.told["released"]] == ["alpha"]
    assert set(shelf.list_quarantined()) == {held[1].sha256}


def test_release_all_empties_quarantine(command: Any, held: list[MarketManifest], shelf: BundleStore) -> None:
    assert len(held) == len(shelf.list_quarantined())
    done = command("model", "quarantine", "--release", "all")
    assert done.code == 0
    assert "released" in done.out
    assert shelf.list_quarantined() == {}


@pytest.mark.parametrize("text", ["", "a", "0123456789abcdef", "../bundles", "ALL"])
def test_release_with_unknown_hash_is_a_usage_error(
    command: Any, held: list[MarketManifest], shelf: BundleStore, text: str
) -> None:
    done = command("model", "quarantine", "--release", text)
    assert done.code == 2
    assert held[0].sha256[:12] in done.err
    assert len(shelf.list_quarantined()) == len(held)


def test_unreadable_index_is_reported_and_releases_nothing(command: Any, tmp_path: Path) -> None:
    index = tmp_path / "state" / "bundles" / INDEX_NAME
    index.mkdir(parents=True)
    listed = command("model", "quarantine")
    assert "cannot be read" in listed.err
    done = command("model", "quarantine", "--release", "all", "--json")
    assert done.code == 5
    assert f"{INDEX_NAME} cannot be read" in done.told["reason"]


def test_doctor_fails_quarantined_model_and_names_fallback(
    command: Any, shelf: BundleStore, bundle: Callable[[str], Path]
) -> None:
    mine, earlier = bundle("mine"), bundle("earlier")
    shelf.add(67, earlier, read_market_manifest(earlier))
    shelf.quarantine(read_market_manifest(mine), REASON)
    done = command("doctor", "--model", str(mine), "--json")
    assert done.code == 5
    findings = [entry for entry in done.told["findings"] if entry["check"] == "model"]
    assert [entry["level"] for entry in findings] == ["fail", "warn"]
    assert "mine" in findings[0]["found"]
    assert "quarantine --release" in findings[0]["fix"]
    assert "earlier" in findings[1]["found"]
    assert "stands in" in findings[1]["found"]
    shelf.release("")
    healed = command("doctor", "--model", str(mine), "--json").told["findings"]
    assert [entry["level"] for entry in healed if entry["check"] == "model"] == ["ok"]


@pytest.mark.parametrize("damaged", ["weights.safetensors", MANIFEST])
def test_doctor_fails_damaged_model_despite_fallback(
    command: Any, shelf: BundleStore, bundle: Callable[[str], Path], damaged: str
) -> None:
    mine, earlier = bundle("mine"), bundle("earlier")
    shelf.add(67, earlier, read_market_manifest(earlier))
    (mine / damaged).write_bytes((mine / damaged).read_bytes()[:-5])
    done = command("doctor", "--model", str(mine), "--json")
    assert done.code == 5
    findings = [entry for entry in done.told["findings"] if entry["check"] == "model"]
    assert [entry["level"] for entry in findings] == ["fail", "warn"]
    assert "earlier" in findings[1]["found"]
