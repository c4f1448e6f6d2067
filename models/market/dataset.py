"""The rows of a market training run, split by time, and the windows that a training run may use.

A window at *origin* row `o` has its encoder in the rows `o - L + 1 .. o` and its decoder in `o + 1 .. o + H`. The
rows are split into train | validation | test with `H` unused rows between them.

Invariant: a window is completely inside one part, and never crosses a gap. So no row that is scored was learned from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from models.base import FloatArray, ModelInput
from models.errors import DataError
from models.market.engine import MIN_SCALE, target_scale
from models.training.task import MARKET

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MarketData:
    """`n` rows of one series, in time order; a row that is not finite, or a jump in time, is a gap.

    time:   int64 `[n]`, unix seconds at which each row opens, strictly increasing
    target: float64 `[n]`, natural logarithm of the closing price
    past:   float64 `[n, P]`, features known up to the row; `past_names` in order
    known:  float64 `[n, K]`, features known for the future too; `known_names` in order
    step:   seconds between rows
    data_sha256: of the candles; source, synthetic: where they came from
    request: what the user asked for, as text; an interrupted training run is resumed for the same request only
    """

    KIND: ClassVar[str] = MARKET
    ARRAYS: ClassVar[tuple[str, ...]] = ("time", "target", "past", "known")

    time: NDArray[np.int64]
    target: FloatArray
    past: FloatArray
    known: FloatArray
    past_names: tuple[str, ...]
    known_names: tuple[str, ...]
    step: int
    data_sha256: str
    source: str
    synthetic: bool
    request: str = ""

    def __len__(self) -> int:
        return len(self.time)

    def to_metadata(self) -> dict[str, object]:
        """The fields that are not arrays, for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in self.ARRAYS}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], arrays: Mapping[str, Any]) -> Self:
        """The rows with this metadata and these arrays. Raises ValueError, KeyError or TypeError."""
        names = {name: tuple(metadata[name]) for name in ("past_names", "known_names")}
        return cls(**{**metadata, **names, **arrays})

    def window(self, origin: int, length: int, horizon: int) -> ModelInput:
        """The input of a model at `origin`."""
        first = origin - length + 1
        return ModelInput(
            end=int(self.time[origin]) + self.step,
            step=self.step,
            target=self.target[first : origin + 1],
            past=self.past[first : origin + 1],
            known=self.known[first : origin + horizon + 1],
        )

    def outcomes(self, origins: Indices, horizon: int) -> FloatArray:
        """The observed log-returns `[N, H]` after each origin."""
        future = origins[:, None] + np.arange(1, horizon + 1)
        return np.asarray(self.target[future] - self.target[origins][:, None])


@dataclass(frozen=True, eq=False)
class MarketPart:
    """Rows `start .. stop - 1`, and the origins of the windows that are completely inside them."""

    name: str
    start: int
    stop: int
    origins: Indices

    def thin(self, count: int) -> Indices:
        """At most `count` origins, evenly spaced; neighboring windows overlap almost completely."""
        if len(self.origins) <= count:
            return self.origins
        return self.origins[np.linspace(0, len(self.origins) - 1, count).round().astype(np.int64)]


@dataclass(frozen=True, eq=False)
class MarketSplit:
    """The three parts, in time order."""

    train: MarketPart
    validation: MarketPart
    test: MarketPart


def split(data: MarketData, length: int, horizon: int, validation: float, test: float) -> MarketSplit:
    """Split the rows into parts; `validation` and `test` are shares of the rows, the rest is train.

    Raises:
        DataError: there are too few rows, or gaps leave a part without a window.
    """
    usable = _run_lengths(data)
    first = int(np.argmax(usable > 0)) if (usable > 0).any() else len(data)
    rows = len(data) - first - 2 * horizon
    sizes = [int(rows * share) for share in (1 - validation - test, validation, test)]
    window = length + horizon
    if min(sizes) < window:
        smallest = min(1 - validation - test, validation, test)
        needed = int(np.ceil(window / smallest)) + 2 * horizon + first + 1
        raise DataError(
            f"Training needs at least {needed} candles for an encoder of {length} and a horizon of {horizon} "
            f"(each of three parts must contain a window, with a gap between parts), but there are {len(data)}. "
            "Use a longer range, or train with a shorter encoder or horizon."
        )
    train_end = first + sizes[0]
    validation_end = train_end + horizon + sizes[1]
    return MarketSplit(
        *(
            MarketPart(name, start, stop, _origins(data, usable, (start, stop), length, horizon))
            for name, start, stop in (
                ("train", first, train_end),
                ("validation", train_end + horizon, validation_end),
                ("test", validation_end + horizon, len(data)),
            )
        )
    )


def _origins(data: MarketData, usable: Indices, rows: tuple[int, int], length: int, horizon: int) -> Indices:
    """The origins of the windows that are completely inside `rows`, have no gap, and a price that moves."""
    origins = np.arange(rows[0] + length - 1, rows[1] - horizon, dtype=np.int64)
    origins = origins[usable[origins + horizon] >= length + horizon]
    origins = origins[_scales(data.target, origins, length, horizon) >= MIN_SCALE]
    if not len(origins):
        raise DataError(
            f"Because of gaps in the candles or a constant price, one of the three parts has no complete window of "
            f"{length + horizon} rows. Use a longer range, or another source."
        )
    return origins


def _run_lengths(data: MarketData) -> Indices:
    """`[n]`: the number of rows without a gap that end at each row."""
    finite = np.isfinite(data.target) & np.isfinite(data.past).all(axis=1) & np.isfinite(data.known).all(axis=1)
    starts = np.ones(len(data), dtype=bool)
    starts[1:] = (np.diff(data.time) != data.step) | ~finite[:-1]
    index = np.arange(len(data), dtype=np.int64)
    first = np.maximum.accumulate(np.where(starts, index, 0))
    return np.where(finite, index - first + 1, 0)


def _scales(target: FloatArray, origins: Indices, length: int, horizon: int) -> FloatArray:
    """The target scale at each origin. Values of `target` outside the windows are not used."""
    windows = sliding_window_view(target, length)
    scales = [
        target_scale(windows[part - length + 1], horizon) for part in np.array_split(origins, len(origins) // 4096 + 1)
    ]
    return np.concatenate(scales)
