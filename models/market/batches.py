"""Batches of market windows for the fit, and the loss of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from models.market.dataset import MarketData
from models.market.engine import target_scale
from models.market.manifest import Scaler
from models.training.config import TrainingConfig
from models.training.data import Indices
from models.training.lightning import BaseModule, EpochSampler

MarketBatch = tuple[dict[str, torch.Tensor], tuple[torch.Tensor, None]]


class MarketWindowDataset(Dataset[MarketBatch]):
    """Batches of windows in the library's own format, each gathered at once from a few arrays.

    Equal to what `TimeSeriesDataSet` collates, except that target and center are relative to the origin (the center is
    zero): in float32 the logarithm of a price has too few digits for its differences.
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


class MarketBatchSampler(EpochSampler[list[int]]):
    """Batches of the windows at `origins` in random order."""

    def __init__(self, origins: Indices, config: TrainingConfig) -> None:
        self._origins, self._size = origins, config.batch_size
        super().__init__(len(origins), config)

    def sample(self, rng: np.random.Generator) -> Iterator[list[int]]:
        """See `EpochSampler.sample`."""
        order = rng.permutation(self._origins).tolist()
        return (order[start : start + self._size] for start in range(0, len(order), self._size))


class MarketQuantileModule(BaseModule):
    """A market network with its quantile loss and Adam."""

    def loss(self, batch: MarketBatch) -> torch.Tensor:
        """The quantile loss in units of each window's own scale: a volatile week counts no more than a calm one."""
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


def validation_batches(origins: Indices, batch_size: int) -> list[list[int]]:
    """Batches of all windows at these origins."""
    return [part.tolist() for part in np.array_split(origins, -(-len(origins) // batch_size))]
