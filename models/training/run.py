"""From rows to a checked bundle, of whichever kind: options checked, one training at an output, gone on with after any end.

What is fitted, and how it is compared and exported, is the kind's (`models.market`, `models.fleet.training`). Torch and
Lightning are imported by `go_on` only, so that the command line can begin a training without them and leave the rest to a
process that may be replaced: what the two share is on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from models.errors import BundleError, DataError, TrainingInterrupted
from models.market.manifest import MAX_SIZES
from models.registry import TrainedManifest, TrainingRows, get_task, read_trained_manifest
from models.training import state
from models.training.config import TrainingConfig
from models.training.progress import TrainingProgress

MIN_SIZES = {  # of each size; the most is what a manifest may name, or what fits 32 bits
    "encoder_length": 2, "horizon": 1, "hidden_size": 1, "hidden_continuous_size": 1, "attention_heads": 1,
    "lstm_layers": 1, "epochs": 1, "patience": 1, "batch_size": 1, "batches_per_epoch": 1, "scored_windows": 1, "seed": 0,
}  # fmt: skip


def train(
    data: TrainingRows,
    config: TrainingConfig,
    out: Path,
    progress: Callable[[TrainingProgress], None],
    *,
    created: float,
    force: bool = False,
    finish: bool = False,
) -> TrainedManifest:
    """Train a network on `data` and write it as a bundle at `out`; go on where an interrupted training left off.

    `created` is the unix time to be written in the manifest. `force` replaces a bundle at `out` and throws away an
    unfinished training with other options. `finish` fits no further and uses the best checkpoint that there is.

    Raises:
        DataError: the rows cannot carry the training, or an option makes no sense.
        BundleError: something is in the way at `out` (check "exists"), another training is at work there ("busy"), or the
            engine does not reproduce the network ("canary").
        TrainingInterrupted: Ctrl-C; what was reached is kept.
        OSError: the disk is full, or `out` may not be written.
    """
    check_config(config)
    if out.exists() and not force:
        raise BundleError(f"{out} exists already. Choose another place, or have it replaced (--force).", check="exists")
    with state.lock_output(out):
        prepare_training(data, config, out, force=force, finish=finish)
        return run_training(out, progress, created=created, force=force, finish=finish)


def prepare_training(
    data: TrainingRows, config: TrainingConfig, out: Path, *, force: bool, finish: bool
) -> state.TrainingState:
    """Put down what `go_on` needs, for a caller that holds the training of `out` (`workdir.hold`) and has checked `config`.

    Raises as `train` does, before anything is written.
    """
    get_task(data.KIND).check_data(data, config)
    if finish and not (state.state_directory(out) / state.BEST_CHECKPOINT).exists():
        raise DataError(
            f"No training of {out} has finished an epoch yet: there is no checkpoint to write a bundle from. "
            "Train first, without --finish."
        )
    return state.open_or_create(out, data, config, discard=force)


def run_training(
    out: Path, progress: Callable[[TrainingProgress], None], *, created: float, force: bool, finish: bool = False
) -> TrainedManifest:
    """Carry the training of `out` that has begun to its end, from its last checkpoint on.

    May be called again with the same arguments when the process that was at it has died, whenever that was: a bundle that
    it had written already is not written twice. Raises as `train` does.
    """
    try:
        with state.lock_rows(out) as exists:
            work = state.load(out) if exists else None
            manifest = _find_written(out, work, int(created))
            if manifest is None:
                if work is None:
                    raise DataError(f"The training of {out} was taken away while it was at work. Train again.")
                carry_on = get_task(work.data.KIND).resume
                manifest = carry_on(work, out, progress, created=int(created), force=force, finish=finish)
            if work is not None:
                work.remove()
            return manifest
    except KeyboardInterrupt:
        directory = state.state_directory(out)
        raise TrainingInterrupted(directory, has_checkpoint=(directory / state.BEST_CHECKPOINT).exists()) from None


def _find_written(out: Path, work: state.TrainingState | None, created: int) -> TrainedManifest | None:
    """The bundle of this very training, if it has been written."""
    try:
        manifest = read_trained_manifest(out)
    except BundleError:
        return None
    record = manifest.training
    matches = work is None or (dict(record.config), record.data_sha256) == (work.config, work.data.data_sha256)
    return manifest if record.created == created and matches else None


def check_config(config: TrainingConfig) -> None:
    """Refuse options that make no sense.

    Raises:
        DataError: naming the option.
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
        raise DataError("validation and test must be shares above 0 that leave something to train on.")
    levels = config.levels
    valid, maximum = all(0 < level < 1 for level in levels), MAX_SIZES["levels"]
    if not valid or list(levels) != sorted(set(levels)) or 0.5 not in levels or len(levels) > maximum:
        raise DataError(
            f"--levels must be at most {maximum} increasing probabilities between 0 and 1 with 0.5 among them, not "
            f"{', '.join(f'{level:g}' for level in levels)}."
        )


def _option_name(name: str) -> str:
    return f"--{name.removeprefix('attention_').replace('_', '-')}"
