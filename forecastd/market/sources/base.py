"""The protocol of a candle source.

A source serves one symbol at one step and returns complete candles only. It does not decide whether they are valid for
a forecast; `forecastd.market.candles.check_candles` does that for all sources.
"""

from __future__ import annotations

from typing import Protocol

from forecastd.market.candles import Candles


class Source(Protocol):
    """A source of candles.

    name:      the configured name, also in `Provenance.source`: "tiingo:btcusd", "file:btc.csv", "sample"
    symbol:    the pair in the project's spelling: "btcusd"
    step:      seconds
    synthetic: generated data, never signed for a real network
    local:     needs no network; the rolling window does not cache it, so that changes to a file are seen
    """

    @property
    def name(self) -> str: ...
    @property
    def symbol(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def synthetic(self) -> bool: ...
    @property
    def local(self) -> bool: ...

    def fetch(self, start: int, end: int, now: float) -> Candles:
        """Fetch the candles that open at or after `start` and before `end` (unix seconds) and are complete at `now`.

        The candles are sorted, without identical duplicates (repairs are listed in `Candles.repairs`). There may be
        fewer than the range allows, or none.

        Raises:
            RetryLater: a transient fault of the source or the connection.
            NeedsHuman: the source cannot work as configured.
            SkipEpoch: the source returned candles that contradict each other.
        """
        ...
