"""The bundle store: copies of good bundles, quarantine, and damaged or unwritable stores."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forecastd.clock import ReplayClock
from forecastd.errors import NeedsHuman
from forecastd.inference import bundle_store as bundle_store_module
from forecastd.inference.bundle_store import INDEX_NAME, OLD_INDEX_NAME, BundleStore, FallbackBundles
from models.bundle.bundle import write_bundle
from models.market.bundle import load_market_bundle
from models.market.manifest import MarketManifest

NOW = ReplayClock(1_800_000_000.0)
Variant = Callable[[str], tuple[Path, MarketManifest]]


@pytest.fixture(scope="module")
def variant(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Variant:
    """The demo bundle under another name, which makes it another bundle."""
    demo = load_market_bundle(root / "models" / "demo")

    def make(name: str) -> tuple[Path, MarketManifest]:
        path = tmp_path_factory.mktemp("bundles") / name
        return path, write_bundle(path, replace(demo, manifest=replace(demo.manifest, name=name)))

    return make


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "bundles"


@pytest.fixture
def store(directory: Path) -> BundleStore:
    return BundleStore(directory, NOW)


def candidate_names(store: BundleStore, topic: int = 1, excluded: set[str] | None = None) -> list[str]:
    return [
        manifest.name
        for _, manifest in FallbackBundles(store, topic, MarketManifest.read).candidates(excluded or set())
    ]


def test_store_keeps_last_two_bundles_newest_first(store: BundleStore, variant: Variant, directory: Path) -> None:
    bundles = {name: variant(name) for name in ("a", "b", "c")}
    for name in ("a", "b", "c"):
        store.add(1, *bundles[name])
        store.add(1, *bundles[name])
    assert candidate_names(store) == ["c", "b"]
    assert {path.name for path in directory.iterdir()} == {INDEX_NAME, bundles["b"][1].sha256, bundles["c"][1].sha256}
    store.add(1, *bundles["b"])
    assert candidate_names(store) == ["b", "c"], "ordered by the last good forecast, not by the copy"
    path, manifest = FallbackBundles(store, 1, MarketManifest.read).candidates(set())[0]
    assert load_market_bundle(path).sha256 == manifest.sha256
    assert candidate_names(store, excluded={manifest.sha256}) == ["c"]


def test_topics_have_separate_bundles(store: BundleStore, variant: Variant) -> None:
    for name, topic in (("a", 1), ("b", 2), ("c", 2), ("d", 2)):
        store.add(topic, *variant(name))
    assert (candidate_names(store, 1), candidate_names(store, 2), candidate_names(store, 3)) == (["a"], ["d", "c"], [])


def test_quarantined_bundle_is_excluded_until_released(store: BundleStore, variant: Variant) -> None:
    (path, first), second = variant("a"), variant("b")
    store.add(1, path, first)
    store.add(1, *second)
    store.quarantine(second[1], "it hung three times" * 100)
    assert candidate_names(store) == ["a"]
    entry = store.list_quarantined()[second[1].sha256]
    assert (entry.name, entry.since) == ("b", "2027-01-15T08:00:00Z")
    assert len(entry.reason) <= 500
    assert store.release("no such hash") == []
    assert [entry.name for entry in store.release(second[1].sha256[:8])] == ["b"]
    assert candidate_names(store) == ["b", "a"]
    assert store.list_quarantined() == {}


def test_bundle_changed_since_load_is_not_added(
    store: BundleStore, variant: Variant, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, manifest = variant("a")
    other, _ = variant("b")
    copy = path.with_name("copy")
    shutil.copytree(other, copy)
    store.add(1, copy, manifest)
    assert "replaced by another one" in caplog.text
    shutil.rmtree(copy)
    shutil.copytree(path, copy)
    weights = bytearray((copy / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "weights.safetensors").write_bytes(weights)
    store.add(1, copy, manifest)
    assert "was changed since" in caplog.text
    assert candidate_names(store) == []
    assert not (directory / manifest.sha256).exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        b"{}",
        b'{"good": [], "quarantined": {}}',
        b'{"good": {"1": ["../../etc"]}, "quarantined": {}}',
        b'{"good": {"1": "x"}, "quarantined": {}}',
        b'{"good": {}, "quarantined": {"x": 1}}',
        b'{"good": {}, "quarantined": {"x": {"name": "a", "since": 1, "reason": "b"}}}',
    ],
    ids=range(10),
)
def test_damaged_index_is_treated_as_empty_and_keeps_copies(
    store: BundleStore, variant: Variant, directory: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    old, new = variant("a"), variant("b")
    store.add(2, *old)
    (directory / INDEX_NAME).write_bytes(content)
    assert candidate_names(store, 2) == []
    assert store.list_quarantined() == {}
    assert INDEX_NAME in caplog.text
    store.add(1, *new)
    assert candidate_names(store, 1) == ["b"]
    assert (directory / old[1].sha256).is_dir(), "a damaged index removes no copy of another topic"
    store.add(2, *old)
    assert candidate_names(store, 2) == ["a"]


def test_unreadable_index_is_not_overwritten(
    store: BundleStore,
    variant: Variant,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = variant("a"), variant("b")
    store.add(1, *first)
    store.quarantine(second[1], "why")
    before = (directory / INDEX_NAME).read_bytes()

    def fail(self: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        assert store.list_good(1) == []
        assert store.list_quarantined() == {}
        store.add(1, *second)
        store.quarantine(first[1], "why")
        with pytest.raises(NeedsHuman, match="Cannot read"):
            store.release("")
    assert (directory / INDEX_NAME).read_bytes() == before
    assert "Too many open files" in caplog.text


@pytest.mark.parametrize("blocked", ["file", "full_disk", "no_permission"])
def test_unwritable_store_logs_a_warning(
    variant: Variant,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    blocked: str,
) -> None:
    store = BundleStore(directory, NOW)
    path, manifest = variant("a")
    if blocked == "file":
        directory.parent.mkdir(parents=True)
        directory.write_text("")
    else:
        error = OSError(errno.ENOSPC, "No space left on device")
        target = "copy_bundle" if blocked == "full_disk" else "write_atomic"

        def fail(*_: Any) -> None:
            raise error if blocked == "full_disk" else NeedsHuman("Cannot write")

        monkeypatch.setattr(bundle_store_module, target, fail)
    with caplog.at_level(logging.WARNING):
        store.add(1, path, manifest)
        store.quarantine(manifest, "why")
    assert "Cannot keep a copy" in caplog.text
    assert candidate_names(store) == []


def test_damaged_copy_is_excluded(
    store: BundleStore, variant: Variant, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = variant("a"), variant("b")
    store.add(1, *first)
    store.add(1, *second)
    (directory / second[1].sha256 / "manifest.json").write_text("{")
    assert candidate_names(store) == ["a"]
    assert "is invalid" in caplog.text
    shutil.rmtree(directory / first[1].sha256)
    assert candidate_names(store) == []
    store.add(1, *first)
    assert candidate_names(store) == ["a"], "the copy is made again"


def test_index_is_json_readable_by_owner_only(store: BundleStore, variant: Variant, directory: Path) -> None:
    path, manifest = variant("a")
    store.add(1, path, manifest)
    assert json.loads((directory / INDEX_NAME).read_text()) == {"good": {"1": [manifest.sha256]}, "quarantined": {}}
    assert (directory / INDEX_NAME).stat().st_mode & 0o077 == 0
    assert MarketManifest.read(directory / manifest.sha256) == manifest


def test_old_index_is_renamed_with_its_content(store: BundleStore, variant: Variant, directory: Path) -> None:
    first, second = variant("a"), variant("b")
    store.add(1, *first)
    store.quarantine(second[1], "it hung")
    quarantined = store.list_quarantined()
    (directory / INDEX_NAME).rename(directory / OLD_INDEX_NAME)
    assert store.list_quarantined() == quarantined
    assert candidate_names(store) == ["a"]
    assert not (directory / OLD_INDEX_NAME).exists()
    assert (directory / INDEX_NAME).stat().st_mode & 0o077 == 0
