"""Fitting the network with Lightning: batches, the training step, checkpoints that hold no pickled object.

An epoch is a fixed number of batches drawn from (seed, epoch) alone, and dropout is reseeded with every epoch: a training
that was interrupted and continued gives the very weights it would have given in one go. Checkpoints hold tensors and
plain values only, are read with `weights_only=True`, and are written whole or not at all: the process may be killed at any
time.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError  # what torch raises for objects in a checkpoint; nothing is unpickled with it
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, Sampler

from models.errors import DataError
from models.market.dataset import Indices, MarketData
from models.market.engine import target_scale
from models.market.manifest import Scaler
from models.tft.torch_model import quiet_library
from models.training.state import BEST_CHECKPOINT, LAST_CHECKPOINT

if TYPE_CHECKING:
    from models.training.config import TrainingConfig

MarketBatch = tuple[dict[str, torch.Tensor], tuple[torch.Tensor, None]]


class MarketWindowDataset(Dataset[MarketBatch]):
    """Batches of windows in the library's own format, gathered at once from a few arrays.

    Equal to what `TimeSeriesDataSet` collates, except that target and center are given as seen from the origin (the
    center is zero): in float32 the logarithm of a price has too few digits for its differences.
    """

    def __init__(self, data: MarketData, scalers: Mapping[str, Scaler], length: int, horizon: int) -> None:
        self._target = data.target
        self._length, self._horizon = length, horizon
        scaled = [
            (column - scalers[name].center) / scalers[name].scale
            for names, matrix in ((data.known_names, data.known), (data.past_names, data.past))
            for name, column in zip(names, matrix.T, strict=True)
        ]
        known_count = len(data.known_names)
        zeros = np.zeros(len(data))  # for the relative time and the target, which differ from window to window
        self._reals = np.stack([*scaled[:known_count], zeros, *scaled[known_count:], zeros], axis=1).astype(np.float32)
        self._relative_column = known_count
        self._offsets = np.arange(1 - length, horizon + 1)
        self._relative_time = ((self._offsets - 1) / length).astype(np.float32)

    def __getitem__(self, origins: Sequence[int]) -> MarketBatch:
        """The library's `x` and `(y, weight)` of the windows at `origins`."""
        indices, length, batch = np.asarray(origins, dtype=np.int64), self._length, len(origins)
        rows = indices[:, None] + self._offsets
        returns = self._target[rows] - self._target[indices][:, None]
        scale = target_scale(returns[:, :length], self._horizon)
        reals = self._reals[rows]
        reals[:, :, self._relative_column] = self._relative_time
        reals[:, :, -1] = returns / scale[:, None]
        cont, target = torch.from_numpy(reals), torch.from_numpy(returns.astype(np.float32))
        x = {
            "encoder_cat": torch.zeros(batch, length, 0, dtype=torch.long),
            "encoder_cont": cont[:, :length],
            "encoder_target": target[:, :length],
            "encoder_lengths": torch.full((batch,), length),
            "decoder_cat": torch.zeros(batch, self._horizon, 0, dtype=torch.long),
            "decoder_cont": cont[:, length:],
            "decoder_target": target[:, length:],
            "decoder_lengths": torch.full((batch,), self._horizon),
            "decoder_time_idx": torch.from_numpy(rows[:, length:]),
            "groups": torch.zeros(batch, 1, dtype=torch.long),
            "target_scale": torch.from_numpy(np.stack([np.zeros(batch), scale], axis=1).astype(np.float32)),
        }
        return x, (target[:, length:], None)


class EpochSampler(Sampler[list[int]]):
    """`batches` random batches an epoch, different ones each epoch, the same ones for the same seed and epoch."""

    def __init__(self, origins: Indices, batch_size: int, batches: int, seed: int) -> None:
        self._origins, self._size, self._seed = origins, batch_size, seed
        self._batches = min(batches, -(-len(origins) // batch_size))
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self._seed, self._epoch)).permutation(self._origins)
        for index in range(self._batches):
            yield order[index * self._size : (index + 1) * self._size].tolist()


class BaseModule(LightningModule):
    """A network of the library while it is fitted. Has no hyperparameters to save, so checkpoints are plain.

    A subclass gives the loss of a batch, how many windows it has, and the optimizer.
    """

    def __init__(self, network: Any, config: TrainingConfig) -> None:
        super().__init__()
        self.network = network
        self.seed, self.learning_rate = config.seed, config.learning_rate

    def loss(self, batch: Any) -> torch.Tensor:
        """The mean loss of a batch."""
        raise NotImplementedError

    def count_windows(self, batch: Any) -> int:
        """How many windows a batch has."""
        raise NotImplementedError

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self.seed * 1_000_003 + self.current_epoch)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val_loss", self.loss(batch), on_epoch=True, batch_size=self.count_windows(batch))


class QuantileModule(BaseModule):
    """A market's network with its quantile loss and Adam."""

    def loss(self, batch: MarketBatch) -> torch.Tensor:
        """The quantile loss in units of each window's own scale: a wild week counts no more than a calm one."""
        x, (target, _) = batch
        losses = self.network.loss.loss(self.network(x)["prediction"], target)
        loss: torch.Tensor = (losses / x["target_scale"][:, 1, None, None]).mean()
        return loss

    def count_windows(self, batch: MarketBatch) -> int:
        return len(batch[1][0])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class FitReporter(Callback):
    """Tells how far the fit is, after every batch, every batch of a validation, and every validation."""

    def __init__(self, report: Callable[..., None]) -> None:
        self._report = report

    def on_train_batch_end(self, trainer: Trainer, _module: Any, outputs: Any, _batch: Any, batch_idx: int) -> None:
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        self._report(trainer.current_epoch + 1, batch_idx + 1, loss=float(loss))

    def on_validation_batch_end(
        self, trainer: Trainer, _module: Any, _outputs: Any, _batch: Any, batch_idx: int, _loader: int = 0
    ) -> None:
        self._report(trainer.current_epoch + 1, int(trainer.num_training_batches), checked=batch_idx + 1)

    def on_validation_end(self, trainer: Trainer, _module: Any) -> None:
        batches, checks = int(trainer.num_training_batches), int(trainer.num_val_batches[0])
        loss = float(trainer.callback_metrics["val_loss"])
        self._report(trainer.current_epoch + 1, batches, checked=checks, validation=loss)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, has it on the disk, and moves it there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        content, target_path = BytesIO(), Path(path)
        torch.save(checkpoint, content)
        staging = target_path.with_name(f"{target_path.name}.new")
        with staging.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        staging.replace(target_path)


def make_loaders(
    windows: MarketWindowDataset, train: Indices, validation: Indices, config: TrainingConfig
) -> tuple[DataLoader[MarketBatch], DataLoader[MarketBatch]]:
    """The batches to learn from and those to validate with, each made by one gather."""
    sampler = EpochSampler(train, config.batch_size, config.batches_per_epoch, config.seed)
    held_out = [part.tolist() for part in np.array_split(validation, -(-len(validation) // config.batch_size))]
    return (
        DataLoader(windows, batch_size=None, sampler=sampler),
        DataLoader(windows, batch_size=None, sampler=held_out),
    )


def fit_module(
    module: BaseModule,
    batches: tuple[DataLoader[Any], DataLoader[Any]],
    config: TrainingConfig,
    directory: Path,
    report: Callable[..., None],
) -> bool:
    """Fit a network until it stops getting better, from the last checkpoint in `work` if there is one.

    Leaves `best.ckpt` and `last.ckpt` in `work`. `tell` is called as `models.progress.Meter.fitted` is. Returns whether it
    ran to its end; False: it was interrupted.

    Raises:
        DataError: the last checkpoint is damaged, or the accelerator is not there.
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
        return _run_trainer(trainer, module, batches, last if last.exists() else None)


def _run_trainer(
    trainer: Trainer, module: BaseModule, batches: tuple[DataLoader[Any], DataLoader[Any]], checkpoint: Path | None
) -> bool:
    """Lightning answers Ctrl-C by ignoring further ones and ending the process; here it ends the training only."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, *batches, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        return False
    finally:
        signal.signal(signal.SIGINT, handler)
    return True


def load_best_weights(network: Any, directory: Path) -> None:
    """Load the best weights so far into `network`, on the CPU.

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
    """A checkpoint, of which nothing but tensors and plain values is accepted."""
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, ValueError) as error:
        raise DataError(f"The checkpoint {path} is damaged. Start anew (--force), or remove {path.parent}.") from error
    return checkpoint


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning tells on its loggers which devices it found; that is not for whoever called us."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
