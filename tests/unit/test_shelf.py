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

from forecastd import shelf as shelves
from forecastd.clock import ReplayClock
from forecastd.errors import NeedsHuman
from forecastd.shelf import INDEX, Reserve, Shelf
from models.bundle import load_bundle, read_manifest, write_bundle
from models.manifest import Manifest

NOW = ReplayClock(1_800_000_000.0)
Variant = Callable[[str], tuple[Path, Manifest]]


@pytest.fixture(scope="module")
def variant(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Variant:
    """The demo bundle under another name, which makes it another bundle."""
    demo = load_bundle(root / "models" / "demo")

    def make(name: str) -> tuple[Path, Manifest]:
        path = tmp_path_factory.mktemp("bundles") / name
        return path, write_bundle(path, replace(demo.manifest, name=name), demo.weights, demo.canary)

    return make


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "state" / "bundles"


@pytest.fixture
def shelf(place: Path) -> Shelf:
    return Shelf(place, NOW)


def names(shelf: Shelf, topic: int = 1, besides: set[str] | None = None) -> list[str]:
    return [manifest.name for _, manifest in Reserve(shelf, topic).best(besides or set())]


def test_the_last_two_good_bundles_of_a_topic_are_kept_whole_and_the_newest_comes_first(
    shelf: Shelf, variant: Variant, place: Path
) -> None:
    bundles = {name: variant(name) for name in ("a", "b", "c")}
    for name in ("a", "b", "c"):
        shelf.keep(1, *bundles[name])
        shelf.keep(1, *bundles[name])
    assert names(shelf) == ["c", "b"]
    assert {path.name for path in place.iterdir()} == {INDEX, bundles["b"][1].sha256, bundles["c"][1].sha256}
    shelf.keep(1, *bundles["b"])
    assert names(shelf) == ["b", "c"], "the last good one, not the last that was copied"
    path, manifest = Reserve(shelf, 1).best(set())[0]
    assert load_bundle(path).sha256 == manifest.sha256
    assert names(shelf, besides={manifest.sha256}) == ["c"]


def test_two_topics_keep_their_own(shelf: Shelf, variant: Variant) -> None:
    for name, topic in (("a", 1), ("b", 2), ("c", 2), ("d", 2)):
        shelf.keep(topic, *variant(name))
    assert (names(shelf, 1), names(shelf, 2), names(shelf, 3)) == (["a"], ["d", "c"], [])


def test_a_bundle_in_quarantine_is_not_offered_until_it_is_released(shelf: Shelf, variant: Variant) -> None:
    (path, one), two = variant("a"), variant("b")
    shelf.keep(1, path, one)
    shelf.keep(1, *two)
    shelf.quarantine(two[1], "it hung three times" * 100)
    assert names(shelf) == ["a"]
    entry = shelf.quarantined()[two[1].sha256]
    assert (entry.name, entry.since) == ("b", "2027-01-15T08:00:00Z")
    assert len(entry.reason) <= 500
    assert shelf.release("nothing like it") == []
    assert [freed.name for freed in shelf.release(two[1].sha256[:8])] == ["b"]
    assert names(shelf) == ["b", "a"]
    assert shelf.quarantined() == {}


def test_what_was_replaced_or_damaged_since_it_was_loaded_is_not_kept_as_good(
    shelf: Shelf, variant: Variant, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, manifest = variant("a")
    other, _ = variant("b")
    mine = path.with_name("mine")
    shutil.copytree(other, mine)
    shelf.keep(1, mine, manifest)
    assert "another bundle" in caplog.text
    shutil.rmtree(mine)
    shutil.copytree(path, mine)
    weights = bytearray((mine / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (mine / "weights.safetensors").write_bytes(weights)
    shelf.keep(1, mine, manifest)
    assert "was changed since" in caplog.text
    assert names(shelf) == []
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
def test_a_damaged_index_counts_as_empty_is_told_and_costs_no_copy(
    shelf: Shelf, variant: Variant, place: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    old, new = variant("a"), variant("b")
    shelf.keep(2, *old)
    (place / INDEX).write_bytes(content)
    assert names(shelf, 2) == []
    assert shelf.quarantined() == {}
    assert INDEX in caplog.text
    shelf.keep(1, *new)
    assert names(shelf, 1) == ["b"]
    assert (place / old[1].sha256).is_dir(), "another topic's copy is not thrown away for a damage of the list"
    shelf.keep(2, *old)
    assert names(shelf, 2) == ["a"]


def test_an_index_that_cannot_be_read_is_not_written_over(
    shelf: Shelf, variant: Variant, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = variant("a"), variant("b")
    shelf.keep(1, *one)
    shelf.quarantine(two[1], "why")
    before = (place / INDEX).read_bytes()

    def fail(self: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        assert shelf.good(1) == []
        assert shelf.quarantined() == {}
        shelf.keep(1, *two)
        shelf.quarantine(one[1], "why")
        with pytest.raises(NeedsHuman, match="cannot be read"):
            shelf.release("")
    assert (place / INDEX).read_bytes() == before
    assert "Too many open files" in caplog.text


@pytest.mark.parametrize("blocked", ["a file in its place", "a full disk", "no way in"])
def test_a_shelf_that_cannot_be_written_costs_a_warning(
    variant: Variant,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    blocked: str,
) -> None:
    shelf = Shelf(place, NOW)
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
        shelf.keep(1, path, manifest)
        shelf.quarantine(manifest, "why")
    assert "could be kept" in caplog.text
    assert names(shelf) == []


def test_a_copy_that_was_damaged_or_removed_is_left_out(
    shelf: Shelf, variant: Variant, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = variant("a"), variant("b")
    shelf.keep(1, *one)
    shelf.keep(1, *two)
    (place / two[1].sha256 / "manifest.json").write_text("{")
    assert names(shelf) == ["a"]
    assert "no good" in caplog.text
    shutil.rmtree(place / one[1].sha256)
    assert names(shelf) == []
    shelf.keep(1, *one)
    assert names(shelf) == ["a"], "and is made again"


def test_the_index_is_plain_json_for_its_owner_alone(shelf: Shelf, variant: Variant, place: Path) -> None:
    path, manifest = variant("a")
    shelf.keep(1, path, manifest)
    assert json.loads((place / INDEX).read_text()) == {"good": {"1": [manifest.sha256]}, "quarantined": {}}
    assert (place / INDEX).stat().st_mode & 0o077 == 0
    assert read_manifest(place / manifest.sha256) == manifest
