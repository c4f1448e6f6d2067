"""The shelf: copies of the bundles that made good forecasts, and a list of those that must not be run again.

Kept below the state directory, a copy for each topic's last two, so that a model that is cut off, changed or hangs is stood
in for by the last good one. What lies here is checked as any bundle is when it is loaded; a shelf that cannot be written
costs a warning and no forecast.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
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

BUNDLES_PER_TOPIC = 2  # copies a topic
INDEX_NAME = "shelf.json"


@dataclass(frozen=True)
class QuarantineEntry:
    """Why a bundle is not run any more: its name, since when (ISO 8601), and the last of its failures."""

    sha256: str
    name: str
    since: str
    reason: str


class BundleStore:
    """The shelf below one state directory. Threads may share it."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._directory, self._clock, self._lock = directory, clock, Lock()

    def add(self, topic: int, bundle: Path, manifest: MarketManifest) -> None:
        """This bundle made a good forecast for a topic. Copied once; older copies than the last `KEPT` are removed."""
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
                log.warning("No copy of the model %s could be kept to fall back on: %s", manifest.name, error)

    def list_good(self, topic: int) -> list[Path]:
        """The kept bundles of a topic that are not in quarantine, the last good one first."""
        try:
            with self._lock:
                index, _ = self._read_index()
            hashes = [sha for sha in index["good"].get(str(topic), []) if sha not in index["quarantined"]]
            return [path for sha in hashes if (path := self._directory / sha).is_dir()]
        except OSError as error:
            log.warning("The kept copies of earlier models cannot be read: %s", error)
            return []

    def quarantine(self, manifest: MarketManifest, reason: str) -> None:
        """Do not run this bundle again as long as there is another."""
        with self._lock:
            try:
                index, _ = self._read_index()
                since = to_iso(self._clock.now())
                index["quarantined"][manifest.sha256] = {"name": manifest.name, "since": since, "reason": reason[:500]}
                self._write_index(index)
            except (OSError, ForecastdError) as error:
                log.warning("That %s is in quarantine could not be written down: %s", manifest.name, error)

    def list_quarantined(self) -> dict[str, QuarantineEntry]:
        """All bundles in quarantine, by sha256."""
        try:
            with self._lock:
                index, _ = self._read_index()
        except OSError as error:
            log.warning("Which models are in quarantine cannot be read: %s", error)
            return {}
        return {sha: QuarantineEntry(sha, **entry) for sha, entry in index["quarantined"].items()}

    def release(self, prefix: str) -> list[QuarantineEntry]:
        """Take the bundles whose sha256 begins with `prefix` out of quarantine; gives them.

        Raises:
            NeedsHuman: the shelf cannot be read or written.
        """
        entries = [entry for sha, entry in self.list_quarantined().items() if sha.startswith(prefix)]
        with self._lock:
            try:
                index, _ = self._read_index()
            except OSError as error:
                message = f"{self._directory / INDEX_NAME} cannot be read: {error.strerror}. Check its permissions."
                raise NeedsHuman(message) from None
            for entry in entries:
                index["quarantined"].pop(entry.sha256, None)
            if entries:
                self._write_index(index)
        return entries

    def _read_index(self) -> tuple[dict[str, dict[str, Any]], bool]:
        """The index, and whether it is whole: one that is not as it must be counts as empty, which proves no copy useless.

        Raises:
            OSError: it is there and cannot be read, so nothing may be written in its place.
        """
        path = self._directory / INDEX_NAME
        empty: dict[str, dict[str, Any]] = {"good": {}, "quarantined": {}}
        try:
            index = json.loads(path.read_bytes())
        except FileNotFoundError:
            return empty, True
        except (ValueError, RecursionError) as error:
            log.warning("%s is no index of the shelf (%s); going on as if it were empty.", path, error)
            return empty, False
        if _is_index(index):
            return {"good": dict(index["good"]), "quarantined": dict(index["quarantined"])}, True
        log.warning("%s is not what was written there; going on as if it were empty.", path)
        return empty, False

    def _write_index(self, index: Mapping[str, object]) -> None:
        write_atomic(self._directory / INDEX_NAME, json.dumps(index, indent=1).encode())

    def _remove_unused(self, index: Mapping[str, Mapping[str, Any]]) -> None:
        used = {sha for hashes in index["good"].values() for sha in hashes}
        for path in self._directory.iterdir():
            if path.is_dir() and path.name not in used:
                shutil.rmtree(path, ignore_errors=True)


def open_bundle_store(settings: Settings, clock: Clock) -> BundleStore:
    """The shelf of these settings' state directory."""
    return BundleStore(settings.state_path / "bundles", clock)


@dataclass(frozen=True)
class FallbackBundles:
    """The shelf as one topic sees it."""

    store: BundleStore
    topic: int

    def candidates(self, excluded: set[str]) -> list[tuple[Path, MarketManifest]]:
        """The bundles to fall back on, best first, without those of these sha256."""
        bundles = []
        for path in self.store.list_good(self.topic):
            try:
                manifest = read_market_manifest(path)
            except ModelError as error:
                log.warning("The kept copy of an earlier model is no good: %s", error)
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
