"""`model quarantine`, and the doctor's findings on a quarantined or damaged bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forecastd.clock import SystemClock
from forecastd.inference.bundle_store import INDEX_NAME, BundleStore
from models.bundle.files import MANIFEST
from models.market.manifest import MarketManifest

REASON = "Model process 4711 hung (no progress for 30.0 s, the limit in predicting is 30 s); 3 failures in a row."


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    """The bundle store of the command's state directory."""
    return BundleStore(tmp_path / "state" / "bundles", SystemClock())


@pytest.fixture
def bundle(root: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a valid bundle of this name: the demo bundle with another name in its manifest."""

    def make(name: str) -> Path:
        path = tmp_path / name
        shutil.copytree(root / "models" / "demo", path)
        text = (path / MANIFEST).read_text()
        assert '"demo"' in text
        (path / MANIFEST).write_text(text.replace('"demo"', f'"{name}"'))
        return path

    return make


@pytest.fixture
def quarantined(store: BundleStore, bundle: Callable[[str], Path]) -> list[MarketManifest]:
    """Two bundles in quarantine."""
    manifests = [MarketManifest.read(bundle(name)) for name in ("alpha", "beta")]
    for manifest in manifests:
        store.quarantine(manifest, REASON)
    return manifests


def test_empty_quarantine_is_reported(command: Any) -> None:
    assert "empty" in command("model", "quarantine").out
    assert command("model", "quarantine", "--json").document == {"quarantined": []}
    assert command("model", "quarantine", "--release", "all", "--json").document == {"released": []}


def test_quarantine_list_fits_eighty_columns(command: Any, quarantined: list[MarketManifest]) -> None:
    result = command("model", "quarantine")
    assert result.code == 0
    for manifest in quarantined:
        assert f"{manifest.name} ({manifest.sha256[:12]})" in result.out
    assert "3 failures in a row" in " ".join(result.out.split())
    assert max(map(len, result.out.splitlines())) <= 80
    entries = command("model", "quarantine", "--json").document["quarantined"]
    assert {(entry["sha256"], entry["name"], entry["reason"]) for entry in entries} == {
        (manifest.sha256, manifest.name, REASON) for manifest in quarantined
    }


def test_release_by_hash_prefix_releases_one_bundle(
    command: Any, quarantined: list[MarketManifest], store: BundleStore
) -> None:
    result = command("model", "quarantine", "--release", quarantined[0].sha256[:12].upper(), "--json")
    assert [entry["name"] for entry in result.document["released"]] == ["alpha"]
    assert set(store.list_quarantined()) == {quarantined[1].sha256}


def test_release_all_empties_quarantine(command: Any, quarantined: list[MarketManifest], store: BundleStore) -> None:
    assert len(quarantined) == len(store.list_quarantined())
    result = command("model", "quarantine", "--release", "all")
    assert result.code == 0
    assert "released" in result.out
    assert store.list_quarantined() == {}


@pytest.mark.parametrize("text", ["", "a", "0123456789abcdef", "../bundles", "ALL"])
def test_release_with_unknown_hash_is_a_usage_error(
    command: Any, quarantined: list[MarketManifest], store: BundleStore, text: str
) -> None:
    result = command("model", "quarantine", "--release", text)
    assert result.code == 2
    assert quarantined[0].sha256[:12] in result.err
    assert len(store.list_quarantined()) == len(quarantined)


def test_unreadable_index_is_reported_and_releases_nothing(command: Any, tmp_path: Path) -> None:
    index = tmp_path / "state" / "bundles" / INDEX_NAME
    index.mkdir(parents=True)
    listed = command("model", "quarantine")
    assert "Cannot read" in listed.err
    result = command("model", "quarantine", "--release", "all", "--json")
    assert result.code == 5
    assert INDEX_NAME in result.document["reason"]


def test_doctor_fails_quarantined_model_and_names_fallback(
    command: Any, store: BundleStore, bundle: Callable[[str], Path]
) -> None:
    configured, earlier = bundle("configured"), bundle("earlier")
    store.add(67, earlier, MarketManifest.read(earlier))
    store.quarantine(MarketManifest.read(configured), REASON)
    result = command("doctor", "--model", str(configured), "--json")
    assert result.code == 5
    findings = [entry for entry in result.document["findings"] if entry["check"] == "model"]
    assert [entry["level"] for entry in findings] == ["fail", "warn"]
    assert "configured" in findings[0]["message"]
    assert "quarantine --release" in findings[0]["fix"]
    assert "earlier" in findings[1]["message"]
    assert "falling back" in findings[1]["message"]
    store.release("")
    healed = command("doctor", "--model", str(configured), "--json").document["findings"]
    assert [entry["level"] for entry in healed if entry["check"] == "model"] == ["ok"]


@pytest.mark.parametrize("damaged", ["weights.safetensors", MANIFEST])
def test_doctor_fails_damaged_model_despite_fallback(
    command: Any, store: BundleStore, bundle: Callable[[str], Path], damaged: str
) -> None:
    configured, earlier = bundle("configured"), bundle("earlier")
    store.add(67, earlier, MarketManifest.read(earlier))
    (configured / damaged).write_bytes((configured / damaged).read_bytes()[:-5])
    result = command("doctor", "--model", str(configured), "--json")
    assert result.code == 5
    findings = [entry for entry in result.document["findings"] if entry["check"] == "model"]
    assert [entry["level"] for entry in findings] == ["fail", "warn"]
    assert "earlier" in findings[1]["message"]
