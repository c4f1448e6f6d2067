"""What the CSV and Parquet readers share: the table they return, checks of symbol and step, and error messages."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.market.candles import format_time

MAX_BYTES = 512 * 2**20
MAX_ROWS = 1_000_000  # of one symbol: a century of hourly candles
PROVENANCE_MARKER = "forecastd"  # starts the provenance note in files that this program writes
SYNTHETIC_MARKER = re.compile(rf"{PROVENANCE_MARKER}\b.*\bsynthetic=true\b")
INVALID_TIME = "is not a time. Write it as 2019-10-17 09:00 (UTC) or in seconds since 1970, or remove that row."
INVALID_NUMBER = "is not a number. Correct it, leave it empty where there is no value, or download the file again."


@dataclass(frozen=True, eq=False)
class CandleTable:
    """The rows of a file: `time` int64 `[n]` unix seconds, `values` float64 `[n, 5]`, `notes` one sentence each."""

    time: NDArray[np.int64]
    values: NDArray[np.float64]
    sha256: str
    synthetic: bool
    notes: tuple[str, ...]


def unreadable_error(path: str, reason: str) -> SkipEpoch:
    """The error for a file with unexpected content."""
    return SkipEpoch(f"{path}: {reason}", check="unreadable")


def is_same_pair(name: str, symbol: str) -> bool:
    """Whether a file's `BTC/USD`, `BTC-USDT` or `tBTCUSD` is the requested pair; a dollar stablecoin counts as USD."""
    text = re.sub(r"[^a-z0-9]", "", name.lower())
    return text in {symbol, f"t{symbol}"} or (symbol.endswith("usd") and text in {symbol + "t", symbol + "c"})


def choose_symbol(path: str, symbols: list[str], symbol: str) -> str:
    """Choose the symbol in a file that is the requested pair.

    Raises:
        NeedsHuman: no symbol matches.
    """
    exact = [name for name in symbols if re.sub(r"[^a-z0-9]", "", name.lower()) == symbol]
    matches = exact or [name for name in symbols if is_same_pair(name, symbol)]
    if not matches:
        listing = ", ".join(sorted(symbols)[:8]) + (f" and {len(symbols) - 8} more" if len(symbols) > 8 else "")
        raise NeedsHuman(f"{path} holds {listing}, not {symbol}. Choose another file, or set SYMBOL to one of these.")
    return matches[0]


def require_step(path: str, time: NDArray[np.int64], step: int) -> None:
    """Require that the usual distance between rows is `step` seconds.

    Raises:
        NeedsHuman: it differs.
    """
    steps = np.diff(np.unique(time))
    if not len(steps):
        return
    values, counts = np.unique(steps, return_counts=True)
    usual_step = int(values[np.argmax(counts)])
    if usual_step != step:
        raise NeedsHuman(
            f"{path} has a candle every {usual_step} s (from about {format_time(time.min())} to "
            f"{format_time(time.max())}), but one every {step} s is required. Download the hourly file, or resample it."
        )
