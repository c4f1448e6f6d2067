"""Map the columns of a downloaded table to candle fields by the names that vendors use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# In order of preference: a timestamp comes before a date, which may lack the hour.
TIME_NAMES = (
    "unix", "unix_timestamp", "timestamp", "open_time", "opentime", "time_open", "timeopen", "time_period_start",
    "period_start", "start_time", "starttime", "start", "datetime", "date_time", "gmt_time", "time_utc", "utc_time",
    "ts", "t", "date", "time", "candle_begin_time", "index", "",
)  # fmt: skip
PRICE_NAMES = {
    "open": ("open", "o", "open_price", "price_open", "opening", "opening_price"),
    "high": ("high", "h", "high_price", "price_high", "max"),
    "low": ("low", "l", "low_price", "price_low", "min"),
    "close": ("close", "c", "close_price", "price_close", "closing", "closing_price", "last", "price"),
}
VOLUME_NAMES = (
    "volume_base",
    "base_volume",
    "volumefrom",
    "volume_from",
    "volume",
    "vol",
    "v",
    "volume_traded",
    "tick_volume",
)
SYMBOL_NAMES = ("symbol", "ticker", "pair", "market", "product_id", "instrument", "asset", "tic")


@dataclass(frozen=True)
class ColumnLayout:
    """Column indices of a table. `time_of_day` is a second time column, appended to the first (the date)."""

    time: int
    time_of_day: int | None
    prices: tuple[int, int, int, int]  # open, high, low, close
    volume: int | None
    symbol: int | None


HEADERLESS = ColumnLayout(
    time=0, time_of_day=None, prices=(1, 2, 3, 4), volume=5, symbol=None
)  # as in Kraken and Binance archives


def normalize_name(name: str) -> str:
    """Normalize a column name: `Volume (BTC)` -> `volume_btc`, `<CLOSE>` -> `close`, `Unnamed: 0` -> ``."""
    text = re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")
    return "" if re.fullmatch(r"unnamed_\d+|index_level_\d+", text) else text


def find_layout(names: Sequence[str], symbol: str) -> ColumnLayout | None:
    """Find the columns; None when there is no column for the time or a price.

    `symbol` distinguishes base and quote volume: of `volume_btc` and `volume_usd`, BTC/USD's volume is the first.
    """
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        places.setdefault(normalize_name(name), place)

    def first(candidates: Sequence[str]) -> int | None:
        return next((places[name] for name in candidates if name in places), None)

    time = first(TIME_NAMES)
    prices = [first(candidates) for candidates in PRICE_NAMES.values()]
    if time is None or any(price is None for price in prices):
        return None
    time_of_day = places["time"] if time == places.get("date") and "time" in places else None
    volume_names = sorted((name for name in places if name.startswith(("volume_", "vol_"))), key=len, reverse=True)
    base_names = [name for name in volume_names if symbol.startswith(name.partition("_")[2]) and name.partition("_")[2]]
    volume = first((*base_names, *VOLUME_NAMES, *volume_names))
    open_, high, low, close = (price for price in prices if price is not None)
    return ColumnLayout(time, time_of_day, (open_, high, low, close), volume, first(SYMBOL_NAMES))
