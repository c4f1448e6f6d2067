"""Fitting a fleet's network: batches of windows of several servers, and the loss in the groups' scales.

An epoch's batches are drawn from (seed, epoch) alone. All windows of a batch have one encoder length, now and then a short
one, and some are scaled as those of a server that the model has never seen: so it learns what it will be asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from models.fit import Fitted
from models.fleet import network as library
from models.fleet.anchors import anchored
from models.fleet.base import Floats, Indices
from models.fleet.config import FleetTrainingConfig
from models.fleet.data import FleetData, FleetPart
from models.fleet.groups import Groups, transform
from models.fleet.manifest import Anchor
from models.fleet.scaling import calendar
from models.manifest import Network

WARM_UP = (
    0.05  # the share of the steps over which the learning rate rises; then it falls as a cosine, to nearly nothing
)
LAST_RATE = 0.01  # of the highest
_ALL_UNKNOWN = 1 / 3  # of the windows of unknown servers: of an unknown profile too

Batch = dict[str, Any]  # the library's `x`, and `target` [B, H, M] with NaN where nothing was observed


class Draw(NamedTuple):
    """Windows for one batch: the encoders' length, and of each its server, origin, row of the scales, and profile."""

    length: int
    servers: Indices
    origins: Indices
    rows: Indices
    profiles: Indices


@dataclass(frozen=True, eq=False)
class Which:
    """Each server's row of the scales as one that is known, and as one of which only the profile is; and its profile `[S]`.

    `default`: the row of servers of which not even that is known; they have profile 0.
    """

    own: Indices
    of_profile: Indices
    profiles: Indices
    default: int

    @classmethod
    def of(cls, data: FleetData, groups: Groups, profiles: tuple[str, ...]) -> Which:
        """`profiles`: of the manifest."""
        rows = {name: row for row, name in enumerate(groups.names)}
        of_profile = [rows[f"profile:{profile}"] for profile in data.profiles]
        own = [rows.get(f"server:{name}", row) for name, row in zip(data.servers, of_profile, strict=True)]
        known = [profiles.index(profile) for profile in data.profiles]
        tables = [np.array(one, dtype=np.int64) for one in (own, of_profile, known)]
        return cls(tables[0], tables[1], tables[2], rows["default"])


class Draws(Sampler[Draw]):
    """Random batches of a part: different ones each epoch, the same ones for the same seed and epoch."""

    def __init__(self, part: FleetPart, which: Which, ticks: int, config: FleetTrainingConfig) -> None:
        order = np.argsort(-part.runs, kind="stable")
        self._windows, self._runs = part.windows[order], -part.runs[order]
        self._which, self._ticks, self._config = which, ticks, config
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return min(self._config.batches_per_epoch, -(-len(self._windows) // self._config.batch_size))

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng((self._config.seed, self._epoch))
        for _ in range(len(self)):
            yield self._draw(rng)

    def _draw(self, rng: np.random.Generator) -> Draw:
        config, which = self._config, self._which
        short = rng.random() < config.short
        length = (
            int(rng.integers(config.encoder_minimum, config.encoder_length + 1)) if short else config.encoder_length
        )
        length = min(length, -int(self._runs[0]))
        long_enough = np.searchsorted(self._runs, -length, side="right")
        servers, origins = np.divmod(self._windows[rng.integers(0, long_enough, config.batch_size)], self._ticks)
        unknown = rng.random(config.batch_size) < config.unknown
        strange = unknown & (rng.random(config.batch_size) < _ALL_UNKNOWN)
        rows = np.where(unknown, which.of_profile[servers], which.own[servers])
        return Draw(
            length,
            servers,
            origins,
            np.where(strange, which.default, rows),
            np.where(strange, 0, which.profiles[servers]),
        )


def held_out(servers: Indices, origins: Indices, length: int, which: Which, size: int) -> list[Draw]:
    """Batches of all these windows, as of servers that are known."""
    parts = np.array_split(np.arange(len(servers)), -(-len(servers) // size))
    return [
        Draw(length, servers[part], origins[part], which.own[servers[part]], which.profiles[servers[part]])
        for part in parts
    ]


class Windows(Dataset[Batch]):
    """Batches in the library's own format, gathered at once from the transformed metrics `[S, T, M]`.

    `filled`: in the metrics' units, with missing values carried on, for the encoder; what was not observed is no target.
    """

    def __init__(
        self, data: FleetData, filled: Floats, groups: Groups, *, network: Network, cycles: tuple[str, ...],
        anchors: tuple[Anchor, ...], config: FleetTrainingConfig,
    ) -> None:  # fmt: skip
        self._filled, self._groups = transform(filled, data), groups
        self._targets = np.where(np.isfinite(data.values), self._filled, np.float32(np.nan))
        self._network, self._horizon, self._anchors = network, config.horizon, anchors
        self._calendar = calendar(cycles, data.step, np.arange(data.first, data.first + data.ticks))
        self._relative = (np.arange(config.horizon) / config.encoder_length).astype(np.float32)

    def __getitem__(self, draw: Draw) -> Batch:
        past = draw.origins[:, None] + np.arange(1 - draw.length, 1)
        ahead = draw.origins[:, None] + np.arange(1, self._horizon + 1)
        center, scale = (table[draw.rows][:, None] for table in (self._groups.center, self._groups.scale))
        seen = (self._filled[draw.servers[:, None], past] - center) / scale
        target = (self._targets[draw.servers[:, None], ahead] - center) / scale
        target -= anchored(seen, self._anchors, self._horizon).swapaxes(1, 2)
        relative = np.broadcast_to(self._relative, (len(draw.origins), self._horizon))[..., None]
        x = library.inputs(
            self._network,
            np.concatenate([self._calendar[past], seen], axis=-1),
            np.concatenate([self._calendar[ahead], relative], axis=-1),
            draw.profiles,
        )
        return {"x": x, "target": torch.from_numpy(target)}


class FleetFit(Fitted):
    """A fleet's network with the pinball loss of all its metrics, and Adam with a rate that rises, then falls to the end.

    `weights` `[M]`: how much each metric counts. `steps`: of the whole training.
    """

    def __init__(self, network: Any, config: FleetTrainingConfig, weights: Floats, steps: int) -> None:
        super().__init__(network, config)
        self._steps = steps
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        self.register_buffer("weights", torch.from_numpy(weights), persistent=False)

    def loss(self, batch: Batch) -> torch.Tensor:
        """The mean over what was observed, in the groups' scales."""
        outputs = self.network(batch["x"])["prediction"]
        quantiles = torch.stack(list(outputs), dim=2) if isinstance(outputs, list | tuple) else outputs[:, :, None]
        target, levels = batch["target"][..., None], self.get_buffer("levels")
        there = torch.isfinite(target)
        error = torch.where(there, target, quantiles.detach()) - quantiles
        losses = torch.maximum(levels * error, (levels - 1) * error).mean(dim=-1) * self.get_buffer("weights")
        return losses.sum() / there.sum().clamp(min=1)

    def size(self, batch: Batch) -> int:
        return len(batch["target"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """The learning rate at a step, as a share of the highest."""
        warm = max(1.0, WARM_UP * self._steps)
        if step < warm:
            return (step + 1) / (warm + 1)
        done = min(1.0, (step - warm) / max(1.0, self._steps - warm))
        return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))


def loaders(windows: Windows, draws: Draws, checks: list[Draw]) -> tuple[DataLoader[Batch], DataLoader[Batch]]:
    """The batches to learn from and those to validate with, each made by one gather."""
    return DataLoader(windows, batch_size=None, sampler=draws), DataLoader(windows, batch_size=None, sampler=checks)
