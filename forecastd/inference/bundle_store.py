"""Copies of bundles that made good forecasts, and the list of quarantined bundles.

The store is in the state directory and keeps the last two good bundles of each topic, to fall back to when a model is
truncated, changed or hangs. A copy is verified like any bundle when it is loaded. A store that cannot be written costs a
warning, never a forecast.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from forecastd.clock import Clock, to_iso
from forecastd.errors import ForecastdError, NeedsHuman
from forecastd.runtime.files import write_atomic
from forecastd.settings import Settings
from models.errors import ModelError
from models.market.bundle import copy_market_bundle, read_market_manifest
from models.market.manifest import MarketManifest

log = logging.getLogger(__name__)

BUNDLES_PER_TOPIC = 2
INDEX_NAME = "index.json"
OLD_INDEX_NAME = "shelf.json"  # of releases before 0.1.0; the same content


@dataclass(frozen=True)
class QuarantineEntry:
    """Why a bundle is quarantined. `since`: ISO 8601. `reason`: its last failure."""

    sha256: str
    name: str
    since: str
    reason: str


class BundleStore:
    """The bundle store of one state directory. Safe for threads."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._directory, self._clock, self._lock = directory, clock, Lock()

    def add(self, topic: int, bundle: Path, manifest: MarketManifest) -> None:
        """Record that this bundle made a good forecast for a topic, and copy it once.

        Copies beyond the last `BUNDLES_PER_TOPIC` of each topic are removed.
        """
        sha256 = manifest.sha256
        copy = self._directory / sha256
        with self._lock:
            try:
                index, is_valid = self._read_index()
                good = index["good"].get(str(topic), [])
                if good[:1] == [sha256] and copy.is_dir():
                    return
                if not copy.is_dir():
                    copy_market_bundle(bundle, copy, sha256)
                index["good"][str(topic)] = [sha256, *(sha for sha in good if sha != sha256)][:BUNDLES_PER_TOPIC]
                self._write_index(index)
                if is_valid:
                    self._remove_unused(index)
            except (OSError, ModelError, ForecastdError) as error:
                log.warning("Cannot keep a copy of the model %s to fall back to: %s", manifest.name, error)

    def list_good(self, topic: int) -> list[Path]:
        """The paths of a topic's good bundles that are not quarantined, newest first."""
        try:
            with self._lock:
                index, _ = self._read_index()
            hashes = [sha for sha in index["good"].get(str(topic), []) if sha not in index["quarantined"]]
            return [path for sha in hashes if (path := self._directory / sha).is_dir()]
        except OSError as error:
            log.warning("Cannot read the copies of earlier models: %s", error)
            return []

    def quarantine(self, manifest: MarketManifest, reason: str) -> None:
        """Record that this bundle must not run while there is a fallback."""
        with self._lock:
            try:
                index, _ = self._read_index()
                since = to_iso(self._clock.now())
                index["quarantined"][manifest.sha256] = {"name": manifest.name, "since": since, "reason": reason[:500]}
                self._write_index(index)
            except (OSError, ForecastdError) as error:
                log.warning("Could not record that %s is quarantined: %s", manifest.name, error)

    def list_quarantined(self) -> dict[str, QuarantineEntry]:
        """All quarantined bundles, by sha256."""
        try:
            with self._lock:
                index, _ = self._read_index()
        except OSError as error:
            log.warning("Cannot read the list of quarantined models: %s", error)
            return {}
        return {sha: QuarantineEntry(sha, **entry) for sha, entry in index["quarantined"].items()}

    def release(self, prefix: str) -> list[QuarantineEntry]:
        """Release the bundles whose sha256 begins with `prefix` from quarantine, and return them.

        Raises:
            NeedsHuman: the index cannot be read or written.
        """
        entries = [entry for sha, entry in self.list_quarantined().items() if sha.startswith(prefix)]
        with self._lock:
            try:
                index, _ = self._read_index()
            except OSError as error:
                message = f"Cannot read {self._directory / INDEX_NAME}: {error.strerror}. Check its permissions."
                raise NeedsHuman(message) from None
            for entry in entries:
                index["quarantined"].pop(entry.sha256, None)
            if entries:
                self._write_index(index)
        return entries

    def _read_index(self) -> tuple[dict[str, dict[str, Any]], bool]:
        """The index, and whether it is valid. An invalid index counts as empty, but then no copy may be removed.

        Raises:
            OSError: the index exists but cannot be read, so it must not be overwritten.
        """
        path = self._directory / INDEX_NAME
        empty: dict[str, dict[str, Any]] = {"good": {}, "quarantined": {}}
        try:
            index = json.loads(self._read_bytes(path))
        except FileNotFoundError:
            return empty, True
        except (ValueError, RecursionError) as error:
            log.warning("%s is not a valid bundle index (%s); it is treated as empty.", path, error)
            return empty, False
        if _is_index(index):
            return {"good": dict(index["good"]), "quarantined": dict(index["quarantined"])}, True
        log.warning("%s is not a valid bundle index; it is treated as empty.", path)
        return empty, False

    def _read_bytes(self, path: Path) -> bytes:
        """The content of the index. An index under its old name is renamed first. Raises OSError."""
        if not path.exists():
            with suppress(FileNotFoundError):
                (self._directory / OLD_INDEX_NAME).rename(path)
        return path.read_bytes()

    def _write_index(self, index: Mapping[str, object]) -> None:
        write_atomic(self._directory / INDEX_NAME, json.dumps(index, indent=1).encode())

    def _remove_unused(self, index: Mapping[str, Mapping[str, Any]]) -> None:
        used = {sha for hashes in index["good"].values() for sha in hashes}
        for path in self._directory.iterdir():
            if path.is_dir() and path.name not in used:
                shutil.rmtree(path, ignore_errors=True)


def open_bundle_store(settings: Settings, clock: Clock) -> BundleStore:
    """The bundle store in the state directory of these settings."""
    return BundleStore(settings.state_path / "bundles", clock)


@dataclass(frozen=True)
class FallbackBundles:
    """The fallback bundles of one topic."""

    store: BundleStore
    topic: int

    def candidates(self, excluded: set[str]) -> list[tuple[Path, MarketManifest]]:
        """The bundles to fall back to, newest first, without those whose sha256 is excluded."""
        bundles = []
        for path in self.store.list_good(self.topic):
            try:
                manifest = read_market_manifest(path)
            except ModelError as error:
                log.warning("The copy of an earlier model is invalid: %s", error)
                continue
            if manifest.sha256 not in excluded:
                bundles.append((path, manifest))
        return bundles


def _is_index(index: object) -> bool:
    if not isinstance(index, dict) or set(index) != {"good", "quarantined"}:
        return False
    good, quarantined = index["good"], index["quarantined"]
    return (
        isinstance(good, dict)
        and all(isinstance(hashes, list) and all(_is_sha(sha) for sha in hashes) for hashes in good.values())
        and isinstance(quarantined, dict)
        and all(
            isinstance(entry, dict)
            and set(entry) == {"name", "since", "reason"}
            and all(isinstance(part, str) for part in entry.values())
            for entry in quarantined.values()
        )
    )


def _is_sha(text: object) -> bool:
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")
