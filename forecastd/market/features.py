"""Compute the columns that `features.json` names: a registry with one small, documented function per feature.

A *past* feature is computed over a window of fixed length. A *known* feature depends on the calendar alone, so it also
exists for the future. A window given in hours spans that time at any step.

Invariant: the value of a past feature at row t reads candles up to t only. It does not depend on how much history is
loaded, and is NaN while the window is not full or has a gap.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from forecastd.clock import to_iso
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.market.candles import HOUR, Candles
from forecastd.runtime.files import read_text_file
from models.base import ModelInput

FloatArray = NDArray[np.float64]
DAY, WEEK = 24 * HOUR, 168 * HOUR


@dataclass(frozen=True, eq=False)
class CandleGrid:
    """Candle columns on every tick of the time grid, float64 `[m]` each; NaN where a candle is missing."""

    high: FloatArray
    low: FloatArray
    close: FloatArray
    rows_per_hour: int

    def returns(self) -> FloatArray:
        """One-step log-returns `[m]`; the first is NaN."""
        return _prepend_nan(np.diff(np.log(self.close)), 1)


@dataclass(frozen=True)
class PastFeature:
    """`compute(grid) -> [m]`; `hours` is the time span that one value reads, including the candle itself."""

    compute: Callable[[CandleGrid], FloatArray]
    hours: int


PAST_FEATURES: dict[str, PastFeature] = {}
KNOWN_FEATURES: dict[str, Callable[[NDArray[np.int64]], FloatArray]] = {}


def _register_past(hours: int) -> Callable[[Callable[[CandleGrid], FloatArray]], Callable[[CandleGrid], FloatArray]]:
    def register(function: Callable[[CandleGrid], FloatArray]) -> Callable[[CandleGrid], FloatArray]:
        PAST_FEATURES[function.__name__] = PastFeature(function, hours)
        return function

    return register


def _register_known(function: Callable[[NDArray[np.int64]], FloatArray]) -> Callable[[NDArray[np.int64]], FloatArray]:
    KNOWN_FEATURES[function.__name__] = function
    return function


def _prepend_nan(values: FloatArray, count: int) -> FloatArray:
    return np.concatenate([np.full(count, np.nan), values])


def _rolling(values: FloatArray, rows: int, reduce: Callable[[FloatArray], FloatArray]) -> FloatArray:
    """`reduce` over the last `rows` values at every row, `[m]`; NaN until the window is full."""
    if len(values) < rows:
        return np.full(len(values), np.nan)
    return _prepend_nan(reduce(sliding_window_view(values, rows)), rows - 1)


def _mean(windows: FloatArray) -> FloatArray:
    return np.asarray(windows.mean(axis=-1))


def _log_return(grid: CandleGrid, hours: int) -> FloatArray:
    rows, log_close = hours * grid.rows_per_hour, np.log(grid.close)
    return _prepend_nan(log_close[rows:] - log_close[:-rows], min(rows, len(log_close)))


def _price_position(grid: CandleGrid, hours: int) -> FloatArray:
    rows = hours * grid.rows_per_hour
    lowest = _rolling(grid.low, rows, lambda w: np.asarray(w.min(axis=-1)))
    spread = _rolling(grid.high, rows, lambda w: np.asarray(w.max(axis=-1))) - lowest
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread == 0, 0.5, (grid.close - lowest) / spread)


@_register_past(hours=2)
def ret_1h(grid: CandleGrid) -> FloatArray:
    """Log-return over the last hour."""
    return _log_return(grid, 1)


@_register_past(hours=25)
def ret_24h(grid: CandleGrid) -> FloatArray:
    """Log-return over the last 24 hours."""
    return _log_return(grid, 24)


@_register_past(hours=24)
def ma_24h(grid: CandleGrid) -> FloatArray:
    """24 h simple moving average of the close, relative to the close: `log(average / close)`, free of the price
    level.
    """
    return np.log(_rolling(grid.close, 24 * grid.rows_per_hour, _mean) / grid.close)


@_register_past(hours=72)
def ma_72h(grid: CandleGrid) -> FloatArray:
    """72 h simple moving average of the close, relative to the close: `log(average / close)`, free of the price
    level.
    """
    return np.log(_rolling(grid.close, 72 * grid.rows_per_hour, _mean) / grid.close)


@_register_past(hours=25)
def vol_24h(grid: CandleGrid) -> FloatArray:
    """Standard deviation of the one-step log-returns of the last 24 hours."""
    return _rolling(grid.returns(), 24 * grid.rows_per_hour, lambda w: np.asarray(w.std(axis=-1)))


@_register_past(hours=24)
def price_pos_24h(grid: CandleGrid) -> FloatArray:
    """Position of the close between the low (0) and the high (1) of the last 24 hours; 0.5 when they are equal."""
    return _price_position(grid, 24)


@_register_past(hours=72)
def price_pos_72h(grid: CandleGrid) -> FloatArray:
    """Position of the close between the low (0) and the high (1) of the last 72 hours; 0.5 when they are equal."""
    return _price_position(grid, 72)


@_register_past(hours=72)
def ma_ratio_72_24(grid: CandleGrid) -> FloatArray:
    """72 h simple moving average of the close over the 24 h one."""
    return _rolling(grid.close, 72 * grid.rows_per_hour, _mean) / _rolling(grid.close, 24 * grid.rows_per_hour, _mean)


@_register_past(hours=73)
def exp_vol_ratio(grid: CandleGrid) -> FloatArray:
    """Exponentially weighted over unweighted volatility (span 24 h, 72 h of returns); 1 for constant prices."""
    rows = 72 * grid.rows_per_hour
    weights = (1 - 2 / (24 * grid.rows_per_hour + 1)) ** np.arange(rows - 1, -1, -1, dtype=np.float64)
    weights /= weights.sum()
    squares = grid.returns() ** 2
    recent = _rolling(squares, rows, lambda w: np.asarray((w * weights).sum(axis=-1)))
    plain = _rolling(squares, rows, _mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(np.where(plain == 0, 1.0, recent / plain))


@_register_known
def hour_sin(time: NDArray[np.int64]) -> FloatArray:
    """Sine of the time of the day (UTC)."""
    return np.sin(2 * np.pi * (time % DAY) / DAY)


@_register_known
def hour_cos(time: NDArray[np.int64]) -> FloatArray:
    """Cosine of the time of the day (UTC)."""
    return np.cos(2 * np.pi * (time % DAY) / DAY)


@_register_known
def weekday_sin(time: NDArray[np.int64]) -> FloatArray:
    """Sine of the time of the week (UTC, from Monday)."""
    return np.sin(2 * np.pi * ((time - 4 * DAY) % WEEK) / WEEK)


@_register_known
def weekday_cos(time: NDArray[np.int64]) -> FloatArray:
    """Cosine of the time of the week (UTC, from Monday)."""
    return np.cos(2 * np.pi * ((time - 4 * DAY) % WEEK) / WEEK)


@_register_known
def is_weekend(time: NDArray[np.int64]) -> FloatArray:
    """1 on Saturday and Sunday (UTC), else 0."""
    return np.asarray((time - 4 * DAY) % WEEK >= 5 * DAY, dtype=np.float64)


@dataclass(frozen=True)
class FeatureList:
    """The names of `features.json` in order, and their split into past and known features (each in the same order)."""

    names: tuple[str, ...]

    @property
    def past(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name in PAST_FEATURES)

    @property
    def known(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name in KNOWN_FEATURES)


def load_features(path: Path) -> FeatureList:
    """Read the feature list from a JSON file.

    Raises:
        NeedsHuman: the file is missing or not a JSON list of names, or a name is repeated or unknown.
    """
    text = read_text_file(path, "The feature list", "Check --features.")
    try:
        names = json.loads(text)
    except RecursionError:
        raise NeedsHuman(f"The feature list {path} is nested too deeply. It must be a list of names.") from None
    except ValueError as error:
        raise NeedsHuman(f"The feature list {path} is not JSON ({error}). It must be a list of names.") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise NeedsHuman(f"The feature list {path} must be a JSON list of at least one feature name.")
    return parse_features(names, str(path))


def parse_features(names: list[str] | tuple[str, ...], list_name: str) -> FeatureList:
    """Build a feature list from names; `list_name` names the list in error messages.

    Raises:
        NeedsHuman: a name is repeated or unknown.
    """
    for name in names:
        if name not in PAST_FEATURES and name not in KNOWN_FEATURES:
            matches = get_close_matches(name, [*PAST_FEATURES, *KNOWN_FEATURES], n=1)
            names_text = ", ".join([*PAST_FEATURES, *KNOWN_FEATURES])
            hint = f"Did you mean {matches[0]}?" if matches else f"Available features: {names_text}."
            raise NeedsHuman(f"{list_name} contains the unknown feature {name!r}. {hint}")
        if names.count(name) > 1:
            raise NeedsHuman(f"{list_name} contains the feature {name!r} twice. Remove one.")
    return FeatureList(tuple(names))


def warm_up_candles(names: tuple[str, ...], step: int = HOUR) -> int:
    """The number of candles before a row that the widest of the named past features reads."""
    return max(
        (PAST_FEATURES[name].hours * _rows_per_hour(step) - 1 for name in names if name in PAST_FEATURES), default=0
    )


def past_matrix(names: tuple[str, ...], candles: Candles) -> FloatArray:
    """Past features at every candle, float64 `[n, P]`; NaN where a feature's window is not full or has a gap."""
    rows = (candles.time - candles.time[0]) // candles.step

    def on_grid(values: FloatArray) -> FloatArray:
        full = np.full(int(rows[-1]) + 1, np.nan)
        full[rows] = values
        return full

    grid = CandleGrid(on_grid(candles.high), on_grid(candles.low), on_grid(candles.close), _rows_per_hour(candles.step))
    columns = [PAST_FEATURES[name].compute(grid)[rows] for name in names]
    return np.stack(columns, axis=1) if columns else np.empty((len(candles), 0))


def known_matrix(names: tuple[str, ...], time: NDArray[np.int64]) -> FloatArray:
    """Known features, float64 `[m, K]`, of candles that open at `time` (unix seconds `[m]`)."""
    columns = [KNOWN_FEATURES[name](time) for name in names]
    return np.stack(columns, axis=1) if columns else np.empty((len(time), 0))


def build_model_input(features: FeatureList, candles: Candles, encoder_length: int, horizon: int) -> ModelInput:
    """The model input at the end of `candles`: the last `encoder_length` rows, and the calendar of `horizon` more rows.

    Raises:
        SkipEpoch: too few candles, or a feature that is not finite in the encoder (a gap or a broken value).
    """
    min_length = encoder_length + warm_up_candles(features.names, candles.step)
    if len(candles) < min_length:
        raise SkipEpoch(
            f"The forecast needs {min_length} candles ({encoder_length} for the encoder, the rest for the features' windows) "
            f"but has {len(candles)}.",
            check="short",
        )
    past = past_matrix(features.past, candles)[-encoder_length:]
    if not np.isfinite(past).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(past))[0])
        time = int(candles.time[-encoder_length:][row])
        raise SkipEpoch(f"Feature {features.past[column]} is not finite at {to_iso(time)}.", check="features")
    first = int(candles.time[-encoder_length])
    times = first + candles.step * np.arange(encoder_length + horizon, dtype=np.int64)
    return ModelInput(
        end=candles.end,
        step=candles.step,
        target=np.log(candles.close[-encoder_length:]),
        past=past,
        known=known_matrix(features.known, times),
    )


def check_causal(features: FeatureList, candles: Candles) -> None:
    """Compute each past feature on a prefix of the candles and on all of them, and compare, to detect look-ahead.

    Raises:
        NeedsHuman: a feature's value changes when later candles are added.
    """
    prefix_length = max(1, len(candles) * 2 // 3)
    full = past_matrix(features.past, candles)[:prefix_length]
    prefix = past_matrix(features.past, candles.take(slice(0, prefix_length)))
    for column, name in enumerate(features.past):
        if not np.array_equal(full[:, column], prefix[:, column], equal_nan=True):
            raise NeedsHuman(
                f"Feature {name} looks into the future: its values change when later candles are added. "
                "Correct its function, or remove it from the feature list."
            )


def _rows_per_hour(step: int) -> int:
    if step > HOUR or HOUR % step:
        raise NeedsHuman(f"A candle step of {step} s does not divide one hour, which the features require.")
    return HOUR // step
