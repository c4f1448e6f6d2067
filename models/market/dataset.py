"""The rows of a market training run, split by time, and the windows that a training run may use.

A window at *origin* row `o` has its encoder in the rows `o - L + 1 .. o` and its decoder in `o + 1 .. o + H`. The
rows are split into train | validation | test with `H` unused rows between them.

Invariant: a window is completely inside one part, and never crosses a gap. So no row that is scored was learned from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from models.base import FloatArray, ModelInput
from models.errors import DataError
from models.market.engine import MIN_SCALE, target_scale
from models.training.config import MARKET, TrainingConfig
from models.training.data import Indices, Part, Split, TrainingRows, cut_rows


@dataclass(frozen=True, eq=False, kw_only=True)
class MarketData(TrainingRows):
    """`n` rows of one series, in time order; a row that is not finite, or a jump in time, is a gap.

    time:   int64 `[n]`, unix seconds at which each row opens, strictly increasing
    target: float64 `[n]`, natural logarithm of the closing price
    past:   float64 `[n, P]`, features known up to the row; `past_names` in order
    known:  float64 `[n, K]`, features known for the future too; `known_names` in order
    """

    KIND: ClassVar[str] = MARKET
    ARRAYS: ClassVar[tuple[str, ...]] = ("time", "target", "past", "known")

    time: NDArray[np.int64]
    target: FloatArray
    past: FloatArray
    known: FloatArray
    past_names: tuple[str, ...]
    known_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.time)

    @property
    def ticks(self) -> int:
        """See `TrainingRows.ticks`."""
        return len(self.time)

    def interval(self, start: int, stop: int) -> tuple[int, int]:
        """See `TrainingRows.interval`."""
        return int(self.time[start]), int(self.time[stop - 1]) + self.step

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
class MarketPart(Part):
    """A part of the rows; `windows` are the origins of its windows."""

    def thin(self, count: int) -> Indices:
        """At most `count` origins, evenly spaced; neighboring windows overlap almost completely."""
        if len(self.windows) <= count:
            return self.windows
        return self.windows[np.linspace(0, len(self.windows) - 1, count).round().astype(np.int64)]


def split(data: MarketData, config: TrainingConfig) -> Split[MarketPart]:
    """Split the rows into parts.

    Raises:
        DataError: there are too few rows, or gaps leave a part without a window.
    """
    usable, length, horizon = _run_lengths(data), config.encoder_length, config.horizon
    first = int(np.argmax(usable > 0)) if (usable > 0).any() else len(data)

    def describe_shortage(needed: int) -> str:
        return (
            f"Training needs at least {needed} candles for an encoder of {length} and a horizon of {horizon} "
            f"(each of three parts must contain a window, with a gap between parts), but there are {len(data)}. "
            "Use a longer range, or train with a shorter encoder or horizon."
        )

    parts = cut_rows(len(data), first, config, describe_shortage)
    return Split(*(MarketPart(*part, _origins(data, usable, part[1:], length, horizon)) for part in parts))


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
