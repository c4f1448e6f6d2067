"""The history of a fleet on the time grid, split by time, and the windows that a training run may use.

A window at *origin* `o` has its encoder in the ticks `.. o` and its decoder in `o + 1 .. o + H`. The ticks are split
into train | validation | test with `H` unused ticks between them. Gaps are treated as in service: a value is carried
forward for up to `max_gap` ticks, and a longer gap in any metric ends the history before it.

Invariant: a window of any server is completely inside one part. So no tick that is scored was learned from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.fleet.base import Floats
from models.fleet.config import FleetTrainingConfig
from models.fleet.manifest import ModelMetric
from models.training.config import FLEET
from models.training.data import Indices, Part, Split, TrainingRows, cut_rows

MAX_MISSING = 0.5  # share of a window's encoder or decoder that was not observed; windows with more are not used


@dataclass(frozen=True, eq=False, kw_only=True)
class FleetData(TrainingRows):
    """`S` servers, `T` ticks on the grid, `M` metrics.

    first:   tick of the first column: its time is `first * step`, in unix seconds
    values:  float32 `[S, T, M]`, in the metrics' units, NaN where nothing was observed
    max_gap: ticks for which a value is carried forward in service
    """

    KIND: ClassVar[str] = FLEET
    ARRAYS: ClassVar[tuple[str, ...]] = ("values",)

    servers: tuple[str, ...]
    profiles: tuple[str, ...]
    metrics: tuple[ModelMetric, ...]
    first: int
    values: Floats
    max_gap: int

    @property
    def ticks(self) -> int:
        """The number of ticks."""
        return int(self.values.shape[1])

    @property
    def count(self) -> int:
        """The number of rows of all servers."""
        return self.ticks * len(self.servers)

    def interval(self, start: int, stop: int) -> tuple[int, int]:
        """See `TrainingRows.interval`."""
        return (self.first + start) * self.step, (self.first + stop) * self.step

    def to_metadata(self) -> dict[str, object]:
        """See `TrainingRows.to_metadata`."""
        return {**super().to_metadata(), "metrics": [vars(metric) for metric in self.metrics]}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], arrays: Mapping[str, Any]) -> Self:
        """See `TrainingRows.from_metadata`."""
        metrics = [ModelMetric(**metric) for metric in metadata["metrics"]]
        return super().from_metadata({**metadata, "metrics": metrics}, arrays)


@dataclass(frozen=True, eq=False)
class FleetPart(Part):
    """A part of the ticks, counted from the first; `windows` are `server * T + origin`.

    runs: int64 `[N]`, number of usable steps of each encoder
    """

    runs: Indices

    def spread_windows(self, count: int, length: int, ticks: int) -> tuple[Indices, Indices]:
        """Servers and origins of about `count` windows with encoders of `length`: all servers at evenly spaced origins.

        The encoders are shorter if the part has none of this length.
        """
        full = self.windows[self.runs >= min(length, int(self.runs.max()))]
        servers, origins = full // ticks, full % ticks
        servers_count = max(1, len(np.unique(servers)))
        unique_origins = np.unique(origins)
        selection = unique_origins[
            np.linspace(0, len(unique_origins) - 1, max(1, count // servers_count)).round().astype(np.int64)
        ]
        rows = np.flatnonzero(np.isin(origins, selection))
        order = rows[np.lexsort((servers[rows], origins[rows]))]
        return servers[order], origins[order]


def carry_forward(values: Floats, max_gap: int) -> Floats:
    """A copy of `[S, T, M]` with every value carried forward over up to `max_gap` missing ones."""
    filled = values.copy()
    for server in np.flatnonzero(np.isnan(values).any(axis=(1, 2))):
        part = filled[server]
        ticks = np.arange(len(part))[:, None]
        last = np.maximum.accumulate(np.where(np.isnan(part), -1, ticks), axis=0)
        within_gap = (last >= 0) & (ticks - last <= max_gap)
        filled[server] = np.where(within_gap, np.take_along_axis(part, np.maximum(last, 0), axis=0), np.nan)
    return filled


def split(data: FleetData, filled: Floats, config: FleetTrainingConfig) -> Split[FleetPart]:
    """Split the ticks into parts; `filled` is the result of `carry_forward`.

    Raises:
        DataError: the history is too short, or gaps leave a part without a window.
    """

    def describe_shortage(needed: int) -> str:
        return (
            f"The history spans {_format_span(data.ticks * data.step)}, but the training needs at least "
            f"{_format_span(needed * data.step)}: each of three parts must contain a window of "
            f"{config.encoder_length + config.horizon} steps of {data.step} s, with a gap between parts. Wait for more "
            "history, or train with a shorter encoder (--encoder-length) or horizon (--horizon)."
        )

    bounds = cut_rows(data.ticks, 0, config, describe_shortage)
    observed = np.zeros((len(data.servers), data.ticks + 1))
    np.cumsum(np.isfinite(data.values).mean(axis=2), axis=1, out=observed[:, 1:])
    usable = np.asarray(np.isfinite(filled).all(axis=2))
    parts = [_make_part(*part, usable=usable, observed=observed, config=config) for part in bounds]
    for part in parts:
        if not len(part.windows):
            span = _format_span(data.step * (part.stop - part.start))
            raise DataError(
                f"No server has {config.encoder_minimum + config.horizon} steps without a long gap in every metric in the "
                f"{part.name} part of {span}. A model forecasts servers that report all of its metrics: "
                f"{_describe_missing(data)}. Use a longer history, or one with fewer gaps."
            )
    return Split(*parts)


def _make_part(
    name: str,
    start: int,
    stop: int,
    *,
    usable: NDArray[np.bool_],
    observed: NDArray[np.float64],
    config: FleetTrainingConfig,
) -> FleetPart:
    """The windows of all servers inside these ticks.

    `usable` `[S, T]`: whether every metric was observed or carried forward. `observed` `[S, T + 1]`: number of observed
    ticks before each tick.
    """
    ticks, horizon = np.arange(stop - start), config.horizon
    last_gap = np.maximum.accumulate(np.where(usable[:, start:stop], -1, ticks), axis=1)
    runs = np.minimum(ticks - last_gap, config.encoder_length)[:, : max(0, stop - start - horizon)]
    origins = np.arange(start, start + runs.shape[1])
    after = observed[:, origins + 1]
    before = np.take_along_axis(observed, origins + 1 - runs, axis=1)
    valid = runs >= config.encoder_minimum
    valid &= after - before >= (1 - MAX_MISSING) * runs
    valid &= observed[:, origins + 1 + horizon] - after >= (1 - MAX_MISSING) * horizon
    server, column = np.nonzero(valid)
    windows = server * usable.shape[1] + start + column
    return FleetPart(name, start, stop, windows, runs[server, column].astype(np.int64))


def _describe_missing(data: FleetData) -> str:
    """The metrics that were observed least, for a message."""
    share = np.isfinite(data.values).mean(axis=(0, 1))
    worst = np.argsort(share)[:3]
    return ", ".join(f"{data.metrics[index].name} was observed at {share[index]:.0%} of the ticks" for index in worst)


def _format_span(seconds: float) -> str:
    """A duration, for a message."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
