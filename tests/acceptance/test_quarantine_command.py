"""`model quarantine` and what the doctor says of a bundle that is in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forecastd.clock import SystemClock
from forecastd.shelf import INDEX, Shelf
from models.bundle import read_manifest
from models.bundlefiles import MANIFEST
from models.manifest import Manifest

REASON = "Model process 4711 hung (no progress for 30.0 s, predicting may take 30 s); 3 failures in a row."


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """The shelf of the command's own state directory."""
    return Shelf(tmp_path / "state" / "bundles", SystemClock())


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
def held(shelf: Shelf, bundle: Callable[[str], Path]) -> list[Manifest]:
    """Two bundles in quarantine."""
    found = [read_manifest(bundle(name)) for name in ("alpha", "beta")]
    for manifest in found:
        shelf.quarantine(manifest, REASON)
    return found


def test_an_empty_quarantine_is_told_as_such(command: Any) -> None:
    assert "no bundle is in it" in command("model", "quarantine").out
    assert command("model", "quarantine", "--json").told == {"quarantined": []}
    assert command("model", "quarantine", "--release", "all", "--json").told == {"released": []}


def test_it_lists_name_hash_time_and_reason_in_eighty_columns(command: Any, held: list[Manifest]) -> None:
    done = command("model", "quarantine")
    assert done.code == 0
    for manifest in held:
        assert f"{manifest.name} ({manifest.sha256[:12]})" in done.out
    assert "3 failures in a row" in " ".join(done.out.split())
    assert max(map(len, done.out.splitlines())) <= 80
    told = command("model", "quarantine", "--json").told["quarantined"]
    assert {(one["sha256"], one["name"], one["reason"]) for one in told} == {
        (manifest.sha256, manifest.name, REASON) for manifest in held
    }


def test_the_start_of_a_hash_releases_that_bundle_and_no_other(
    command: Any, held: list[Manifest], shelf: Shelf
) -> None:
    done = command("model", "quarantine", "--release", held[0].sha256[:12].upper(), "--json")
    assert [one["name"] for one in done.told["released"]] == ["alpha"]
    assert set(shelf.quarantined()) == {held[1].sha256}


def test_all_releases_all(command: Any, held: list[Manifest], shelf: Shelf) -> None:
    assert len(held) == len(shelf.quarantined())
    done = command("model", "quarantine", "--release", "all")
    assert done.code == 0
    assert "released" in done.out
    assert shelf.quarantined() == {}


@pytest.mark.parametrize("text", ["", "a", "0123456789abcdef", "../bundles", "ALL"])
def test_what_names_no_bundle_in_quarantine_releases_nothing(
    command: Any, held: list[Manifest], shelf: Shelf, text: str
) -> None:
    done = command("model", "quarantine", "--release", text)
    assert done.code == 2
    assert held[0].sha256[:12] in done.err
    assert len(shelf.quarantined()) == len(held)


def test_a_list_that_cannot_be_read_is_told_and_releases_nothing(command: Any, tmp_path: Path) -> None:
    index = tmp_path / "state" / "bundles" / INDEX
    index.mkdir(parents=True)
    listed = command("model", "quarantine")
    assert "cannot be read" in listed.err
    done = command("model", "quarantine", "--release", "all", "--json")
    assert done.code == 5
    assert f"{INDEX} cannot be read" in done.told["reason"]


def test_the_doctor_fails_a_quarantined_model_and_tells_what_stands_in(
    command: Any, shelf: Shelf, bundle: Callable[[str], Path]
) -> None:
    mine, earlier = bundle("mine"), bundle("earlier")
    shelf.keep(67, earlier, read_manifest(earlier))
    shelf.quarantine(read_manifest(mine), REASON)
    done = command("doctor", "--model", str(mine), "--json")
    assert done.code == 5
    findings = [one for one in done.told["findings"] if one["check"] == "model"]
    assert [one["level"] for one in findings] == ["fail", "warn"]
    assert "mine" in findings[0]["found"]
    assert "quarantine --release" in findings[0]["fix"]
    assert "earlier" in findings[1]["found"]
    assert "stands in" in findings[1]["found"]
    shelf.release("")
    healed = command("doctor", "--model", str(mine), "--json").told["findings"]
    assert [one["level"] for one in healed if one["check"] == "model"] == ["ok"]


@pytest.mark.parametrize("damaged", ["weights.safetensors", MANIFEST])
def test_the_doctor_fails_a_damaged_model_though_an_earlier_one_stands_in(
    command: Any, shelf: Shelf, bundle: Callable[[str], Path], damaged: str
) -> None:
    mine, earlier = bundle("mine"), bundle("earlier")
    shelf.keep(67, earlier, read_manifest(earlier))
    (mine / damaged).write_bytes((mine / damaged).read_bytes()[:-5])
    done = command("doctor", "--model", str(mine), "--json")
    assert done.code == 5
    findings = [one for one in done.told["findings"] if one["check"] == "model"]
    assert [one["level"] for one in findings] == ["fail", "warn"]
    assert "earlier" in findings[1]["found"]
