"""Where candles come from, behind one protocol. `open_source` turns what a user writes into a source."""

from __future__ import annotations

from forecastd.errors import NeedsHuman
from forecastd.settings import Settings
from forecastd.sources.base import Source

__all__ = ["Source", "open_source"]

ALLOWED = "sample, sample:SEED, tiingo, tiingo:TICKER, exchange:NAME, exchange:NAME:SYMBOL, file:PATH"


def open_source(spec: str, settings: Settings) -> Source:
    """The source that `spec` names. Nothing is asked of it yet: no network, no file.

    Raises:
        NeedsHuman: no such source, or it lacks something it needs (a key).
    """
    kind, _, rest = spec.strip().partition(":")
    if kind == "sample":
        from forecastd.sources.sample import SampleSource

        if rest and not (rest.isascii() and rest.isdigit() and len(rest) <= 9):
            raise NeedsHuman(f"The seed of the sample source is a whole number below 1000000000, not {rest!r}.")
        return SampleSource(settings.symbol, int(rest or 0))
    if kind == "tiingo":
        from forecastd.sources.tiingo import TiingoSource

        key = settings.tiingo_api_key
        return TiingoSource(
            rest.lower() or settings.symbol, None if key is None else key.get_secret_value(), settings.tiingo_url
        )
    if kind == "exchange" and rest:
        from forecastd.sources.exchange import ExchangeSource

        name, _, market = rest.partition(":")
        return ExchangeSource(name.lower(), market.upper() or None, settings.symbol)
    if kind == "file" and rest:
        from pathlib import Path

        from forecastd.sources.file import FileSource

        return FileSource(Path(rest), settings.symbol)
    raise NeedsHuman(f"There is no data source {spec!r}. Allowed are: {ALLOWED}.")
