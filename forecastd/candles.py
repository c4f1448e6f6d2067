"""The candle type, its provenance and its checks.

A candle is named by the time it opens and is complete when it closes, one step later. Only complete candles may enter a
forecast, and where they came from travels with them up to the place where bytes are signed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HOUR = 3600


@dataclass(frozen=True)
class Provenance:
    """Where candles came from."""

    source: str  # as a user names it: "tiingo:btcusd", "exchange:kraken:BTC/USD", "file:btc.csv", "sample"
    fetched_at: float  # unix seconds of the newest fetch
    sha256: str  # of the bytes as fetched; of the parts' hashes where several fetches were joined
    synthetic: bool  # made up: never signed for a real network


@dataclass(frozen=True, eq=False)
class Candles:
    """`n` candles of one symbol, UTC, in quote currency.

    `time` is int64 `[n]`, unix seconds of each candle's opening, strictly increasing, on the grid of `step` seconds.
    The others are float64 `[n]`. `repairs` tells, in sentences, what had to be mended on the way here.
    """

    symbol: str
    step: int
    time: NDArray[np.int64]
    open: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]
    volume: NDArray[np.float64]
    provenance: Provenance
    repairs: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.time)

    @property
    def end(self) -> int:
        """Unix seconds at which the last candle closed. Raises IndexError when there is none."""
        return int(self.time[-1]) + self.step
