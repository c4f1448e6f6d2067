"""A training run of any kind: check the output, save the rows, and train on them in a supervised child.

This process may hold keys and never imports torch; the child reads the rows from disk. An interrupted training run
resumes with the rows saved next to its output: nothing is fetched again, and newer data cannot change the training data.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

from forecastd.clock import Clock
from forecastd.errors import NeedsHuman, require_extra
from forecastd.inference.training_runner import error_from_child, parse_progress, training_request
from forecastd.runtime.jobs import ChildFailed, JobListener, JobRequest, JobRunner, ModelFailed
from forecastd.settings import Settings
from models.bundle.manifest import Manifest
from models.errors import BundleError, DataError
from models.registry import TASKS, read_any_manifest
from models.train import prepare_training
from models.training import state
from models.training.config import TrainingConfig
from models.training.progress import TrainingProgress
from models.training.state import RowsT


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """A user's request for a training run of any kind.

    `out`: the directory of the bundle; each kind has a default. `until`: unix seconds; only older data is used. `force`:
    replace a bundle at `out` and discard an unfinished training run. `finish`: use the best checkpoint so far.
    """

    config: TrainingConfig
    out: Path | None = None
    until: float | None = None
    force: bool = False
    finish: bool = False


@dataclass(frozen=True)
class RowSource(Generic[RowsT]):
    """Where the rows of a training run come from.

    `key`: what the user asked for, as text: an interrupted training run is resumed for the same key only. `fetch` is called
    while the output is locked. `describe`: a sentence on the rows.
    """

    key: str
    fetch: Callable[[], RowsT]
    describe: Callable[[RowsT], str]


@dataclass(frozen=True)
class TrainedBundle:
    """A trained bundle on disk."""

    path: Path
    manifest: Manifest


@dataclass(frozen=True)
class TrainingListener:
    """Callbacks of a training run. `on_message` gets a sentence on the data, `on_replacement` one on each replaced child.

    `stop_now`: polled after an interrupt; true kills the child without waiting for it.
    """

    on_message: Callable[[str], None]
    on_progress: Callable[[TrainingProgress], None]
    on_replacement: Callable[[str], None]
    stop_now: Callable[[], bool] = lambda: False


def run_training(
    settings: Settings,
    request: TrainingRequest,
    source: RowSource[RowsT],
    *,
    default_out: Path,
    clock: Clock,
    listener: TrainingListener,
    jobs: JobRunner,
) -> TrainedBundle:
    """Train on the rows of `source`, or resume an interrupted training run, and write the bundle.

    `jobs` runs the training. The options must have been checked (`TrainingConfig.check`).

    Raises:
        NeedsHuman: the output must be changed, or every child failed.
        ModelError: the data is not fit for the training, or it was interrupted (`TrainingInterrupted`).
    """
    require_extra("train", "Training")
    now, out = clock.now(), request.out or default_out
    config = replace(request.config, name=_bundle_name(out))
    try:
        _require_writable(out, force=request.force)
        with state.lock_output(out):
            rows = _load_rows(request, out, source, listener)
            prepare_training(rows, config, out, force=request.force, finish=request.finish)
            del rows
            job = training_request(out, created=now, force=request.force, finish=request.finish)
            sha256 = _run_job(jobs, job, listener, out, settings.supervision.job_attempts)
            manifest = read_any_manifest(out)
            if manifest.sha256 != sha256:
                raise BundleError(f"{out} was replaced by another bundle just after the training.", check="hash")
            return TrainedBundle(out, manifest)
    except OSError as error:
        raise NeedsHuman(
            f"Cannot write {out}: {error.strerror or error}. Make room, or choose another --out."
        ) from error


def _load_rows(request: TrainingRequest, out: Path, source: RowSource[RowsT], listener: TrainingListener) -> RowsT:
    """The saved rows of an interrupted training run of the same request, or rows that are fetched now.

    Raises:
        NeedsHuman: there are no saved rows, but `finish` needs them.
        DataError: the saved rows cannot be read.
    """
    kind = request.config.kind
    try:
        unfinished = state.load(out)
        if unfinished is not None and kind == unfinished.kind and unfinished.request == source.key:
            rows: RowsT = unfinished.restore_rows(TASKS[kind].ROWS)  # type: ignore[assignment]  # of this kind
            listener.on_message(f"resuming the interrupted training: {source.describe(rows)}")
            return rows
    except DataError:
        if not request.force:
            raise
    if request.finish:
        raise NeedsHuman(
            f"There is no interrupted training of {out} with these options. Train first, without --finish."
        )
    rows = replace(source.fetch(), request=source.key)
    listener.on_message(source.describe(rows))
    return rows


def _run_job(jobs: JobRunner, request: JobRequest, listener: TrainingListener, out: Path, attempts: int) -> str:
    """Run the prepared training of `out` to its end; return the bundle's sha256. Raises the job's error."""

    def on_progress(detail: Mapping[str, Any]) -> None:
        if (progress := parse_progress(detail)) is not None:
            listener.on_progress(progress)

    try:
        sha256: str = jobs.run(request, JobListener(on_progress, listener.on_replacement, listener.stop_now))
    except ModelFailed as error:
        raise error_from_child(error, out) from None
    except ChildFailed as error:
        raise NeedsHuman(
            f"No process completed the training (JOB_ATTEMPTS: {attempts}). {error} The last checkpoint is kept: run the "
            "same command again to resume. With `forecastd -v` it logs the output of its processes."
        ) from None
    except KeyboardInterrupt:
        raise state.interrupted(out) from None
    return sha256


def _bundle_name(out: Path) -> str:
    """The bundle's name from its directory, reduced to the characters that a manifest allows."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", out.name)[:60]
    return name if name[:1].isalpha() else f"m{name}"


def _require_writable(out: Path, *, force: bool) -> None:
    """Report before a long training run, not after it, that its bundle cannot be written. Raises NeedsHuman."""
    if out.exists() and not force:
        raise NeedsHuman(f"{out} exists already. Choose another --out, or replace it with --force.")
    if out.is_file():
        raise NeedsHuman(f"{out} is a file; a bundle is a directory. Choose another --out.")
    existing_parent = next(parent for parent in out.absolute().parents if parent.exists())
    if not existing_parent.is_dir() or not os.access(existing_parent, os.W_OK | os.X_OK):
        raise NeedsHuman(f"Cannot write to {existing_parent}. Choose another --out, or change the permissions.")
