"""Train a model of any kind: check the options, keep one training run at an output, continue it after any interruption.

Torch and Lightning are imported by `run_training` only. The command line prepares a training run without them and leaves
the rest to a child process, which may be replaced: all that the two share is on disk (`models.training.state`).
"""

from __future__ import annotations

from pathlib import Path

from models.errors import BundleError, DataError, TrainingInterrupted
from models.registry import get_task, read_trained_manifest, restore
from models.tft.config import MAX_SIZES
from models.training import state
from models.training.config import TrainingConfig
from models.training.run import run_task
from models.training.task import TrainedManifest, TrainingCallback, TrainingRows

MIN_SIZES = {  # the largest values are those that a manifest may have (`MAX_SIZES`), or that fit 32 bits
    "encoder_length": 2, "horizon": 1, "hidden_size": 1, "hidden_continuous_size": 1, "attention_heads": 1,
    "lstm_layers": 1, "epochs": 1, "patience": 1, "batch_size": 1, "batches_per_epoch": 1, "scored_windows": 1, "seed": 0,
}  # fmt: skip


def train(
    data: TrainingRows,
    config: TrainingConfig,
    out: Path,
    progress: TrainingCallback,
    *,
    created: float,
    force: bool = False,
    finish: bool = False,
) -> TrainedManifest:
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
    check_config(config)
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
    get_task(data.KIND).check_data(data, config)
    if finish and not (state.state_directory(out) / state.BEST_CHECKPOINT).exists():
        raise DataError(
            f"No training of {out} has finished an epoch yet, so there is no checkpoint to make a bundle from. "
            "Train first, without --finish."
        )
    return state.open_or_create(out, data, config, discard=force)


def run_training(
    out: Path, progress: TrainingCallback, *, created: float, force: bool, finish: bool = False
) -> TrainedManifest:
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
                rows, config = restore(unfinished)
                task = get_task(unfinished.kind)
                manifest = run_task(
                    task,
                    unfinished,
                    rows,
                    config,
                    out,
                    progress=progress,
                    created=int(created),
                    force=force,
                    finish=finish,
                )
            if unfinished is not None:
                unfinished.remove()
            return manifest
    except KeyboardInterrupt:
        directory = state.state_directory(out)
        raise TrainingInterrupted(directory, has_checkpoint=(directory / state.BEST_CHECKPOINT).exists()) from None


def _find_written(out: Path, unfinished: state.TrainingState | None, created: int) -> TrainedManifest | None:
    """The manifest of the bundle at `out`, if this very training wrote it."""
    try:
        manifest = read_trained_manifest(out)
    except BundleError:
        return None
    record = manifest.training
    matches = unfinished is None or (
        (dict(record.config), record.data_sha256) == (unfinished.config, unfinished.data_sha256)
    )
    return manifest if record.created == created and matches else None


def check_config(config: TrainingConfig) -> None:
    """Refuse options that make no sense.

    Raises:
        DataError: it names the option.
    """
    get_task(config.kind).check_options(config)
    for name, minimum in MIN_SIZES.items():
        value, maximum = getattr(config, name), MAX_SIZES.get(name, 2**32 - 1)
        if not minimum <= value <= maximum:
            raise DataError(f"{_option_name(name)} must be from {minimum} to {maximum}, not {value}.")
    if config.attention_heads > config.hidden_size:
        raise DataError(f"{config.attention_heads} attention heads need a hidden size of at least as many.")
    if not 0 <= config.dropout < 1:
        raise DataError(f"--dropout must be from 0 to below 1, not {config.dropout}.")
    if not 0 < config.learning_rate <= 1:
        raise DataError(f"--learning-rate must be above 0 and at most 1, not {config.learning_rate}.")
    if not min(config.validation, config.test, 1 - config.validation - config.test) > 0:
        raise DataError("The shares of validation and test must be above 0 and leave rows to train on.")
    levels = config.levels
    valid, maximum = all(0 < level < 1 for level in levels), MAX_SIZES["levels"]
    if not valid or list(levels) != sorted(set(levels)) or 0.5 not in levels or len(levels) > maximum:
        raise DataError(
            f"--levels must be at most {maximum} increasing probabilities between 0 and 1 that include 0.5, not "
            f"{', '.join(f'{level:g}' for level in levels)}."
        )


def _option_name(name: str) -> str:
    return f"--{name.removeprefix('attention_').replace('_', '-')}"
