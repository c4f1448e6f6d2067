"""What the readers of files have in common: the rows they hand over, and how they say what is wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forecastd.candles import when
from forecastd.errors import NeedsHuman, SkipEpoch

MOST_BYTES = 512 * 2**20
MOST_ROWS = 1_000_000  # of one symbol: a century of hours
MARK = "forecastd"  # how a file that this program wrote begins its note on where the candles came from
MADE_UP = re.compile(rf"{MARK}\b.*\bsynthetic=true\b")
NO_TIME = "is not a time. Write it as 2019-10-17 09:00 (UTC) or in seconds since 1970, or remove that row."
NO_NUMBER = "is not a number. Correct it, leave it empty where there is no value, or download the file again."


@dataclass(frozen=True, eq=False)
class Table:
    """Rows as a file holds them: `time` int64 `[n]` unix seconds, `values` float64 `[n, 5]`, `told` in sentences."""

    time: NDArray[np.int64]
    values: NDArray[np.float64]
    sha256: str
    synthetic: bool
    told: tuple[str, ...]


def unreadable(path: str, what: str) -> SkipEpoch:
    """The error for a file that holds something else than it should."""
    return SkipEpoch(f"{path}: {what}", check="unreadable")


def same_pair(written: str, symbol: str) -> bool:
    """Whether a file's `BTC/USD`, `BTC-USDT` or `tBTCUSD` is the pair asked for; a dollar's stablecoin is a dollar."""
    text = re.sub(r"[^a-z0-9]", "", written.lower())
    return text in {symbol, f"t{symbol}"} or (symbol.endswith("usd") and text in {symbol + "t", symbol + "c"})


def choose_symbol(path: str, found: list[str], symbol: str) -> str:
    """The one of the symbols in a file that is the pair asked for.

    Raises:
        NeedsHuman: none is.
    """
    exact = [name for name in found if re.sub(r"[^a-z0-9]", "", name.lower()) == symbol]
    fitting = exact or [name for name in found if same_pair(name, symbol)]
    if not fitting:
        listed = ", ".join(sorted(found)[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
        raise NeedsHuman(f"{path} holds {listed}, not {symbol}. Choose another file, or set SYMBOL to what it holds.")
    return fitting[0]


def require_step(path: str, time: NDArray[np.int64], step: int) -> None:
    """Refuse a file whose usual distance between rows is not `step` seconds.

    Raises:
        NeedsHuman: it is another one.
    """
    distances = np.diff(np.unique(time))
    if not len(distances):
        return
    values, counts = np.unique(distances, return_counts=True)
    usual = int(values[np.argmax(counts)])
    if usual != step:
        raise NeedsHuman(
            f"{path} holds a candle every {usual} s (about {when(time.min())} to {when(time.max())}), and one every "
            f"{step} s is needed. Download the hourly file instead, or resample it."
        )
