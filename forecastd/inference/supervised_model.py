"""One model in supervised child processes, and what takes its place when it is given up.

The children start before the rest of a cycle, so that they load and check the model while the parent does other work. When a
model is invalid, or quarantined because it hung or crashed its children, the last good bundle of its owner is used instead.
Without one an invalid model needs a person, and a quarantined one runs again later: a doubtful model is better than none.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypedDict, Unpack

from forecastd.clock import Clock, SystemClock
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.inference.bundle_store import FallbackBundles
from forecastd.runtime.closeable import Closeable
from forecastd.runtime.jobs import ChildFailed, ModelFailed
from forecastd.runtime.retry import backoff_seconds
from forecastd.supervise.events import Observer, SupervisionCounts
from forecastd.supervise.jobs import ChildSetup, Job, check_job
from forecastd.supervise.policy import SupervisionPolicy
from forecastd.supervise.pool import ProcessPool
from forecastd.supervise.queue import BundleQuarantined
from models.bundle.manifest import ManifestT
from models.errors import ModelError

log = logging.getLogger(__name__)


class ModelOptions(TypedDict, Generic[ManifestT], total=False):
    """The options of every supervised model. `fallback`: the bundles to use when the model is unusable.

    `validate` raises NeedsHuman for a bundle that must not run here; it is applied to every bundle.
    """

    policy: SupervisionPolicy
    clock: Clock
    fallback: FallbackBundles[ManifestT] | None
    validate: Callable[[ManifestT], None]
    observer: Observer


class SupervisedModel(Closeable, Generic[ManifestT]):
    """Runs one bundle in its own children. For one thread; any thread may read the attributes, list the children and close.

    `bundle`, `manifest`: in use now. `warnings`: what a person should know about it. `counts`: supervision counters over all
    bundles that were used. `fallback`: the bundles to use when this one is unusable.
    """

    manifest_type: type[ManifestT]
    bundle: Path
    manifest: ManifestT
    retry_seconds = (0.0, 0.0)  # before a quarantined bundle without a fallback runs again: first and maximum delay

    def __init__(self, bundle: Path, **options: Unpack[ModelOptions[ManifestT]]) -> None:
        """Read the bundle's manifest and start its children.

        Raises:
            NeedsHuman: the bundle is missing, its manifest is invalid, or it must not run here; and there is no fallback.
        """
        self.warnings: tuple[str, ...] = ()
        self.counts = SupervisionCounts()
        self.fallback = options.get("fallback")
        self._policy, self._clock = options.get("policy", SupervisionPolicy()), options.get("clock", SystemClock())
        self._validate, self._observer = options.get("validate"), options.get("observer")
        self._pool: ProcessPool | None = None
        self._quarantined_hashes: set[str] = set()  # sha256 of bundles that hung or crashed, at whatever path
        self._unusable_paths: set[Path] = set()  # the bundle at this path is invalid; a copy elsewhere may be valid
        self._just_loaded = True
        self._quarantine_reason, self._quarantines, self._retry_time = "", 0, 0.0
        self._lock, self._closed = Lock(), False
        try:
            manifest = self._read(bundle)
        except NeedsHuman as error:
            if not self._fall_back(str(error)):
                raise
            return
        entry = self.fallback.store.list_quarantined().get(manifest.sha256) if self.fallback else None
        if entry is not None:
            self._quarantined_hashes.add(manifest.sha256)
            message = f"{manifest.name} ({manifest.sha256[:12]}) is in quarantine since {entry.since}: {entry.reason}"
            if self._fall_back(message):
                return
            log.error("%s There is no fallback model, so it runs again.", message)
        self._start(bundle, manifest)

    @abstractmethod
    def _setup(self, bundle: Path, manifest: ManifestT) -> ChildSetup:
        """The set-up of the children that run this bundle."""

    def _accept(self, bundle: Path, manifest: ManifestT) -> None:
        """Prepare for this bundle. Raises NeedsHuman when it must not run here."""
        if self._validate is not None:
            self._validate(manifest)

    def check(self, should_stop: Callable[[], bool] = lambda: False) -> str:
        """Have a child verify the bundle's hashes, weights and canary; return the bundle's sha256.

        `should_stop` is polled every second; true ends the wait.

        Raises:
            NeedsHuman: the model is invalid, and there is no fallback.
            SkipEpoch: no child became ready.
        """
        pool, seconds = self._current_pool(), self._policy.ready_seconds
        try:
            sha256 = pool.wait_ready(seconds, should_stop)
            if not self._just_loaded:  # loading has run the canary; later cycles run it again
                sha256 = pool.run(check_job(self._clock.monotonic() + seconds, self._policy.attempts), should_stop)
        except ModelFailed as error:
            if self._fall_back(str(error)):
                return self.check(should_stop)
            raise NeedsHuman(str(error)) from error
        except ChildFailed as error:
            if self._fall_back_from_quarantine(error):
                return self.check(should_stop)
            raise SkipEpoch(str(error), check="model_process") from error
        if sha256 != self.manifest.sha256:
            self._reload(sha256)
            return self.check(should_stop)
        self._just_loaded = False
        return sha256

    def _run(self, job: Job, should_stop: Callable[[], bool]) -> Any:
        """The value of a job for the bundle in use; None when another bundle is used now and needs a job of its own.

        Raises:
            SkipEpoch: the model cannot do the job, or no child finished it.
            NeedsHuman: the model is invalid now, and there is no fallback.
        """
        try:
            value = self._current_pool().run(job, should_stop)
        except ModelFailed as error:
            if not (error.kind == "bundle" and self._fall_back(str(error))):
                raise SkipEpoch(str(error), check="model") from error
        except ChildFailed as error:
            if not self._fall_back_from_quarantine(error):
                raise SkipEpoch(str(error), check="model_process") from error
        else:
            if value.bundle_sha256 == self.manifest.sha256:
                self._quarantines = 0
                return value
            self._reload(value.bundle_sha256)
        self.check(should_stop)
        return None

    def _job_deadline(self) -> float:
        return self._clock.monotonic() + self._policy.forecast_seconds

    def keep_bundle(self) -> None:
        """Store the bundle in use as one that made a good forecast."""
        if self.fallback is not None:
            self.fallback.store.add(self.fallback.owner, self.bundle, self.manifest)

    def children(self) -> list[dict[str, object]]:
        """The state of each child, as in `ProcessPool.children`."""
        return [] if self._pool is None else self._pool.children()

    def close(self) -> None:
        """Stop the children."""
        with self._lock:
            self._closed = True
        self._close_pool()

    def _close_pool(self) -> None:
        if (pool := self._pool) is not None:  # one read: `close` may be called in another thread
            pool.close()

    def _current_pool(self) -> ProcessPool:
        """The pool; a new one when the bundle was quarantined without a fallback, and its delay is over."""
        if self._pool is not None:
            return self._pool
        if self._clock.monotonic() < self._retry_time:
            raise SkipEpoch(self._quarantine_reason, check="model_process")
        log.warning("Running the quarantined model %s again.", self.manifest.name)
        return self._start(self.bundle, self.manifest)

    def _start(self, bundle: Path, manifest: ManifestT) -> ProcessPool:
        """Use this bundle from now on. Raises NeedsHuman when it must not run here."""
        self._accept(bundle, manifest)
        self._close_pool()
        self.bundle, self.manifest, self._just_loaded = bundle, manifest, True
        setup = self._setup(bundle, manifest)
        pool = ProcessPool(setup, self._policy, self._clock, counts=self.counts, observer=self._observer)
        with self._lock:
            self._pool, is_closed = pool, self._closed
        if is_closed:
            pool.close()
        return pool

    def _read(self, bundle: Path) -> ManifestT:
        try:
            return self.manifest_type.read(bundle)
        except ModelError as error:
            raise NeedsHuman(str(error)) from error

    def _reload(self, sha256: str) -> None:
        """A child runs another bundle than expected: use the bundle that is at the path now.

        Raises:
            SkipEpoch: the bundle at the path has not changed.
            NeedsHuman: the new bundle is invalid, and there is no fallback.
        """
        try:
            manifest = self._read(self.bundle)
            if manifest.sha256 == self.manifest.sha256:
                message = f"The child runs the model {sha256[:12]} instead of {manifest.sha256[:12]}."
                raise SkipEpoch(message, check="model_process")
            log.warning("%s was replaced while it was in use: now using %s.", self.bundle, manifest.name)
            self._start(self.bundle, manifest)
        except NeedsHuman as error:
            if not self._fall_back(str(error)):
                raise

    def _fall_back_from_quarantine(self, error: ChildFailed) -> bool:
        """Record a quarantine and fall back. True when a fallback is used now."""
        if not isinstance(error, BundleQuarantined):
            return False
        self._quarantined_hashes.add(self.manifest.sha256)
        if self.fallback is not None:
            self.fallback.store.quarantine(self.manifest, str(error))
        if self._fall_back(str(error)):
            return True
        self._close_pool()
        self._pool = None
        self._quarantines += 1
        pause = backoff_seconds(self._quarantines, *self.retry_seconds, jitter=0)
        self._quarantine_reason, self._retry_time = str(error), self._clock.monotonic() + pause
        return False

    def _fall_back(self, reason: str) -> bool:
        """Use the last good bundle of the owner instead, because of `reason`. False when there is none."""
        if self._pool is not None:
            self._unusable_paths.add(self.bundle)
        for path, manifest in self.fallback.candidates(self._quarantined_hashes) if self.fallback else ():
            if path in self._unusable_paths:
                continue
            try:
                self._start(path, manifest)
            except NeedsHuman as error:
                log.warning("Cannot fall back to the model %s: %s", manifest.name, error)
                continue
            message = f"{reason} Falling back to the last good model, {manifest.name} ({manifest.sha256[:12]})."
            self.warnings = (message,)
            log.error("%s", message)
            return True
        return False
