from __future__ import annotations

from pathlib import Path

import pytest

from forecastd.errors import NeedsHuman
from forecastd.settings import Settings, load_settings
from forecastd.sources import open_source


@pytest.fixture(autouse=True)
def no_settings_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def keyed() -> Settings:
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
def test_a_spec_names_a_source(keyed: Settings, spec: str, name: str, symbol: str) -> None:
    source = open_source(spec, keyed)
    assert (source.name, source.symbol, source.step) == (name, symbol, 3600)


@pytest.mark.parametrize(
    "spec", ["", "bitcoin", "file", "file:", "exchange", "exchange:", "sample:x", "sample:-1", "tiingo:a/b"]
)
def test_a_bad_spec_needs_a_person(keyed: Settings, spec: str) -> None:
    with pytest.raises(NeedsHuman):
        open_source(spec, keyed)


def test_an_unknown_source_is_told_what_is_allowed(keyed: Settings) -> None:
    with pytest.raises(NeedsHuman, match=r"tiingo:TICKER.*exchange:NAME.*file:PATH"):
        open_source("coinbase", keyed)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "TIINGO_API_KEY is not set"),
        ({"tiingo_api_key": "two words"}, "TIINGO_API_KEY holds spaces"),
        ({"tiingo_api_key": "k\nHost: evil"}, "TIINGO_API_KEY holds spaces"),
        ({"tiingo_api_key": "k", "tiingo_url": "http://example.com"}, "plain http"),
        ({"tiingo_api_key": "k", "tiingo_url": "ftp://example.com"}, "no web address"),
        ({"tiingo_api_key": "k", "tiingo_url": "https://"}, "no web address"),
    ],
)
def test_tiingo_says_what_it_lacks(given: dict[str, str], says: str) -> None:
    with pytest.raises(NeedsHuman, match=says):
        open_source("tiingo", load_settings(**given))


def test_another_server_is_another_source() -> None:
    elsewhere = load_settings(tiingo_url="http://127.0.0.1:8640")
    assert open_source("tiingo", elsewhere).name == "tiingo:btcusd@127.0.0.1:8640"
