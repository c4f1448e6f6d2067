"""`tiingo`: candles from Tiingo's crypto endpoint, or from anything that speaks like it.

The one thing to know before changing it: the key travels in the `Authorization` header only, to the configured host only,
and is cut out of every text that the server sends back. Protocol: https://www.tiingo.com/documentation/crypto
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from forecastd.clock import to_iso
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.market.candles import COLUMNS, HOUR, Candles, Provenance, repair
from forecastd.runtime.http import (
    DEFAULT_DEADLINE,
    HttpResponse,
    TransientHttpError,
    fetch_url,
    host_and_port,
    is_loopback,
    retry_transient,
)

TIINGO_HOST = "api.tiingo.com"
PRICES_PATH = "/tiingo/crypto/prices"
CHUNK_CANDLES = 2_000  # candles asked for in one request, about 400 kB
MAX_RETRY_AFTER = 5.0  # seconds: the longest `Retry-After` that is waited for here, within the deadline of the request


class TiingoSource:
    """One ticker of Tiingo, hourly. `deadline`: seconds a request may take, all attempts together. Setting `stop` ends
    a wait at once.
    """

    step = HOUR
    synthetic = False  # the fake server says so in its answers when it serves made-up candles
    local = False

    def __init__(
        self, ticker: str, key: str | None, url: str = f"https://{TIINGO_HOST}", *, deadline: float = DEFAULT_DEADLINE
    ) -> None:
        host, scheme = _parse_url(url)
        is_local = is_loopback(host)
        if scheme == "http" and not is_local:
            raise NeedsHuman(f"TIINGO_URL is plain http to {host}: the key could be read on the way. Use https.")
        if key is None and not is_local:
            raise NeedsHuman("TIINGO_API_KEY is not set. Get a key at https://www.tiingo.com/account/api/token.")
        if key is not None and not re.fullmatch(r"[!-~]+", key):
            raise NeedsHuman("TIINGO_API_KEY holds spaces or characters that no key has. Copy it again.")
        if not re.fullmatch(r"[a-z0-9]{3,24}", ticker):
            raise NeedsHuman(f"{ticker!r} is no Tiingo ticker; they look like btcusd.")
        self.symbol = ticker
        self.name = f"tiingo:{ticker}" + ("" if host == TIINGO_HOST else f"@{host_and_port(url)}")
        self.stop = threading.Event()
        self._url = url.rstrip("/") + PRICES_PATH
        self._key = key
        self._deadline = deadline

    def fetch(self, start: int, end: int, now: float) -> Candles:
        """See `Source.fetch`. Asks in chunks, and goes on behind the last candle where the server cuts an answer short.

        Raises:
            RetryLater: not reachable, over the limit, or an answer that is not whole, at every attempt.
            NeedsHuman: the key is refused, or the request is.
        """
        step = self.step
        start, end = -(-start // step) * step, min(-(-end // step) * step, int(now // step) * step)
        rows: list[tuple[int, list[float]]] = []
        digest = hashlib.sha256()
        synthetic = False
        cursor, request_count, max_requests = start, 0, 10 + 4 * (end - start) // (CHUNK_CANDLES * step)
        while cursor < end:
            chunk_end = min(end, cursor + CHUNK_CANDLES * step)
            body, chunk_synthetic, chunk_rows = self._request_chunk(cursor, chunk_end, now)
            digest.update(body)
            synthetic |= chunk_synthetic
            chunk_rows = [row for row in chunk_rows if cursor <= row[0] < chunk_end]
            rows.extend(chunk_rows)
            cursor = max((row[0] + step for row in chunk_rows), default=chunk_end)
            request_count += 1
            if request_count > max_requests:
                raise RetryLater(f"{self.name} cuts its answers too short: {request_count} requests were not enough.")
        time = np.array([row[0] for row in rows], dtype=np.int64)
        table = np.array([row[1] for row in rows], dtype=np.float64).reshape(-1, len(COLUMNS))
        origin = Provenance(self.name, now, digest.hexdigest(), synthetic)
        return repair(Candles.from_table(self.symbol, step, time, table, origin))

    def _request_chunk(self, start: int, end: int, now: float) -> tuple[bytes, bool, list[tuple[int, list[float]]]]:
        params = {
            "tickers": self.symbol,
            "resampleFreq": "1hour",
            "startDate": to_iso(start).rstrip("Z"),
            "endDate": to_iso(end - self.step).rstrip("Z"),
        }
        headers = {} if self._key is None else {"Authorization": f"Token {self._key}"}

        def attempt(seconds: float) -> tuple[bytes, bool, list[tuple[int, list[float]]]]:
            response = fetch_url(self._url, params, headers, seconds)
            self._require_ok(response, now)
            return (response.body, *self._parse_body(response.body))

        return retry_transient(attempt, self._deadline, self.stop)

    def _require_ok(self, response: HttpResponse, now: float) -> None:
        """Raise for every answer that is not data, by what can be done about it."""
        host = host_and_port(self._url)
        detail = self._detail(response.body)
        rate_limit = re.search(r"allocation|rate limit|too many", detail, re.IGNORECASE)
        if response.status == 429 or rate_limit:
            raise _rate_limit_error(_retry_after_seconds(response.headers.get("retry-after"), now), detail)
        if response.status in {401, 403} or re.search(r"invalid token|authentication", detail, re.IGNORECASE):
            raise NeedsHuman(f"{host} refuses the key{_quote_detail(detail)}. Set TIINGO_API_KEY to a valid one.")
        if 300 <= response.status < 400:
            raise NeedsHuman(f"{host} sends the request elsewhere. The key does not follow; correct TIINGO_URL.")
        if 400 <= response.status < 500:
            raise NeedsHuman(
                f"{host} refuses the request with {response.status}{_quote_detail(detail)}. Look at the ticker {self.symbol}."
            )
        if response.status != 200:
            raise TransientHttpError(f"{host} has a fault of its own: {response.status}{_quote_detail(detail)}.")
        if detail:
            raise RetryLater(f"{host} gives no candles{_quote_detail(detail)}.")

    def _detail(self, body: bytes) -> str:
        """The text of an error object, made harmless to show; empty where the body is something else."""
        if body.lstrip()[:1] != b"{":
            return ""
        try:
            detail = json.loads(body).get("detail", "an object without candles")
        except (ValueError, RecursionError):
            return ""
        text = "".join(letter if letter.isprintable() else " " for letter in str(detail))[:200]
        return text.replace(self._key, "***") if self._key else text

    def _parse_body(self, body: bytes) -> tuple[bool, list[tuple[int, list[float]]]]:
        """Whether the server says that the candles are made up, and the rows. Raises Passing for all that is not whole."""
        try:
            response = json.loads(body)
        except (ValueError, RecursionError):
            is_html = body.lstrip()[:1] == b"<"
            raise TransientHttpError(
                f"Tiingo sent {'a web page' if is_html else 'JSON that is cut off'} instead of candles."
            ) from None
        try:
            matches = [series for series in response if series["ticker"].lower() == self.symbol]
            rows = [_parse_row(row) for series in matches for row in series["priceData"]]
            return any(series.get("synthetic") is True for series in matches), rows
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
            raise TransientHttpError(
                f"Tiingo sent candles that cannot be read ({type(error).__name__}: {error})."
            ) from None


def _parse_url(url: str) -> tuple[str, str]:
    """Host and scheme of `TIINGO_URL`. A user name or password in it would be shown wherever the address is."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in {"http", "https"} or parts.query or parts.fragment:
        raise NeedsHuman("TIINGO_URL is no web address. Leave it unset for Tiingo itself.")
    if "@" in parts.netloc:
        raise NeedsHuman("TIINGO_URL holds a user name or a password. Remove it; the key belongs in TIINGO_API_KEY.")
    return host, parts.scheme


def _rate_limit_error(seconds: float | None, detail: str) -> RetryLater:
    """The error for a request limit; one that passes within `PATIENCE` is waited for."""
    text = f"Tiingo's request limit is used up{_quote_detail(detail)}."
    if seconds is None:
        return RetryLater(text)
    if seconds <= MAX_RETRY_AFTER:
        return TransientHttpError(text, retry_after=seconds)
    return RetryLater(f"{text} It asks to wait {seconds:.0f} s.")


def _parse_row(row: dict[str, Any]) -> tuple[int, list[float]]:
    values = [row[name] for name in COLUMNS]
    for name, value in zip(COLUMNS, values, strict=True):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise TypeError(f"{name} is {type(value).__name__}")
    moment = datetime.fromisoformat(row["date"])
    if moment.tzinfo is None:
        raise ValueError("a date without an offset")
    # A price of null is for the checks to name: the rest of the answer is still good.
    return int(moment.timestamp()), [float("nan") if value is None else float(value) for value in values]


def _retry_after_seconds(retry_after: str | None, now: float) -> float | None:
    """`Retry-After` (RFC 9110, 10.2.3) as seconds from now; None where there is none that can be read."""
    if retry_after is None:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after.strip()[:9])
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - now)
    except ValueError:
        return None


def _quote_detail(detail: str) -> str:
    return f' and says "{detail.rstrip(".")}"' if detail else ""
