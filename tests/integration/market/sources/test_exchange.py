"""The exchange source, with ccxt's own client against a fake Coinbase Exchange."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import ccxt
import numpy as np
import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from forecastd.clock import from_iso
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.market.candles import COLUMNS, HOUR
from forecastd.market.sources.exchange import ExchangeSource
from forecastd.market.sources.sample import SampleSource

NOW = 1_700_000_000 // HOUR * HOUR + 90
MARKET = SampleSource("btcusd")
MAX_PAGE_SIZE = 300  # candles per response, as with the real Coinbase


def product(base: str, quote: str) -> dict[str, Any]:
    """A market as Coinbase's `/products` lists it."""
    return {
        "id": f"{base}-{quote}", "base_currency": base, "quote_currency": quote, "base_increment": "0.00000001",
        "quote_increment": "0.01", "display_name": f"{base}-{quote}", "min_market_funds": "1", "status": "online",
        "margin_enabled": False, "post_only": False, "limit_only": False, "cancel_only": False,
        "trading_disabled": False, "fx_stablecoin": False, "auction_mode": False, "status_message": "",
    }  # fmt: skip


@pytest.fixture
def client(httpserver: HTTPServer) -> Any:
    """ccxt's own Coinbase Exchange client, connected to a server on this machine."""
    exchange = ccxt.coinbaseexchange({"enableRateLimit": False, "timeout": 60_000})
    exchange.urls["api"] = {"public": httpserver.url_for("").rstrip("/"), "private": httpserver.url_for("").rstrip("/")}
    return exchange


@pytest.fixture
def coinbase(httpserver: HTTPServer, client: Any) -> Callable[..., ExchangeSource]:
    """A fake Coinbase Exchange: newest candle first, at most 300 candles, including the open one."""

    def candles(request: Request) -> Response:
        start, end = from_iso(request.args["start"]), from_iso(request.args["end"])
        assert request.args["granularity"] == "3600"
        if (end - start) / HOUR > MAX_PAGE_SIZE:
            return Response(json.dumps({"message": "granularity too small for the requested time range"}), status=400)
        visible_rows = MARKET.fetch(int(start), int(end) + 1, NOW + HOUR)
        rows = zip(
            visible_rows.time,
            visible_rows.low,
            visible_rows.high,
            visible_rows.open,
            visible_rows.close,
            visible_rows.volume,
            strict=True,
        )
        return Response(json.dumps([list(map(float, row)) for row in rows][::-1]), content_type="application/json")

    def make(*products: str, market: str | None = None, symbol: str = "btcusd") -> ExchangeSource:
        entries = [product(*name.split("/")) for name in products or ("BTC/USD", "ETH/USD", "BTC/USDT")]
        httpserver.expect_request("/currencies").respond_with_json([])
        httpserver.expect_request("/products").respond_with_json(entries)
        for entry in entries:
            httpserver.expect_request(f"/products/{entry['id']}/candles").respond_with_handler(candles)
        return ExchangeSource("coinbaseexchange", market, symbol, client)

    return make


@pytest.mark.parametrize("hours", [1, 300, 301, 1_000])
def test_exchange_pages_are_joined_complete_and_sorted(coinbase: Callable[..., ExchangeSource], hours: int) -> None:
    start = NOW - 90 - hours * HOUR
    candles = coinbase().fetch(start, NOW + 10 * HOUR, NOW)
    served = MARKET.fetch(start, NOW, NOW)
    for name in ("time", *COLUMNS):
        np.testing.assert_array_equal(getattr(candles, name), getattr(served, name))
    assert not candles.provenance.synthetic
    assert candles.provenance.source == "exchange:coinbaseexchange"


def test_exchange_history_before_listing_is_empty(coinbase: Callable[..., ExchangeSource], monkeypatch: Any) -> None:
    listing_time = NOW - 90 - 20 * HOUR
    fetch = MARKET.fetch
    monkeypatch.setattr(MARKET, "fetch", lambda start, end, now: fetch(start, end, now).between(listing_time, end))
    candles = coinbase().fetch(NOW - 1_000 * HOUR, NOW, NOW)
    assert candles.time[0] == listing_time
    assert len(candles) == 20


def test_exchange_without_dollar_market_uses_stablecoin_and_warns(
    coinbase: Callable[..., ExchangeSource], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(coinbase("BTC/USDT", "ETH/EUR").fetch(NOW - 90 - 5 * HOUR, NOW, NOW)) == 5
    assert "its BTC/USDT is used" in caplog.text


def test_exchange_unknown_market_suggests_close_names(coinbase: Callable[..., ExchangeSource]) -> None:
    with pytest.raises(NeedsHuman, match=r"no market 'BTC/USX'.*BTC/USD"):
        coinbase(market="BTC/USX").fetch(NOW - 5 * HOUR, NOW, NOW)
    with pytest.raises(NeedsHuman, match="no market 'dogeusd'"):
        coinbase(symbol="dogeusd").fetch(NOW - 5 * HOUR, NOW, NOW)


def test_exchange_unknown_name_suggests_close_names() -> None:
    with pytest.raises(NeedsHuman, match=r"no exchange 'krakken'.*kraken"):
        ExchangeSource("krakken", None, "btcusd").fetch(NOW - 5 * HOUR, NOW, NOW)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, "{}"),
        (503, "<html>down</html>"),
        (429, '{"message": "slow down"}'),
        (200, "<html>"),
        (200, "[["),
    ],
)
def test_exchange_server_error_is_retryable(httpserver: HTTPServer, client: Any, status: int, body: str) -> None:
    httpserver.expect_request("/currencies").respond_with_json([])
    httpserver.expect_request("/products").respond_with_json([product("BTC", "USD")])
    httpserver.expect_request("/products/BTC-USD/candles").respond_with_data(
        body, status, content_type="application/json"
    )
    with pytest.raises(RetryLater):
        ExchangeSource("coinbaseexchange", None, "btcusd", client).fetch(NOW - 5 * HOUR, NOW, NOW)


def test_exchange_unreachable_is_retryable(client: Any) -> None:
    client.urls["api"] = {"public": "http://127.0.0.1:9", "private": "http://127.0.0.1:9"}
    with pytest.raises(RetryLater, match="returned no candles"):
        ExchangeSource("coinbaseexchange", None, "btcusd", client).fetch(NOW - 5 * HOUR, NOW, NOW)


def test_exchange_proxy_password_is_redacted(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ccxt.NetworkError("cannot connect to https://user:p4ss@proxy.example:3128/")

    monkeypatch.setattr(client, "load_markets", fail)
    with pytest.raises(RetryLater, match=r"//proxy\.example") as error:
        ExchangeSource("coinbaseexchange", None, "btcusd", client).fetch(NOW - 5 * HOUR, NOW, NOW)
    assert "p4ss" not in str(error.value)
