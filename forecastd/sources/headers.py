"""Which column of a downloaded table is which, by the names that vendors give them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# In order of preference: an exact count of seconds before a date that may lack its hour.
TIME = (
    "unix", "unix_timestamp", "timestamp", "open_time", "opentime", "time_open", "timeopen", "time_period_start",
    "period_start", "start_time", "starttime", "start", "datetime", "date_time", "gmt_time", "time_utc", "utc_time",
    "ts", "t", "date", "time", "candle_begin_time", "index", "",
)  # fmt: skip
PRICES = {
    "open": ("open", "o", "open_price", "price_open", "opening", "opening_price"),
    "high": ("high", "h", "high_price", "price_high", "max"),
    "low": ("low", "l", "low_price", "price_low", "min"),
    "close": ("close", "c", "close_price", "price_close", "closing", "closing_price", "last", "price"),
}
VOLUME = (
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
SYMBOL = ("symbol", "ticker", "pair", "market", "product_id", "instrument", "asset", "tic")


@dataclass(frozen=True)
class Layout:
    """Places of the columns in a table. `clock` is a second time column, to be written behind the first."""

    time: int
    clock: int | None
    prices: tuple[int, int, int, int]  # open, high, low, close
    volume: int | None
    symbol: int | None


HEADERLESS = Layout(time=0, clock=None, prices=(1, 2, 3, 4), volume=5, symbol=None)  # as Kraken and Binance archives


def plain(name: str) -> str:
    """`Volume (BTC)` -> `volume_btc`, `<CLOSE>` -> `close`, `Unnamed: 0` -> ``."""
    text = re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")
    return "" if re.fullmatch(r"unnamed_\d+|index_level_\d+", text) else text


def find_layout(names: Sequence[str], symbol: str) -> Layout | None:
    """Where the columns are, or None where time or a price has no column.

    `symbol` tells base from quote: of `volume_btc` and `volume_usd`, BTC/USD's volume is the first.
    """
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        places.setdefault(plain(name), place)

    def first(wanted: Sequence[str]) -> int | None:
        return next((places[name] for name in wanted if name in places), None)

    time = first(TIME)
    prices = [first(wanted) for wanted in PRICES.values()]
    if time is None or any(price is None for price in prices):
        return None
    clock = places["time"] if time == places.get("date") and "time" in places else None
    base = sorted((name for name in places if name.startswith(("volume_", "vol_"))), key=len, reverse=True)
    own = [name for name in base if symbol.startswith(name.partition("_")[2]) and name.partition("_")[2]]
    volume = first((*own, *VOLUME, *base))
    opened, high, low, close = (price for price in prices if price is not None)
    return Layout(time, clock, (opened, high, low, close), volume, first(SYMBOL))
