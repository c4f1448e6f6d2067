"""Where candles come from, behind one protocol. `open_source` turns what a user writes into a source."""

from __future__ import annotations

from forecastd.errors import NeedsHuman
from forecastd.market.sources.base import Source
from forecastd.settings import Settings

__all__ = ["Source", "open_source"]

SOURCE_FORMATS = "sample, sample:SEED, tiingo, tiingo:TICKER, exchange:NAME, exchange:NAME:SYMBOL, file:PATH"


def open_source(spec: str, settings: Settings) -> Source:
    """The source that `spec` names. Nothing is asked of it yet: no network, no file.

    Raises:
        NeedsHuman: no such source, or it lacks something it needs (a key).
    """
    kind, _, argument = spec.strip().partition(":")
    if kind == "sample":
        from forecastd.market.sources.sample import SampleSource

        if argument and not (argument.isascii() and argument.isdigit() and len(argument) <= 9):
            raise NeedsHuman(f"The seed of the sample source is a whole number below 1000000000, not {argument!r}.")
        return SampleSource(settings.symbol, int(argument or 0))
    if kind == "tiingo":
        from forecastd.market.sources.tiingo import TiingoSource

        key = settings.tiingo_api_key
        return TiingoSource(
            argument.lower() or settings.symbol, None if key is None else key.get_secret_value(), settings.tiingo_url
        )
    if kind == "exchange" and argument:
        from forecastd.market.sources.exchange import ExchangeSource

        name, _, market = argument.partition(":")
        return ExchangeSource(name.lower(), market.upper() or None, settings.symbol)
    if kind == "file" and argument:
        from pathlib import Path

        from forecastd.market.sources.file import FileSource

        return FileSource(Path(argument), settings.symbol)
    raise NeedsHuman(f"There is no data source {spec!r}. Allowed are: {SOURCE_FORMATS}.")
