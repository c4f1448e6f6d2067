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
from forecastd.settings import Settings, numeric_environment
from forecastd.supervise.policy import Policy, Setup, policy_of
from forecastd.supervise.process import ChildFailed, ModelFailed
from forecastd.supervise.trainer import Trainer
from forecastd.supervise.trainjob import failure, train_job
from models import workdir
from models.config import TrainingConfig
from models.errors import BundleError, DataError, TrainingInterrupted
from models.kinds import Made, Rows, read_made
from models.progress import Progress
from models.training import begin


@dataclass(frozen=True)
class Run:
    """One training: its options, where its bundle goes, and what is done with what is there already.

    `faults`: what its first process shall bring on itself, for a trial (`supervise.faults`).
    """

    config: TrainingConfig
    out: Path
    force: bool = False
    finish: bool = False
    faults: str = ""


@dataclass(frozen=True)
class Listener:
    """Who follows a training: `tell` gets a sentence on the data, `remark` one on each child that was replaced.

    `at_once`: asked, once it was interrupted, whether it is to end without any more ado.
    """

    tell: Callable[[str], None]
    progress: Callable[[Progress], None]
    remark: Callable[[str], None]
    at_once: Callable[[], bool] = lambda: False


def carry_out(settings: Settings, run: Run, rows: Callable[[], Rows], clock: Clock, listener: Listener) -> Made:
    """Train on what `rows` gathers, or go on where it was interrupted; gives the manifest of what was written.

    `rows` is called when nobody else is at work at the output. The options were checked (`models.training.check_config`).

    Raises:
        NeedsHuman: the output cannot work as it is, or no child could train.
        ModelError: the data cannot carry the training, or it was interrupted (`TrainingInterrupted`).
    """
    now, out = clock.now(), run.out
    try:
        _require_writable(out, force=run.force)
        with workdir.hold(out):
            data = rows()
            begin(data, run.config, out, force=run.force, finish=run.finish)
            del data
            setup = Setup(name=run.config.name, faults=run.faults, threads=0, environment=numeric_environment())
            trainer = Trainer(
                setup, _policy(settings), clock, progress=listener.progress, remark=listener.remark,
                at_once=listener.at_once,
            )  # fmt: skip
            return _supervised(trainer, run, now, settings.job_attempts)
    except OSError as error:
        raise NeedsHuman(
            f"Cannot write {out}: {error.strerror or error}. Make room, or choose another --out."
        ) from error


def _policy(settings: Settings) -> Policy:
    """As for a prediction, but without a limit on memory and without quarantine.

    Torch reserves address space far beyond what it uses, with a GPU hundreds of GiB, so a limit on it would say nothing;
    what a training may take is the machine's, as for any program that its user starts. And there is no bundle to suspect.
    """
    return replace(policy_of(settings, standbys=0), memory=0, strikes=settings.job_attempts + 1)


def _supervised(trainer: Trainer, run: Run, created: float, attempts: int) -> Made:
    """Have the training, which has begun, carried to its end; raises what the child told."""
    out = run.out
    job = train_job(out, created=created, force=run.force, finish=run.finish, attempts=attempts)
    try:
        sha256 = trainer.run(job)
    except ModelFailed as error:
        raise failure(error, out) from None
    except ChildFailed as error:
        raise NeedsHuman(
            f"No process brought the training to its end (JOB_ATTEMPTS: {attempts}). {error} What was reached is kept: the "
            "same command goes on; with `forecastd -v` before it, it tells what its processes write."
        ) from None
    except KeyboardInterrupt:
        place = workdir.place(out)
        raise TrainingInterrupted(place, kept=(place / workdir.BEST).exists()) from None
    manifest = read_made(out)
    if manifest.sha256 != sha256:
        raise BundleError(f"{out} was replaced by something else just after the training.", check="hash")
    return manifest


def kept_rows(run: Run, key: str) -> Rows | None:
    """The rows of an interrupted training of the same request.

    Raises:
        NeedsHuman: there are none, and no others may be trained on (`finish`).
        DataError: there are some, and they cannot be read.
    """
    try:
        work = workdir.find(run.out)
    except DataError:
        if not run.force:
            raise
        work = None
    if work is not None and run.config.kind == work.data.KIND and work.data.request == key:
        return work.data
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
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise NeedsHuman(f"{above} cannot be written to. Choose another --out, or change its permissions.")
