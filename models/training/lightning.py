"""Fit a network with Lightning: the training step, early stopping, checkpoints without pickled objects.

Invariant: a training run that was interrupted and continued gives exactly the weights of one that was not. So an epoch's
batches depend on (seed, epoch) alone, and dropout is seeded again in every epoch. Checkpoints hold tensors and plain
values only, are read with `weights_only=True`, and are written whole or not at all: the process may be killed at any
time.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError  # torch raises it for objects in a checkpoint; nothing is unpickled here
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, Sampler

from models.errors import DataError
from models.tft.torch_model import quiet_library
from models.training.config import TrainingConfig
from models.training.state import BEST_CHECKPOINT, LAST_CHECKPOINT

BatchT = TypeVar("BatchT")


class EpochSampler(Sampler[BatchT]):
    """Random batches, at most `config.batches_per_epoch` in each epoch; they depend on the seed and the epoch alone.

    A subclass draws the batches. `windows`: how many there are to draw from.
    """

    def __init__(self, windows: int, config: TrainingConfig) -> None:
        self._batches = min(config.batches_per_epoch, -(-windows // config.batch_size))
        self._seed, self._epoch = config.seed, 0

    def sample(self, rng: np.random.Generator) -> Iterator[BatchT]:
        """At least `len(self)` batches of an epoch."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[BatchT]:
        # A generator: it reads the epoch when the first batch is drawn, which is after `set_epoch`.
        yield from islice(self.sample(np.random.default_rng((self._seed, self._epoch))), self._batches)


class BaseModule(LightningModule):
    """A network of the library while it is fitted. It saves no hyperparameters, so checkpoints hold plain values.

    A subclass gives the loss of a batch, the number of its windows, and the optimizer.
    """

    def __init__(self, network: Any, config: TrainingConfig) -> None:
        super().__init__()
        self.network = network
        self.seed, self.learning_rate = config.seed, config.learning_rate

    def loss(self, batch: Any) -> torch.Tensor:
        """The mean loss of a batch."""
        raise NotImplementedError

    def count_windows(self, batch: Any) -> int:
        """The number of windows in a batch."""
        raise NotImplementedError

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self.seed * 1_000_003 + self.current_epoch)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val_loss", self.loss(batch), on_epoch=True, batch_size=self.count_windows(batch))


class FitReporter(Callback):
    """Reports progress after every batch, every batch of a validation, and every validation."""

    def __init__(self, report: Callable[..., None]) -> None:
        self._report = report

    def on_train_batch_end(self, trainer: Trainer, _module: Any, outputs: Any, _batch: Any, batch_idx: int) -> None:
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        self._report(trainer.current_epoch + 1, batch_idx + 1, loss=float(loss))

    def on_validation_batch_end(
        self, trainer: Trainer, _module: Any, _outputs: Any, _batch: Any, batch_idx: int, _loader: int = 0
    ) -> None:
        self._report(trainer.current_epoch + 1, int(trainer.num_training_batches), validation_batch=batch_idx + 1)

    def on_validation_end(self, trainer: Trainer, _module: Any) -> None:
        batches, validation_batches = int(trainer.num_training_batches), int(trainer.num_val_batches[0])
        loss = float(trainer.callback_metrics["val_loss"])
        self._report(trainer.current_epoch + 1, batches, validation_batch=validation_batches, validation_loss=loss)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file, syncs it to disk, and renames it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        content, target_path = BytesIO(), Path(path)
        torch.save(checkpoint, content)
        staging = target_path.with_name(f"{target_path.name}.new")
        with staging.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        staging.replace(target_path)


@dataclass(frozen=True, eq=False)
class FitInput:
    """What a network is fitted with: `windows` gathers a batch from its specification.

    `sampler` draws the specifications of the train batches; `validation` has those of the validation batches.
    """

    module: BaseModule
    windows: Dataset[Any]
    sampler: EpochSampler[Any]
    validation: list[Any]


def fit_network(fit: FitInput, config: TrainingConfig, directory: Path, report: Callable[..., None]) -> bool:
    """Fit a network until it stops improving, from the last checkpoint in `directory` if there is one.

    `report` is called as `ProgressMeter.report_fit`. Leaves `best.ckpt` and `last.ckpt` in `directory`. Returns False when
    it was interrupted, True otherwise.

    Raises:
        DataError: the last checkpoint is damaged, or the accelerator is missing.
    """
    last = directory / LAST_CHECKPOINT
    if last.exists():
        _read_checkpoint(last)
    callbacks: list[Callback] = [
        ModelCheckpoint(
            dirpath=directory, filename="best", monitor="val_loss", save_last=True, save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
        EarlyStopping(monitor="val_loss", patience=config.patience, check_on_train_epoch_end=True),
        FitReporter(report),
    ]  # fmt: skip
    with quiet_library(), _quiet_lightning():
        try:
            trainer = Trainer(
                accelerator=config.accelerator, devices=1, max_epochs=config.epochs, callbacks=callbacks, logger=False,
                enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0, num_sanity_val_steps=0,
                default_root_dir=directory, plugins=AtomicCheckpointIO(),
            )  # fmt: skip
        except MisconfigurationException as error:
            raise DataError(
                f"The accelerator {config.accelerator!r} cannot be used here ({error}). Use auto or cpu."
            ) from None
        train, validation = (
            DataLoader(fit.windows, batch_size=None, sampler=batches) for batches in (fit.sampler, fit.validation)
        )
        handler = signal.getsignal(signal.SIGINT)
        try:
            checkpoint = last if last.exists() else None
            trainer.fit(fit.module, train, validation, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # on Ctrl-C, Lightning would end the process and ignore further signals
            return False
        finally:
            signal.signal(signal.SIGINT, handler)
        return True


def load_best_weights(network: Any, directory: Path) -> None:
    """Load the weights of the best checkpoint into `network`, on the CPU.

    Raises:
        DataError: the checkpoint is damaged.
    """
    prefix = "network."
    state = {
        name.removeprefix(prefix): value
        for name, value in _read_checkpoint(directory / BEST_CHECKPOINT)["state_dict"].items()
    }
    network.cpu().load_state_dict(state)


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint. Only tensors and plain values are accepted."""
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, ValueError) as error:
        raise DataError(
            f"The checkpoint {path} is damaged. Start again with --force, or remove {path.parent}."
        ) from error
    return checkpoint


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning logs which devices it uses. The caller does not need that."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
