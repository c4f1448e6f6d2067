"""Batches of fleet windows for the fit, and the loss of a batch in the groups' scales.

Invariant: the batches of an epoch depend on (seed, epoch) alone. All windows of a batch have the same encoder length.
Some batches have a short one, and some windows are scaled like those of an unknown server, so that the network learns
both cases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from models.fleet.anchors import anchor_forecast
from models.fleet.base import Floats, Indices
from models.fleet.config import FleetTrainingConfig
from models.fleet.dataset import FleetData, FleetPart
from models.fleet.manifest import Anchor
from models.fleet.scaling import GroupScales, MetricTransform, calendar
from models.tft.config import TftConfig
from models.tft.torch_model import make_inputs, stack_targets
from models.training.lightning import BaseModule, EpochSampler

WARM_UP_SHARE = 0.05  # of the steps: the learning rate rises; afterwards it falls as a cosine
FINAL_RATE = 0.01  # of the highest learning rate
_UNKNOWN_PROFILE_SHARE = 1 / 3  # of the windows of unknown servers: their profile is unknown too

FleetBatch = dict[str, Any]  # the library's `x`, and `target` [B, H, M] with NaN where nothing was observed


class BatchSpec(NamedTuple):
    """The windows of one batch: their encoder length, and server, origin, row of the scales and profile of each."""

    length: int
    servers: Indices
    origins: Indices
    rows: Indices
    profiles: Indices


@dataclass(frozen=True, eq=False)
class GroupIndex:
    """Rows of the scales for each server `[S]`, and its profile `[S]`.

    server_rows:  of the server's own scale, or its profile's if it has none
    profile_rows: of its profile's scale, for a server that is treated as unknown
    default_row:  of servers with an unknown profile; their profile is 0
    """

    server_rows: Indices
    profile_rows: Indices
    profiles: Indices
    default_row: int

    @classmethod
    def build(cls, data: FleetData, groups: GroupScales, profiles: tuple[str, ...]) -> GroupIndex:
        """Look up the rows by name; `profiles` is the list of the manifest."""
        rows = {name: row for row, name in enumerate(groups.names)}
        profile_rows = [rows[f"profile:{profile}"] for profile in data.profiles]
        server_rows = [rows.get(f"server:{name}", row) for name, row in zip(data.servers, profile_rows, strict=True)]
        profile_codes = [profiles.index(profile) for profile in data.profiles]
        tables = [np.array(column, dtype=np.int64) for column in (server_rows, profile_rows, profile_codes)]
        return cls(tables[0], tables[1], tables[2], rows["default"])


class FleetBatchSampler(EpochSampler[BatchSpec]):
    """Random batches of a part; they depend on the seed and the epoch alone."""

    def __init__(self, part: FleetPart, group_index: GroupIndex, ticks: int, config: FleetTrainingConfig) -> None:
        order = np.argsort(-part.runs, kind="stable")
        self._windows, self._runs = part.windows[order], -part.runs[order]
        self._group_index, self._ticks, self._config = group_index, ticks, config
        super().__init__(len(part.windows), config)

    def sample(self, rng: np.random.Generator) -> Iterator[BatchSpec]:
        """See `EpochSampler.sample`."""
        while True:
            yield self._draw(rng)

    def _draw(self, rng: np.random.Generator) -> BatchSpec:
        config, group_index = self._config, self._group_index
        short = rng.random() < config.short
        length = (
            int(rng.integers(config.encoder_minimum, config.encoder_length + 1)) if short else config.encoder_length
        )
        length = min(length, -int(self._runs[0]))
        long_enough = np.searchsorted(self._runs, -length, side="right")
        servers, origins = np.divmod(self._windows[rng.integers(0, long_enough, config.batch_size)], self._ticks)
        unknown = rng.random(config.batch_size) < config.unknown
        unknown_profile = unknown & (rng.random(config.batch_size) < _UNKNOWN_PROFILE_SHARE)
        rows = np.where(unknown, group_index.profile_rows[servers], group_index.server_rows[servers])
        return BatchSpec(
            length,
            servers,
            origins,
            np.where(unknown_profile, group_index.default_row, rows),
            np.where(unknown_profile, 0, group_index.profiles[servers]),
        )


def validation_batches(
    servers: Indices, origins: Indices, length: int, group_index: GroupIndex, batch_size: int
) -> list[BatchSpec]:
    """Batches of all these windows, each with its server's own scale."""
    parts = np.array_split(np.arange(len(servers)), -(-len(servers) // batch_size))
    return [
        BatchSpec(
            length,
            servers[part],
            origins[part],
            group_index.server_rows[servers[part]],
            group_index.profiles[servers[part]],
        )
        for part in parts
    ]


class FleetWindowDataset(Dataset[FleetBatch]):
    """Batches in the library's own format, each gathered at once from the transformed metrics `[S, T, M]`.

    `filled`: in the metrics' units, with missing values carried forward, for the encoder. Only observed values are
    targets.
    """

    def __init__(
        self, data: FleetData, filled: Floats, groups: GroupScales, *, network: TftConfig, cycles: tuple[str, ...],
        anchors: tuple[Anchor, ...], config: FleetTrainingConfig,
    ) -> None:  # fmt: skip
        self._filled, self._groups = MetricTransform(data.metrics)(filled), groups
        self._targets = np.where(np.isfinite(data.values), self._filled, np.float32(np.nan))
        self._network, self._horizon, self._anchors = network, config.horizon, anchors
        self._calendar = calendar(cycles, data.step, np.arange(data.first, data.first + data.ticks))
        self._relative = (np.arange(config.horizon) / config.encoder_length).astype(np.float32)

    def __getitem__(self, spec: BatchSpec) -> FleetBatch:
        past = spec.origins[:, None] + np.arange(1 - spec.length, 1)
        ahead = spec.origins[:, None] + np.arange(1, self._horizon + 1)
        center, scale = (table[spec.rows][:, None] for table in (self._groups.center, self._groups.scale))
        past_values = (self._filled[spec.servers[:, None], past] - center) / scale
        target = (self._targets[spec.servers[:, None], ahead] - center) / scale
        target -= anchor_forecast(past_values, self._anchors, self._horizon).swapaxes(1, 2)
        relative = np.broadcast_to(self._relative, (len(spec.origins), self._horizon))[..., None]
        x = make_inputs(
            self._network,
            np.concatenate([self._calendar[past], past_values], axis=-1),
            np.concatenate([self._calendar[ahead], relative], axis=-1),
            spec.profiles,
        )
        return {"x": x, "target": torch.from_numpy(target)}


class FleetQuantileModule(BaseModule):
    """A fleet network with the pinball loss of all its metrics, and Adam with a learning rate that rises, then falls.

    `weights` `[M]`: of the metrics in the loss. `steps`: of the whole training.
    """

    def __init__(self, network: Any, config: FleetTrainingConfig, weights: Floats, steps: int) -> None:
        super().__init__(network, config)
        self._steps = steps
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        self.register_buffer("weights", torch.from_numpy(weights), persistent=False)

    def loss(self, batch: FleetBatch) -> torch.Tensor:
        """The mean loss over observed values, in the groups' scales."""
        quantiles = stack_targets(self.network(batch["x"])["prediction"])
        target, levels = batch["target"][..., None], self.get_buffer("levels")
        observed = torch.isfinite(target)
        error = torch.where(observed, target, quantiles.detach()) - quantiles
        losses = torch.maximum(levels * error, (levels - 1) * error).mean(dim=-1) * self.get_buffer("weights")
        return losses.sum() / observed.sum().clamp(min=1)

    def count_windows(self, batch: FleetBatch) -> int:
        return len(batch["target"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rate_factor(self, step: int) -> float:
        """The learning rate at a step, as a share of the highest."""
        warm_up = max(1.0, WARM_UP_SHARE * self._steps)
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        fraction = min(1.0, (step - warm_up) / max(1.0, self._steps - warm_up))
        return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * fraction))
