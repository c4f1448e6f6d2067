"""What the readers of files have in common: the rows they hand over, and how they say what is wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.market.candles import format_time

MAX_BYTES = 512 * 2**20
MAX_ROWS = 1_000_000  # of one symbol: a century of hours
PROVENANCE_MARKER = "forecastd"  # how a file that this program wrote begins its note on where the candles came from
SYNTHETIC_MARKER = re.compile(rf"{PROVENANCE_MARKER}\b.*\bsynthetic=true\b")
INVALID_TIME = "is not a time. Write it as 2019-10-17 09:00 (UTC) or in seconds since 1970, or remove that row."
INVALID_NUMBER = "is not a number. Correct it, leave it empty where there is no value, or download the file again."


@dataclass(frozen=True, eq=False)
class CandleTable:
    """Rows as a file holds them: `time` int64 `[n]` unix seconds, `values` float64 `[n, 5]`, `told` in sentences."""

    time: NDArray[np.int64]
    values: NDArray[np.float64]
    sha256: str
    synthetic: bool
    notes: tuple[str, ...]


def unreadable_error(path: str, reason: str) -> SkipEpoch:
    """The error for a file that holds something else than it should."""
    return SkipEpoch(f"{path}: {reason}", check="unreadable")


def is_same_pair(name: str, symbol: str) -> bool:
    """Whether a file's `BTC/USD`, `BTC-USDT` or `tBTCUSD` is the pair asked for; a dollar's stablecoin is a dollar."""
    text = re.sub(r"[^a-z0-9]", "", name.lower())
    return text in {symbol, f"t{symbol}"} or (symbol.endswith("usd") and text in {symbol + "t", symbol + "c"})


def choose_symbol(path: str, symbols: list[str], symbol: str) -> str:
    """The one of the symbols in a file that is the pair asked for.

    Raises:
        NeedsHuman: none is.
    """
    exact = [name for name in symbols if re.sub(r"[^a-z0-9]", "", name.lower()) == symbol]
    matches = exact or [name for name in symbols if is_same_pair(name, symbol)]
    if not matches:
        listing = ", ".join(sorted(symbols)[:8]) + (f" and {len(symbols) - 8} more" if len(symbols) > 8 else "")
        raise NeedsHuman(f"{path} holds {listing}, not {symbol}. Choose another file, or set SYMBOL to what it holds.")
    return matches[0]


def require_step(path: str, time: NDArray[np.int64], step: int) -> None:
    """Refuse a file whose usual distance between rows is not `step` seconds.

    Raises:
        NeedsHuman: it is another one.
    """
    steps = np.diff(np.unique(time))
    if not len(steps):
        return
    values, counts = np.unique(steps, return_counts=True)
    usual_step = int(values[np.argmax(counts)])
    if usual_step != step:
        raise NeedsHuman(
            f"{path} holds a candle every {usual_step} s (about {format_time(time.min())} to {format_time(time.max())}), and one every "
            f"{step} s is needed. Download the hourly file instead, or resample it."
        )
