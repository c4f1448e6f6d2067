"""Copies of bundles that made good forecasts, and the list of quarantined bundles.

The store is in the state directory and keeps the last two good bundles of each topic and of the fleet, to fall back to when
a model is truncated, changed or hangs. A copy is verified like any bundle when it is loaded. A store that cannot be written
costs a warning, never a forecast.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic

from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from forecastd.clock import Clock, to_iso
from forecastd.errors import ForecastdError, NeedsHuman
from forecastd.runtime.files import write_atomic
from forecastd.settings import Settings
from models.bundle.bundle import copy_bundle
from models.bundle.manifest import Manifest, ManifestT
from models.errors import ModelError

log = logging.getLogger(__name__)

BUNDLES_PER_TOPIC = 2
INDEX_NAME = "index.json"
OLD_INDEX_NAME = "shelf.json"  # of releases before 0.1.0; the same content

_STRICT = ConfigDict(extra="forbid", strict=True)


@pydantic_dataclass(config=_STRICT)
class QuarantineRecord:
    """Why a bundle is quarantined. `since`: ISO 8601. `reason`: its last failure."""

    name: str
    since: str
    reason: str


@pydantic_dataclass(config=_STRICT)
class BundleIndex:
    """The content of the index: hashes of each owner's good bundles, newest first, and the quarantined ones by hash."""

    good: dict[str, list[Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]]]
    quarantined: dict[str, QuarantineRecord]


_INDEX = TypeAdapter(BundleIndex)


@dataclass(frozen=True)
class QuarantineEntry:
    """Why a bundle is quarantined. `since`: ISO 8601. `reason`: its last failure."""

    sha256: str
    name: str
    since: str
    reason: str


class BundleStore:
    """The bundle store of one state directory. Safe for threads and processes."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._directory, self._clock = directory, clock

    def add(self, owner: int | str, bundle: Path, manifest: Manifest) -> None:
        """Record that this bundle made a good forecast for its owner (a topic, or the fleet), and copy it once.

        Copies beyond the last `BUNDLES_PER_TOPIC` of each owner are removed.
        """
        sha256 = manifest.sha256
        copy = self._directory / sha256
        with _warns_only(f"Cannot keep a copy of the model {manifest.name} to fall back to"), self._locked():
            index, is_valid = self._read_index()
            good = index.good.get(str(owner), [])
            if good[:1] == [sha256] and copy.is_dir():
                return
            if not copy.is_dir():
                copy_bundle(bundle, copy, manifest)
            index.good[str(owner)] = [sha256, *(sha for sha in good if sha != sha256)][:BUNDLES_PER_TOPIC]
            self._write_index(index)
            if is_valid:
                self._remove_unused(index)

    def list_good(self, owner: int | str) -> list[Path]:
        """The paths of an owner's good bundles that are not quarantined, newest first."""
        index = BundleIndex({}, {})
        with _warns_only("Cannot read the copies of earlier models"):
            index, _ = self._read_index()
        hashes = [sha for sha in index.good.get(str(owner), []) if sha not in index.quarantined]
        return [path for sha in hashes if (path := self._directory / sha).is_dir()]

    def quarantine(self, manifest: Manifest, reason: str) -> None:
        """Record that this bundle must not run while there is a fallback."""
        with _warns_only(f"Could not record that {manifest.name} is quarantined"), self._locked():
            index, _ = self._read_index()
            since = to_iso(self._clock.now())
            index.quarantined[manifest.sha256] = QuarantineRecord(manifest.name, since, reason[:500])
            self._write_index(index)

    def list_quarantined(self) -> dict[str, QuarantineEntry]:
        """All quarantined bundles, by sha256."""
        index = BundleIndex({}, {})
        with _warns_only("Cannot read the list of quarantined models"):
            index, _ = self._read_index()
        return {sha: QuarantineEntry(sha, **vars(record)) for sha, record in index.quarantined.items()}

    def release(self, prefix: str) -> list[QuarantineEntry]:
        """Release the bundles whose sha256 begins with `prefix` from quarantine, and return them.

        Raises:
            NeedsHuman: the index cannot be read or written.
        """
        try:
            with self._locked():
                index, _ = self._read_index()
                quarantined = index.quarantined
                entries = [
                    QuarantineEntry(sha, **vars(quarantined[sha])) for sha in quarantined if sha.startswith(prefix)
                ]
                for entry in entries:
                    del quarantined[entry.sha256]
                if entries:
                    self._write_index(index)
        except OSError as error:
            message = f"Cannot read {self._directory / INDEX_NAME}: {error.strerror}. Check its permissions."
            raise NeedsHuman(message) from None
        return entries

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Change the store in one thread of one process at a time."""
        self._directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _read_index(self) -> tuple[BundleIndex, bool]:
        """The index, and whether it is valid. An invalid index counts as empty, but then no copy may be removed.

        Raises:
            OSError: the index exists but cannot be read, so it must not be overwritten.
        """
        path = self._directory / INDEX_NAME
        if not path.exists():
            with suppress(FileNotFoundError):
                (self._directory / OLD_INDEX_NAME).rename(path)
        try:
            return _INDEX.validate_json(path.read_bytes()), True
        except FileNotFoundError:
            return BundleIndex({}, {}), True
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            log.warning("%s is not a valid bundle index (%s); it is treated as empty.", path, reason)
            return BundleIndex({}, {}), False

    def _write_index(self, index: BundleIndex) -> None:
        write_atomic(self._directory / INDEX_NAME, _INDEX.dump_json(index, indent=1))

    def _remove_unused(self, index: BundleIndex) -> None:
        used = {sha for hashes in index.good.values() for sha in hashes}
        for path in self._directory.iterdir():
            if path.is_dir() and path.name not in used:
                shutil.rmtree(path, ignore_errors=True)


def open_bundle_store(settings: Settings, clock: Clock) -> BundleStore:
    """The bundle store in the state directory of these settings."""
    return BundleStore(settings.state_path / "bundles", clock)


@dataclass(frozen=True)
class FallbackBundles(Generic[ManifestT]):
    """The fallback bundles of one topic, or of the fleet. `read`: reads a manifest of their kind."""

    store: BundleStore
    owner: int | str
    read: Callable[[Path], ManifestT]

    def candidates(self, excluded: set[str]) -> list[tuple[Path, ManifestT]]:
        """The bundles to fall back to, newest first, without those whose sha256 is excluded."""
        bundles = []
        for path in self.store.list_good(self.owner):
            try:
                manifest = self.read(path)
            except ModelError as error:
                log.warning("The copy of an earlier model is invalid: %s", error)
                continue
            if manifest.sha256 not in excluded:
                bundles.append((path, manifest))
        return bundles


@contextmanager
def _warns_only(message: str) -> Iterator[None]:
    """Log a failure of the store as a warning."""
    try:
        yield
    except (OSError, ModelError, ForecastdError) as error:
        log.warning("%s: %s", message, error)
