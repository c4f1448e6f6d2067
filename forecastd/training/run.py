"""A training of any kind, carried out: its output checked, its rows put down, a supervised child that trains on them.

This process may have keys and never imports torch; the child finds the rows on disk. An interrupted training goes on from
the rows it began with, kept beside its output: nothing is gathered again, and newer data cannot change what is being trained
on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from forecastd.clock import Clock
from forecastd.errors import NeedsHuman
from forecastd.inference.training_job import error_from_child, train_job
from forecastd.settings import Settings, numeric_environment
from forecastd.supervise.policy import ChildSetup, SupervisionPolicy, policy_from_settings
from forecastd.supervise.process import ChildFailed, ModelFailed
from forecastd.training.trainer import TrainingSupervisor
from models.errors import BundleError, DataError, TrainingInterrupted
from models.registry import TrainedManifest, TrainingRows, read_trained_manifest
from models.training import state
from models.training.config import TrainingConfig
from models.training.progress import TrainingProgress
from models.training.run import prepare_training


@dataclass(frozen=True)
class TrainingRun:
    """One training: its options, where its bundle goes, and what is done with what is there already.

    `faults`: what its first process shall bring on itself, for a trial (`supervise.faults`).
    """

    config: TrainingConfig
    out: Path
    force: bool = False
    finish: bool = False
    faults: str = ""


@dataclass(frozen=True)
class TrainingListener:
    """Who follows a training: `tell` gets a sentence on the data, `remark` one on each child that was replaced.

    `at_once`: asked, once it was interrupted, whether it is to end without any more ado.
    """

    on_message: Callable[[str], None]
    on_progress: Callable[[TrainingProgress], None]
    on_replacement: Callable[[str], None]
    stop_now: Callable[[], bool] = lambda: False


def run_training(
    settings: Settings,
    run: TrainingRun,
    load_rows: Callable[[], TrainingRows],
    clock: Clock,
    listener: TrainingListener,
) -> TrainedManifest:
    """Train on what `rows` gathers, or go on where it was interrupted; gives the manifest of what was written.

    `rows` is called when nobody else is at work at the output. The options were checked (`models.training.check_config`).

    Raises:
        NeedsHuman: the output cannot work as it is, or no child could train.
        ModelError: the data cannot carry the training, or it was interrupted (`TrainingInterrupted`).
    """
    now, out = clock.now(), run.out
    try:
        _require_writable(out, force=run.force)
        with state.lock_output(out):
            data = load_rows()
            prepare_training(data, run.config, out, force=run.force, finish=run.finish)
            del data
            setup = ChildSetup(name=run.config.name, faults=run.faults, threads=0, environment=numeric_environment())
            trainer = TrainingSupervisor(
                setup, _training_policy(settings), clock, on_progress=listener.on_progress, on_replacement=listener.on_replacement,
                stop_now=listener.stop_now,
            )  # fmt: skip
            return _run_supervised(trainer, run, now, settings.job_attempts)
    except OSError as error:
        raise NeedsHuman(
            f"Cannot write {out}: {error.strerror or error}. Make room, or choose another --out."
        ) from error


def _training_policy(settings: Settings) -> SupervisionPolicy:
    """As for a prediction, but without a limit on memory and without quarantine.

    Torch reserves address space far beyond what it uses, with a GPU hundreds of GiB, so a limit on it would say nothing;
    what a training may take is the machine's, as for any program that its user starts. And there is no bundle to suspect.
    """
    return replace(policy_from_settings(settings, standbys=0), memory=0, quarantine_after=settings.job_attempts + 1)


def _run_supervised(trainer: TrainingSupervisor, run: TrainingRun, created: float, attempts: int) -> TrainedManifest:
    """Have the training, which has begun, carried to its end; raises what the child told."""
    out = run.out
    job = train_job(out, created=created, force=run.force, finish=run.finish, attempts=attempts)
    try:
        sha256 = trainer.run(job)
    except ModelFailed as error:
        raise error_from_child(error, out) from None
    except ChildFailed as error:
        raise NeedsHuman(
            f"No process brought the training to its end (JOB_ATTEMPTS: {attempts}). {error} What was reached is kept: the "
            "same command goes on; with `forecastd -v` before it, it tells what its processes write."
        ) from None
    except KeyboardInterrupt:
        directory = state.state_directory(out)
        raise TrainingInterrupted(directory, has_checkpoint=(directory / state.BEST_CHECKPOINT).exists()) from None
    manifest = read_trained_manifest(out)
    if manifest.sha256 != sha256:
        raise BundleError(f"{out} was replaced by something else just after the training.", check="hash")
    return manifest


def saved_rows(run: TrainingRun, key: str) -> TrainingRows | None:
    """The rows of an interrupted training of the same request.

    Raises:
        NeedsHuman: there are none, and no others may be trained on (`finish`).
        DataError: there are some, and they cannot be read.
    """
    try:
        unfinished = state.load(run.out)
    except DataError:
        if not run.force:
            raise
        unfinished = None
    if unfinished is not None and run.config.kind == unfinished.data.KIND and unfinished.data.request == key:
        return unfinished.data
    if run.finish:
        raise NeedsHuman(
            f"There is no interrupted training of {run.out} with these options. Train first, without --finish."
        )
    return None


def bundle_name(out: Path) -> str:
    """The bundle's name after its directory, with the letters a manifest allows."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", out.name)[:60]
    return name if name[:1].isalpha() else f"m{name}"


def _require_writable(out: Path, *, force: bool) -> None:
    """Say before a long training, not after it, that its result cannot be written."""
    if out.exists() and not force:
        raise NeedsHuman(f"{out} exists already. Choose another --out, or have it replaced with --force.")
    if out.is_file():
        raise NeedsHuman(f"{out} is a file; a bundle is a directory. Choose another --out.")
    existing_parent = next(parent for parent in out.absolute().parents if parent.exists())
    if not existing_parent.is_dir() or not os.access(existing_parent, os.W_OK | os.X_OK):
        raise NeedsHuman(f"{existing_parent} cannot be written to. Choose another --out, or change its permissions.")
