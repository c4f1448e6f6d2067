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

from forecastd.clock import Clock, iso
from forecastd.errors import ForecastdError, NeedsHuman
from forecastd.settings import Settings
from forecastd.wholefile import write_whole
from models.bundle import copy_bundle, read_manifest
from models.errors import ModelError
from models.manifest import Manifest

log = logging.getLogger(__name__)

KEPT = 2  # copies a topic
INDEX = "shelf.json"


@dataclass(frozen=True)
class Quarantine:
    """Why a bundle is not run any more: its name, since when (ISO 8601), and the last of its failures."""

    sha256: str
    name: str
    since: str
    reason: str


class Shelf:
    """The shelf below one state directory. Threads may share it."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._directory, self._clock, self._lock = directory, clock, Lock()

    def keep(self, topic: int, bundle: Path, manifest: Manifest) -> None:
        """This bundle made a good forecast for a topic. Copied once; older copies than the last `KEPT` are removed."""
        sha256 = manifest.sha256
        copy = self._directory / sha256
        with self._lock:
            try:
                index, whole = self._read()
                good = index["good"].get(str(topic), [])
                if good[:1] == [sha256] and copy.is_dir():
                    return
                if not copy.is_dir():
                    copy_bundle(bundle, copy, sha256)
                index["good"][str(topic)] = [sha256, *(sha for sha in good if sha != sha256)][:KEPT]
                self._write(index)
                if whole:
                    self._sweep(index)
            except (OSError, ModelError, ForecastdError) as error:
                log.warning("No copy of the model %s could be kept to fall back on: %s", manifest.name, error)

    def good(self, topic: int) -> list[Path]:
        """The kept bundles of a topic that are not in quarantine, the last good one first."""
        try:
            with self._lock:
                index, _ = self._read()
            found = [sha for sha in index["good"].get(str(topic), []) if sha not in index["quarantined"]]
            return [path for sha in found if (path := self._directory / sha).is_dir()]
        except OSError as error:
            log.warning("The kept copies of earlier models cannot be read: %s", error)
            return []

    def quarantine(self, manifest: Manifest, reason: str) -> None:
        """Do not run this bundle again as long as there is another."""
        with self._lock:
            try:
                index, _ = self._read()
                since = iso(self._clock.now())
                index["quarantined"][manifest.sha256] = {"name": manifest.name, "since": since, "reason": reason[:500]}
                self._write(index)
            except (OSError, ForecastdError) as error:
                log.warning("That %s is in quarantine could not be written down: %s", manifest.name, error)

    def quarantined(self) -> dict[str, Quarantine]:
        """All bundles in quarantine, by sha256."""
        try:
            with self._lock:
                index, _ = self._read()
        except OSError as error:
            log.warning("Which models are in quarantine cannot be read: %s", error)
            return {}
        return {sha: Quarantine(sha, **entry) for sha, entry in index["quarantined"].items()}

    def release(self, prefix: str) -> list[Quarantine]:
        """Take the bundles whose sha256 begins with `prefix` out of quarantine; gives them.

        Raises:
            NeedsHuman: the shelf cannot be read or written.
        """
        freed = [entry for sha, entry in self.quarantined().items() if sha.startswith(prefix)]
        with self._lock:
            try:
                index, _ = self._read()
            except OSError as error:
                told = f"{self._directory / INDEX} cannot be read: {error.strerror}. Check its permissions."
                raise NeedsHuman(told) from None
            for entry in freed:
                index["quarantined"].pop(entry.sha256, None)
            if freed:
                self._write(index)
        return freed

    def _read(self) -> tuple[dict[str, dict[str, Any]], bool]:
        """The index, and whether it is whole: one that is not as it must be counts as empty, which proves no copy useless.

        Raises:
            OSError: it is there and cannot be read, so nothing may be written in its place.
        """
        path = self._directory / INDEX
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

    def _write(self, index: Mapping[str, object]) -> None:
        write_whole(self._directory / INDEX, json.dumps(index, indent=1).encode())

    def _sweep(self, index: Mapping[str, Mapping[str, Any]]) -> None:
        used = {sha for kept in index["good"].values() for sha in kept}
        for path in self._directory.iterdir():
            if path.is_dir() and path.name not in used:
                shutil.rmtree(path, ignore_errors=True)


def open_shelf(settings: Settings, clock: Clock) -> Shelf:
    """The shelf of these settings' state directory."""
    return Shelf(settings.state / "bundles", clock)


@dataclass(frozen=True)
class Reserve:
    """The shelf as one topic sees it."""

    shelf: Shelf
    topic: int

    def best(self, besides: set[str]) -> list[tuple[Path, Manifest]]:
        """The bundles to fall back on, best first, without those of these sha256."""
        found = []
        for path in self.shelf.good(self.topic):
            try:
                manifest = read_manifest(path)
            except ModelError as error:
                log.warning("The kept copy of an earlier model is no good: %s", error)
                continue
            if manifest.sha256 not in besides:
                found.append((path, manifest))
        return found


def _is_index(index: object) -> bool:
    if not isinstance(index, dict) or set(index) != {"good", "quarantined"}:
        return False
    good, quarantined = index["good"], index["quarantined"]
    return (
        isinstance(good, dict)
        and all(isinstance(kept, list) and all(_is_sha(sha) for sha in kept) for kept in good.values())
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
