"""Source specs: each form opens its source, and invalid ones are refused with the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from forecastd.errors import NeedsHuman
from forecastd.market.sources import open_source
from forecastd.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def no_settings_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def settings_with_key() -> Settings:
    return load_settings(tiingo_api_key="k3y")


@pytest.mark.parametrize(
    ("spec", "name", "symbol"),
    [
        ("sample", "sample", "btcusd"),
        ("sample:7", "sample:7", "btcusd"),
        ("tiingo", "tiingo:btcusd", "btcusd"),
        ("tiingo:ETHUSD", "tiingo:ethusd", "ethusd"),
        ("exchange:kraken", "exchange:kraken", "btcusd"),
        ("exchange:kraken:eth/usdt", "exchange:kraken:ETH/USDT", "ethusdt"),
        ("file:a b.csv", "file:a b.csv", "btcusd"),
        ("file:C:/x.csv", "file:C:/x.csv", "btcusd"),
    ],
)
def test_source_spec_selects_the_source(settings_with_key: Settings, spec: str, name: str, symbol: str) -> None:
    source = open_source(spec, settings_with_key)
    assert (source.name, source.symbol, source.step) == (name, symbol, 3600)


@pytest.mark.parametrize(
    "spec", ["", "bitcoin", "file", "file:", "exchange", "exchange:", "sample:x", "sample:-1", "tiingo:a/b"]
)
def test_source_spec_invalid_needs_a_person(settings_with_key: Settings, spec: str) -> None:
    with pytest.raises(NeedsHuman):
        open_source(spec, settings_with_key)


def test_source_spec_unknown_lists_the_allowed(settings_with_key: Settings) -> None:
    with pytest.raises(NeedsHuman, match=r"tiingo:TICKER.*exchange:NAME.*file:PATH"):
        open_source("coinbase", settings_with_key)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "TIINGO_API_KEY is not set"),
        ({"tiingo_api_key": "two words"}, "TIINGO_API_KEY contains spaces"),
        ({"tiingo_api_key": "k\nHost: evil"}, "TIINGO_API_KEY contains spaces"),
        ({"tiingo_api_key": "k", "tiingo_url": "http://example.com"}, "plain http"),
        ({"tiingo_api_key": "k", "tiingo_url": "ftp://example.com"}, "not a web address"),
        ({"tiingo_api_key": "k", "tiingo_url": "https://"}, "not a web address"),
    ],
)
def test_tiingo_missing_setting_is_named(options: dict[str, str], message: str) -> None:
    with pytest.raises(NeedsHuman, match=message):
        open_source("tiingo", load_settings(**options))


def test_tiingo_other_server_has_another_name() -> None:
    settings = load_settings(tiingo_url="http://127.0.0.1:8640")
    assert open_source("tiingo", settings).name == "tiingo:btcusd@127.0.0.1:8640"
