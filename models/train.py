"""Train a model of any kind: check the options, keep one training run at an output, continue it after any interruption.

Torch and Lightning are imported by `run_training` only. The command line prepares a training run without them and leaves
the rest to a child process, which may be replaced: all that the two share is on disk (`models.training.state`).
"""

from __future__ import annotations

from pathlib import Path

from models.bundle.manifest import Manifest
from models.errors import BundleError, DataError
from models.registry import TASKS, read_any_manifest
from models.training import state
from models.training.config import TrainingConfig
from models.training.data import TrainingRows
from models.training.run import TrainingCallback, run_task


def train(
    data: TrainingRows,
    config: TrainingConfig,
    out: Path,
    progress: TrainingCallback,
    *,
    created: float,
    force: bool = False,
    finish: bool = False,
) -> Manifest:
    """Train a network on `data` and write it as a bundle at `out`; continue where an interrupted training run stopped.

    `created`: unix time for the manifest. `force`: replace a bundle at `out` and discard an unfinished training run with
    other options. `finish`: fit no further and use the best checkpoint.

    Raises:
        DataError: the rows do not suffice, or an option makes no sense.
        BundleError: `out` exists (check "exists"), another training runs there ("busy"), or the engine does not reproduce
            the network ("canary").
        TrainingInterrupted: Ctrl-C; the checkpoints are kept.
        OSError: the disk is full, or `out` may not be written.
    """
    config.check()
    if out.exists() and not force:
        raise BundleError(f"{out} exists already. Choose another path, or replace it with --force.", check="exists")
    with state.lock_output(out):
        prepare_training(data, config, out, force=force, finish=finish)
        return run_training(out, progress, created=created, force=force, finish=finish)


def prepare_training(
    data: TrainingRows, config: TrainingConfig, out: Path, *, force: bool, finish: bool
) -> state.TrainingState:
    """Write what `run_training` needs. The caller holds `lock_output(out)` and has checked `config`.

    Raises as `train` does, before anything is written.
    """
    TASKS[data.KIND](data, config)  # checks the data
    if finish and not state.has_checkpoint(out):
        raise DataError(
            f"No training of {out} has finished an epoch yet, so there is no checkpoint to make a bundle from. "
            "Train first, without --finish."
        )
    return state.open_or_create(out, data, config, discard=force)


def run_training(
    out: Path, progress: TrainingCallback, *, created: float, force: bool, finish: bool = False
) -> Manifest:
    """Run the prepared training of `out` to its end, from its last checkpoint.

    May be called again with the same arguments after the process that ran it has died, at whatever point: a bundle that
    was written already is not written again. Raises as `train` does.
    """
    try:
        with state.lock_rows(out) as exists:
            unfinished = state.load(out) if exists else None
            manifest = _find_written(out, unfinished, int(created))
            if manifest is None:
                if unfinished is None:
                    raise DataError(f"The training state of {out} was removed while it was in use. Train again.")
                kind = TASKS.get(unfinished.kind)
                if kind is None:
                    raise state.unreadable(unfinished.path, KeyError(unfinished.kind))
                task = kind(unfinished.restore_rows(kind.ROWS), unfinished.restore_config(kind.CONFIG))
                manifest = run_task(task, unfinished, out, progress, created=int(created), force=force, finish=finish)
            if unfinished is not None:
                unfinished.remove()
            return manifest
    except KeyboardInterrupt:
        raise state.interrupted(out) from None


def _find_written(out: Path, unfinished: state.TrainingState | None, created: int) -> Manifest | None:
    """The manifest of the bundle at `out`, if this very training wrote it."""
    try:
        manifest = read_any_manifest(out)
    except BundleError:
        return None
    record = manifest.training
    matches = unfinished is None or (
        (dict(record.config), record.data_sha256) == (unfinished.config, unfinished.data_sha256)
    )
    return manifest if record.created == created and matches else None
