"""What a source of candles is.

A source answers for one symbol and one step. It gives complete candles only, and never decides whether they are fit for
a forecast: that is `forecastd.candles.check`, the same for all of them.
"""

from __future__ import annotations

from typing import Protocol

from forecastd.market.candles import Candles


class Source(Protocol):
    """Where candles come from.

    name:      as a user names it, and what `Provenance.source` says: "tiingo:btcusd", "file:btc.csv", "sample"
    symbol:    the pair in the project's spelling: "btcusd"
    step:      seconds
    synthetic: made up, never signed for a real network
    local:     reading it again costs no network: the rolling window keeps nothing of it, so that a changed file is seen
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
        """The candles that open at or after `start` and before `end` (unix seconds) and are complete at `now`.

        Sorted, without identical duplicates (what had to be mended is told in `Candles.repairs`); possibly fewer than
        the range holds, possibly none.

        Raises:
            RetryLater: a passing fault on the way to the source.
            NeedsHuman: it cannot work as it is configured.
            SkipEpoch: the source gave candles that contradict each other.
        """
        ...
