"""`exchange:NAME[:SYMBOL]`: candles from any exchange that ccxt supports, without a key.

Invariant: a range is fetched page by page, each page after the last candle received, because exchanges differ in page
size and in how far back they go.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import logging
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from forecastd.errors import NeedsHuman, RetryLater, require_extra
from forecastd.market.candles import COLUMNS, HOUR, Candles, Provenance, repair
from forecastd.runtime.http import DEFAULT_DEADLINE, TransientHttpError, retry_transient, run_with_timeout

log = logging.getLogger(__name__)

PAGE_SIZE = 300  # candles per request; an exchange that returns fewer needs more requests
MIN_PAGE_SIZE = 100  # the smallest page of any exchange; an empty response is trusted for this many candles
MAX_PAGES = 1_000
TIMEOUT_MS = 10_000
MARKETS_DEADLINE = 30.0  # seconds for all attempts; an exchange's list of markets can be several megabytes
# ccxt parses responses with plain indexing, so an unexpected shape raises one of these.
PARSE_ERRORS = (TypeError, ValueError, KeyError, IndexError, AttributeError)
STABLECOINS = {"USD": ("USD", "USDT", "USDC")}  # substitutes, with a warning, when an exchange has no dollar market


class ExchangeSource:
    """Hourly candles of one market of one exchange. `client`: a ccxt exchange to use instead of a new one.

    Raises:
        NeedsHuman: ccxt is not installed.
    """

    step = HOUR
    synthetic = False
    local = False

    def __init__(self, exchange: str, market: str | None, symbol: str, client: Any = None) -> None:
        require_extra("exchange", f"The source exchange:{exchange}")
        self.exchange = exchange
        self.market = market  # in ccxt's spelling: "BTC/USD"; None: the market that matches `symbol`
        self.symbol = re.sub(r"[^a-z0-9]", "", market.lower()) if market else symbol
        self.name = f"exchange:{exchange}" + (f":{market}" if market else "")
        self.stop = threading.Event()  # setting it ends a wait at once
        self._client = client

    def fetch(self, start: int, end: int, now: float) -> Candles:
        """See `Source.fetch`.

        Raises:
            RetryLater: the exchange is unreachable, limits requests, or returns something unreadable.
            NeedsHuman: there is no such exchange or market, or it has no hourly candles.
        """
        import ccxt

        step = self.step
        start, end = -(-start // step) * step, min(-(-end // step) * step, int(now // step) * step)
        try:
            rows = self._fetch_pages(start, end) if start < end else []
        except ccxt.BadSymbol:
            raise NeedsHuman(
                f"{self.exchange} has no market {self.market}. Choose another market or exchange."
            ) from None
        except (ccxt.AuthenticationError, ccxt.PermissionDenied) as error:
            raise NeedsHuman(
                f"{self.exchange} refuses requests from this location ({_shorten_error(error)}). Use another exchange."
            ) from None
        except (ccxt.BaseError, *PARSE_ERRORS) as error:
            raise RetryLater(
                f"{self.exchange} returned no candles ({_shorten_error(error)}). Try again later."
            ) from None
        rows = [row for row in rows if start <= row[0] // 1000 < end]
        digest = hashlib.sha256(repr(rows).encode())  # ccxt returns parsed rows, not bytes
        time = np.array([row[0] // 1000 for row in rows], dtype=np.int64)
        table = np.array([[_to_float(value) for value in row[1:6]] for row in rows]).reshape(-1, len(COLUMNS))
        origin = Provenance(self.name, now, digest.hexdigest(), synthetic=False)
        return repair(Candles.from_table(self.symbol, step, time, table, origin))

    def _fetch_pages(self, start: int, end: int) -> list[list[Any]]:
        client = self._open_client()
        markets = retry_transient(lambda seconds: self._call(seconds, client.load_markets), MARKETS_DEADLINE, self.stop)
        market = self._resolve_market(markets)
        rows: list[list[Any]] = []
        since = start * 1000
        for _ in range(MAX_PAGES):
            limit = min(PAGE_SIZE, (end * 1000 - since) // (self.step * 1000) + 1)
            fetch_page = functools.partial(self._fetch_page, client, market, since, limit)
            page = [row for row in retry_transient(fetch_page, DEFAULT_DEADLINE, self.stop) if row[0] >= since]
            rows.extend(page)
            # An empty page: the market was closed or not listed yet, and may have candles later.
            last_empty_time = since + (min(limit, MIN_PAGE_SIZE) - 1) * self.step * 1000
            since = max((row[0] for row in page), default=last_empty_time) + self.step * 1000
            if since >= end * 1000:
                return rows
        raise RetryLater(f"{self.exchange} returns too few candles per request for this range. Request a shorter one.")

    def _fetch_page(self, client: Any, market: str, since: int, limit: int, seconds: float) -> list[list[Any]]:
        client.enableLastJsonResponse, client.last_json_response = True, None
        page = self._call(seconds, lambda: client.fetch_ohlcv(market, "1h", since=since, limit=limit))
        if client.last_json_response is None:  # ccxt treats a web page as an empty response
            raise TransientHttpError(f"{self.exchange} sent something that is not JSON.")
        return list(page)

    def _call(self, seconds: float, work: Callable[[], Any]) -> Any:
        import ccxt

        try:
            return run_with_timeout(seconds, self.exchange, lambda _: work(), (ccxt.BaseError, *PARSE_ERRORS))
        except ccxt.NetworkError as error:
            raise TransientHttpError(
                f"{self.exchange} returned no candles ({_shorten_error(error)}). Check the network."
            ) from None

    def _open_client(self) -> Any:
        import ccxt

        if self._client is None:
            if self.exchange not in ccxt.exchanges:
                raise NeedsHuman(_unknown_name_message("exchange", self.exchange, ccxt.exchanges))
            self._client = getattr(ccxt, self.exchange)({"enableRateLimit": True, "timeout": TIMEOUT_MS})
        if not self._client.has.get("fetchOHLCV") or "1h" not in (self._client.timeframes or {}):
            raise NeedsHuman(f"{self.exchange} has no hourly candles. Use another exchange.")
        return self._client

    def _resolve_market(self, markets: dict[str, Any]) -> str:
        if self.market is not None:
            if self.market not in markets:
                raise NeedsHuman(_unknown_name_message("market", self.market, list(markets), f" on {self.exchange}"))
            return self.market
        for quote, substitutes in STABLECOINS.items():
            if self.symbol.endswith(quote.lower()):
                base = self.symbol[: -len(quote)].upper()
                match = next((f"{base}/{name}" for name in substitutes if f"{base}/{name}" in markets), None)
                if match is not None:
                    if match != f"{base}/{quote}":
                        log.warning("%s has no %s/%s; its %s is used", self.exchange, base, quote, match)
                    self.market = match
                    return match
        for name in markets:
            if re.sub(r"[^a-z0-9]", "", name.lower()) == self.symbol:
                return str(name)
        raise NeedsHuman(_unknown_name_message("market", self.symbol, list(markets), f" on {self.exchange}"))


def _unknown_name_message(kind: str, name: str, names: list[str], place: str = "") -> str:
    matches = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    hint = f" Similar names: {', '.join(matches)}." if matches else ""
    return f"There is no {kind} {name!r}{place}.{hint}"


def _to_float(value: object) -> float:
    """Convert a value; a missing one becomes NaN, which the candle checks report."""
    return float(value) if isinstance(value, int | float) else float("nan")


def _shorten_error(error: Exception) -> str:
    """Format a ccxt error on one line, and remove the user name and password of a proxy's URL."""
    text = re.sub(r"//[^/@\s]*@", "//", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:160]}"
