"""The shelf of good bundles: what is kept, what stands in, what is not run again, and what damage to it costs."""

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
from forecastd.inference import bundle_store as shelves
from forecastd.inference.bundle_store import INDEX_NAME, BundleStore, FallbackBundles
from models.market.bundle import load_market_bundle, read_market_manifest, write_market_bundle
from models.market.manifest import MarketManifest

NOW = ReplayClock(1_800_000_000.0)
Variant = Callable[[str], tuple[Path, MarketManifest]]


@pytest.fixture(scope="module")
def variant(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Variant:
    """The demo bundle under another name, which makes it another bundle."""
    demo = load_market_bundle(root / "models" / "demo")

    def make(name: str) -> tuple[Path, MarketManifest]:
        path = tmp_path_factory.mktemp("bundles") / name
        return path, write_market_bundle(path, replace(demo.manifest, name=name), demo.weights, demo.canary)

    return make


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "state" / "bundles"


@pytest.fixture
def shelf(place: Path) -> BundleStore:
    return BundleStore(place, NOW)


def candidate_names(shelf: BundleStore, topic: int = 1, excluded: set[str] | None = None) -> list[str]:
    return [manifest.name for _, manifest in FallbackBundles(shelf, topic).candidates(excluded or set())]


def test_store_keeps_last_two_bundles_newest_first(shelf: BundleStore, variant: Variant, place: Path) -> None:
    bundles = {name: variant(name) for name in ("a", "b", "c")}
    for name in ("a", "b", "c"):
        shelf.add(1, *bundles[name])
        shelf.add(1, *bundles[name])
    assert candidate_names(shelf) == ["c", "b"]
    assert {path.name for path in place.iterdir()} == {INDEX_NAME, bundles["b"][1].sha256, bundles["c"][1].sha256}
    shelf.add(1, *bundles["b"])
    assert candidate_names(shelf) == ["b", "c"], "the last good one, not the last that was copied"
    path, manifest = FallbackBundles(shelf, 1).candidates(set())[0]
    assert load_market_bundle(path).sha256 == manifest.sha256
    assert candidate_names(shelf, excluded={manifest.sha256}) == ["c"]


def test_topics_have_separate_bundles(shelf: BundleStore, variant: Variant) -> None:
    for name, topic in (("a", 1), ("b", 2), ("c", 2), ("d", 2)):
        shelf.add(topic, *variant(name))
    assert (candidate_names(shelf, 1), candidate_names(shelf, 2), candidate_names(shelf, 3)) == (["a"], ["d", "c"], [])


def test_quarantined_bundle_is_excluded_until_released(shelf: BundleStore, variant: Variant) -> None:
    (path, first), second = variant("a"), variant("b")
    shelf.add(1, path, first)
    shelf.add(1, *second)
    shelf.quarantine(second[1], "it hung three times" * 100)
    assert candidate_names(shelf) == ["a"]
    entry = shelf.list_quarantined()[second[1].sha256]
    assert (entry.name, entry.since) == ("b", "2027-01-15T08:00:00Z")
    assert len(entry.reason) <= 500
    assert shelf.release("nothing like it") == []
    assert [released_entry.name for released_entry in shelf.release(second[1].sha256[:8])] == ["b"]
    assert candidate_names(shelf) == ["b", "a"]
    assert shelf.list_quarantined() == {}


def test_bundle_changed_since_load_is_not_added(
    shelf: BundleStore, variant: Variant, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, manifest = variant("a")
    other, _ = variant("b")
    mine = path.with_name("mine")
    shutil.copytree(other, mine)
    shelf.add(1, mine, manifest)
    assert "another bundle" in caplog.text
    shutil.rmtree(mine)
    shutil.copytree(path, mine)
    weights = bytearray((mine / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (mine / "weights.safetensors").write_bytes(weights)
    shelf.add(1, mine, manifest)
    assert "was changed since" in caplog.text
    assert candidate_names(shelf) == []
    assert not (place / manifest.sha256).exists()


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
    shelf: BundleStore, variant: Variant, place: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    old, new = variant("a"), variant("b")
    shelf.add(2, *old)
    (place / INDEX_NAME).write_bytes(content)
    assert candidate_names(shelf, 2) == []
    assert shelf.list_quarantined() == {}
    assert INDEX_NAME in caplog.text
    shelf.add(1, *new)
    assert candidate_names(shelf, 1) == ["b"]
    assert (place / old[1].sha256).is_dir(), "another topic's copy is not thrown away for a damage of the list"
    shelf.add(2, *old)
    assert candidate_names(shelf, 2) == ["a"]


def test_unreadable_index_is_not_overwritten(
    shelf: BundleStore, variant: Variant, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = variant("a"), variant("b")
    shelf.add(1, *first)
    shelf.quarantine(second[1], "why")
    before = (place / INDEX_NAME).read_bytes()

    def fail(self: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        assert shelf.list_good(1) == []
        assert shelf.list_quarantined() == {}
        shelf.add(1, *second)
        shelf.quarantine(first[1], "why")
        with pytest.raises(NeedsHuman, match="cannot be read"):
            shelf.release("")
    assert (place / INDEX_NAME).read_bytes() == before
    assert "Too many open files" in caplog.text


@pytest.mark.parametrize("blocked", ["a file in its place", "a full disk", "no way in"])
def test_unwritable_store_logs_a_warning(
    variant: Variant,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    blocked: str,
) -> None:
    shelf = BundleStore(place, NOW)
    path, manifest = variant("a")
    if blocked == "a file in its place":
        place.parent.mkdir(parents=True)
        place.write_text("")
    else:
        error = OSError(errno.ENOSPC, "No space left on device")
        target = "copy_bundle" if blocked == "a full disk" else "write_whole"

        def fail(*_: Any) -> None:
            raise error if blocked == "a full disk" else NeedsHuman("cannot be written")

        monkeypatch.setattr(shelves, target, fail)
    with caplog.at_level(logging.WARNING):
        shelf.add(1, path, manifest)
        shelf.quarantine(manifest, "why")
    assert "could be kept" in caplog.text
    assert candidate_names(shelf) == []


def test_damaged_copy_is_excluded(
    shelf: BundleStore, variant: Variant, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = variant("a"), variant("b")
    shelf.add(1, *first)
    shelf.add(1, *second)
    (place / second[1].sha256 / "manifest.json").write_text("{")
    assert candidate_names(shelf) == ["a"]
    assert "no good" in caplog.text
    shutil.rmtree(place / first[1].sha256)
    assert candidate_names(shelf) == []
    shelf.add(1, *first)
    assert candidate_names(shelf) == ["a"], "and is made again"


def test_index_is_json_readable_by_owner_only(shelf: BundleStore, variant: Variant, place: Path) -> None:
    path, manifest = variant("a")
    shelf.add(1, path, manifest)
    assert json.loads((place / INDEX_NAME).read_text()) == {"good": {"1": [manifest.sha256]}, "quarantined": {}}
    assert (place / INDEX_NAME).stat().st_mode & 0o077 == 0
    assert read_market_manifest(place / manifest.sha256) == manifest
