"""Candle sources behind one protocol. `open_source` creates a source from its configured name."""

from __future__ import annotations

from pathlib import Path

from forecastd.errors import NeedsHuman
from forecastd.market.sources.base import Source
from forecastd.market.sources.exchange import ExchangeSource
from forecastd.market.sources.file import FileSource
from forecastd.market.sources.sample import SampleSource
from forecastd.market.sources.tiingo import TiingoSource
from forecastd.settings import Settings

__all__ = ["Source", "open_source"]

SOURCE_FORMATS = "sample, sample:SEED, tiingo, tiingo:TICKER, exchange:NAME, exchange:NAME:SYMBOL, file:PATH"


def open_source(spec: str, settings: Settings) -> Source:
    """Create the source that `spec` names. No network or file is used yet.

    Raises:
        NeedsHuman: there is no such source, or it lacks a required setting (an API key).
    """
    kind, _, argument = spec.strip().partition(":")
    symbol, key = settings.source.symbol, settings.source.tiingo_api_key
    if kind == "sample":
        if argument and not (argument.isascii() and argument.isdigit() and len(argument) <= 9):
            raise NeedsHuman(
                f"The seed of the sample source must be a whole number below 1000000000, not {argument!r}."
            )
        return SampleSource(symbol, int(argument or 0))
    if kind == "tiingo":
        key_text = None if key is None else key.get_secret_value()
        return TiingoSource(argument.lower() or symbol, key_text, settings.source.tiingo_url)
    if kind == "exchange" and argument:
        name, _, market = argument.partition(":")
        return ExchangeSource(name.lower(), market.upper() or None, symbol)
    if kind == "file" and argument:
        return FileSource(Path(argument), symbol)
    raise NeedsHuman(f"There is no data source {spec!r}. The allowed forms are: {SOURCE_FORMATS}.")
