"""From rows to a checked bundle, of whichever kind: options checked, one training at an output, gone on with after any end.

What is fitted, and how it is compared and exported, is the kind's (`models.market`, `models.fleet.training`). Torch and
Lightning are imported by `go_on` only, so that the command line can begin a training without them and leave the rest to a
process that may be replaced: what the two share is on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from models import workdir
from models.config import TrainingConfig
from models.errors import BundleError, DataError, TrainingInterrupted
from models.kinds import Made, Rows, kind_of, read_made
from models.manifest import MOST
from models.progress import Progress

LEAST = {  # of each size; the most is what a manifest may name, or what fits 32 bits
    "encoder_length": 2, "horizon": 1, "hidden_size": 1, "hidden_continuous_size": 1, "attention_heads": 1,
    "lstm_layers": 1, "epochs": 1, "patience": 1, "batch_size": 1, "batches_per_epoch": 1, "scored_windows": 1, "seed": 0,
}  # fmt: skip


def train(
    data: Rows,
    config: TrainingConfig,
    out: Path,
    progress: Callable[[Progress], None],
    *,
    created: float,
    force: bool = False,
    finish: bool = False,
) -> Made:
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
    with workdir.hold(out):
        begin(data, config, out, force=force, finish=finish)
        return go_on(out, progress, created=created, force=force, finish=finish)


def begin(data: Rows, config: TrainingConfig, out: Path, *, force: bool, finish: bool) -> workdir.Work:
    """Put down what `go_on` needs, for a caller that holds the training of `out` (`workdir.hold`) and has checked `config`.

    Raises as `train` does, before anything is written.
    """
    kind_of(data.KIND).prepare(data, config)
    if finish and not (workdir.place(out) / workdir.BEST).exists():
        raise DataError(
            f"No training of {out} has finished an epoch yet: there is no checkpoint to write a bundle from. "
            "Train first, without --finish."
        )
    return workdir.begin(out, data, config, anew=force)


def go_on(
    out: Path, progress: Callable[[Progress], None], *, created: float, force: bool, finish: bool = False
) -> Made:
    """Carry the training of `out` that has begun to its end, from its last checkpoint on.

    May be called again with the same arguments when the process that was at it has died, whenever that was: a bundle that
    it had written already is not written twice. Raises as `train` does.
    """
    try:
        with workdir.alone(out) as begun:
            work = workdir.find(out) if begun else None
            manifest = _written(out, work, int(created))
            if manifest is None:
                if work is None:
                    raise DataError(f"The training of {out} was taken away while it was at work. Train again.")
                carry_on = kind_of(work.data.KIND).carry_on
                manifest = carry_on(work, out, progress, created=int(created), force=force, finish=finish)
            if work is not None:
                work.remove()
            return manifest
    except KeyboardInterrupt:
        place = workdir.place(out)
        raise TrainingInterrupted(place, kept=(place / workdir.BEST).exists()) from None


def _written(out: Path, work: workdir.Work | None, created: int) -> Made | None:
    """The bundle of this very training, if it has been written."""
    try:
        manifest = read_made(out)
    except BundleError:
        return None
    made = manifest.training
    same = work is None or (dict(made.config), made.data_sha256) == (work.config, work.data.data_sha256)
    return manifest if made.created == created and same else None


def check_config(config: TrainingConfig) -> None:
    """Refuse options that make no sense.

    Raises:
        DataError: naming the option.
    """
    kind_of(config.kind).check(config)
    for name, least in LEAST.items():
        value, most = getattr(config, name), MOST.get(name, 2**32 - 1)
        if not least <= value <= most:
            raise DataError(f"{_option(name)} must be from {least} to {most}, not {value}.")
    if config.attention_heads > config.hidden_size:
        raise DataError(f"{config.attention_heads} attention heads need a hidden size of at least as many.")
    if not 0 <= config.dropout < 1:
        raise DataError(f"--dropout must be from 0 to below 1, not {config.dropout}.")
    if not 0 < config.learning_rate <= 1:
        raise DataError(f"--learning-rate must be above 0 and at most 1, not {config.learning_rate}.")
    if not min(config.validation, config.test, 1 - config.validation - config.test) > 0:
        raise DataError("validation and test must be shares above 0 that leave something to train on.")
    levels = config.levels
    inside, most = all(0 < level < 1 for level in levels), MOST["levels"]
    if not inside or list(levels) != sorted(set(levels)) or 0.5 not in levels or len(levels) > most:
        raise DataError(
            f"--levels must be at most {most} increasing probabilities between 0 and 1 with 0.5 among them, not "
            f"{', '.join(f'{level:g}' for level in levels)}."
        )


def _option(name: str) -> str:
    return f"--{name.removeprefix('attention_').replace('_', '-')}"
