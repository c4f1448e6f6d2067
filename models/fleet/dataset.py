"""The history of a fleet on the time grid, split by time, and the windows that a training run may use.

A window at *origin* `o` has its encoder in the ticks `.. o` and its decoder in `o + 1 .. o + H`. The ticks are split
into train | validation | test with `H` unused ticks between them. Gaps are treated as in service: a value is carried
forward for up to `max_gap` ticks, and a longer gap in any metric ends the history before it.

Invariant: a window of any server is completely inside one part. So no tick that is scored was learned from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.fleet.base import Floats, Indices
from models.fleet.manifest import ModelMetric
from models.training.task import FLEET

MAX_MISSING = 0.5  # share of a window's encoder or decoder that was not observed; windows with more are not used


@dataclass(frozen=True, eq=False)
class FleetData:
    """`S` servers, `T` ticks on the grid, `M` metrics.

    first:   tick of the first column: its time is `first * step`, in unix seconds
    values:  float32 `[S, T, M]`, in the metrics' units, NaN where nothing was observed
    max_gap: ticks for which a value is carried forward in service
    data_sha256: of the values and their metadata; source, synthetic: where they came from
    request: what the user asked for, as text; an interrupted training run is resumed for the same request only
    """

    KIND: ClassVar[str] = FLEET
    ARRAYS: ClassVar[tuple[str, ...]] = ("values",)

    servers: tuple[str, ...]
    profiles: tuple[str, ...]
    metrics: tuple[ModelMetric, ...]
    first: int
    step: int
    values: Floats
    max_gap: int
    data_sha256: str
    source: str
    synthetic: bool
    request: str = ""

    @property
    def ticks(self) -> int:
        """The number of ticks."""
        return int(self.values.shape[1])

    def to_metadata(self) -> dict[str, object]:
        """The fields that are not arrays, for JSON."""
        metadata = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in self.ARRAYS}
        return {**metadata, "metrics": [vars(metric) for metric in self.metrics]}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], arrays: Mapping[str, Any]) -> Self:
        """The data with this metadata and these arrays. Raises ValueError, KeyError or TypeError."""
        names = {name: tuple(metadata[name]) for name in ("servers", "profiles")}
        metrics = tuple(ModelMetric(**metric) for metric in metadata["metrics"])
        return cls(**{**metadata, **names, "metrics": metrics, "values": arrays["values"]})


@dataclass(frozen=True, eq=False)
class FleetPart:
    """Ticks `start .. stop - 1`, counted from the first, and the windows that are completely inside them.

    windows: int64 `[N]`, `server * T + origin`
    runs:    int64 `[N]`, number of usable steps of each encoder
    """

    name: str
    start: int
    stop: int
    windows: Indices
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


@dataclass(frozen=True, eq=False)
class FleetSplit:
    """The three parts, in time order."""

    train: FleetPart
    validation: FleetPart
    test: FleetPart


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


@dataclass(frozen=True)
class SplitOptions:
    """Shortest and longest encoder of a window, the horizon, and the shares of the validation and the test part."""

    min_length: int
    max_length: int
    horizon: int
    validation: float
    test: float


def split(data: FleetData, filled: Floats, options: SplitOptions) -> FleetSplit:
    """Split the ticks into parts; `filled` is the result of `carry_forward`.

    Raises:
        DataError: the history is too short, or gaps leave a part without a window.
    """
    sizes, horizon = _part_sizes(data, options), options.horizon
    observed = np.zeros((len(data.servers), data.ticks + 1))
    np.cumsum(np.isfinite(data.values).mean(axis=2), axis=1, out=observed[:, 1:])
    train_end = sizes[0]
    validation_end = train_end + horizon + sizes[1]
    bounds = (
        ("train", 0, train_end),
        ("validation", train_end + horizon, validation_end),
        ("test", validation_end + horizon, data.ticks),
    )
    grid = _GridMask(np.asarray(np.isfinite(filled).all(axis=2)), observed)
    parts = [_make_part(name, start, stop, grid, options) for name, start, stop in bounds]
    for part in parts:
        if not len(part.windows):
            span = _format_span(data.step * (part.stop - part.start))
            raise DataError(
                f"No server has {options.min_length + horizon} steps without a long gap in every metric in the {part.name} "
                f"part of {span}. A model forecasts servers that report all of its metrics: {_describe_missing(data)}. "
                "Use a longer history, or one with fewer gaps."
            )
    return FleetSplit(*parts)


def _part_sizes(data: FleetData, options: SplitOptions) -> list[int]:
    shares = (1 - options.validation - options.test, options.validation, options.test)
    window, between = options.max_length + options.horizon, 2 * options.horizon
    sizes = [int((data.ticks - between) * share) for share in shares]
    if min(sizes) < window:
        needed = int(np.ceil(window / min(shares))) + between + 1
        raise DataError(
            f"The history spans {_format_span(data.ticks * data.step)}, but the training needs at least "
            f"{_format_span(needed * data.step)}: each of three parts must contain a window of {window} steps of "
            f"{data.step} s, with a gap between parts. Wait for more history, or train with a shorter encoder "
            "(--encoder-length) or horizon (--horizon)."
        )
    return sizes


@dataclass(frozen=True, eq=False)
class _GridMask:
    """Which ticks windows may use.

    usable:          `[S, T]`, whether every metric was observed or carried forward
    observed_before: `[S, T + 1]`, number of observed ticks before each tick
    """

    usable: NDArray[np.bool_]
    observed_before: NDArray[np.float64]


def _make_part(name: str, start: int, stop: int, grid: _GridMask, options: SplitOptions) -> FleetPart:
    """The windows of all servers inside these ticks."""
    ticks, observed, horizon = np.arange(stop - start), grid.observed_before, options.horizon
    last_gap = np.maximum.accumulate(np.where(grid.usable[:, start:stop], -1, ticks), axis=1)
    runs = np.minimum(ticks - last_gap, options.max_length)[:, : max(0, stop - start - horizon)]
    origins = np.arange(start, start + runs.shape[1])
    after = observed[:, origins + 1]
    before = np.take_along_axis(observed, origins + 1 - runs, axis=1)
    valid = runs >= options.min_length
    valid &= after - before >= (1 - MAX_MISSING) * runs
    valid &= observed[:, origins + 1 + horizon] - after >= (1 - MAX_MISSING) * horizon
    server, column = np.nonzero(valid)
    windows = server * grid.usable.shape[1] + start + column
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
