"""`tiingo`: candles from Tiingo's crypto endpoint, or from a compatible server.

Invariant: the key is sent in the `Authorization` header only, to the configured host only, and is redacted from every
text that the server returns. Protocol: https://www.tiingo.com/documentation/crypto
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

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
    split_http_url,
)

TIINGO_HOST = "api.tiingo.com"
PRICES_PATH = "/tiingo/crypto/prices"
CHUNK_CANDLES = 2_000  # candles per request, about 400 kB
MAX_RETRY_AFTER = 5.0  # seconds; a longer `Retry-After` is not waited for within a request


class TiingoSource:
    """Hourly candles of one Tiingo ticker.

    `deadline`: seconds per request, for all attempts together. Setting `stop` ends a wait at once.
    """

    step = HOUR
    synthetic = False  # the fake server marks synthetic candles in its responses
    local = False

    def __init__(
        self, ticker: str, key: str | None, url: str = f"https://{TIINGO_HOST}", *, deadline: float = DEFAULT_DEADLINE
    ) -> None:
        host, scheme = _parse_url(url)
        is_local = is_loopback(host)
        if scheme == "http" and not is_local:
            raise NeedsHuman(f"TIINGO_URL is plain http to {host}: the key could be intercepted. Use https.")
        if key is None and not is_local:
            raise NeedsHuman("TIINGO_API_KEY is not set. Get a key at https://www.tiingo.com/account/api/token.")
        if key is not None and not re.fullmatch(r"[!-~]+", key):
            raise NeedsHuman("TIINGO_API_KEY contains spaces or invalid characters. Copy it again.")
        if not re.fullmatch(r"[a-z0-9]{3,24}", ticker):
            raise NeedsHuman(f"{ticker!r} is not a Tiingo ticker; a ticker looks like btcusd.")
        self.symbol = ticker
        self.name = f"tiingo:{ticker}" + ("" if host == TIINGO_HOST else f"@{host_and_port(url)}")
        self.stop = threading.Event()
        self._url = url.rstrip("/") + PRICES_PATH
        self._key = key
        self._deadline = deadline

    def fetch(self, start: int, end: int, now: float) -> Candles:
        """See `Source.fetch`. Requests chunks; continues after the last candle when the server truncates a response.

        Raises:
            RetryLater: every attempt failed: unreachable, over the rate limit, or an incomplete response.
            NeedsHuman: the server refuses the key or the request.
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
                raise RetryLater(
                    f"{self.name} truncates its responses too much: {request_count} requests were not enough."
                )
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
        """Raise for every response that is not data; the error class tells the caller what to do next."""
        host = host_and_port(self._url)
        detail = self._detail(response.body)
        rate_limit = re.search(r"allocation|rate limit|too many", detail, re.IGNORECASE)
        if response.status == 429 or rate_limit:
            raise _rate_limit_error(_retry_after_seconds(response.headers.get("retry-after"), now), detail)
        if response.status in {401, 403} or re.search(r"invalid token|authentication", detail, re.IGNORECASE):
            raise NeedsHuman(f"{host} refuses the key{_quote_detail(detail)}. Set TIINGO_API_KEY to a valid one.")
        if 300 <= response.status < 400:
            raise NeedsHuman(f"{host} redirects the request. The key is not sent to another host; correct TIINGO_URL.")
        if 400 <= response.status < 500:
            raise NeedsHuman(
                f"{host} refuses the request with status {response.status}{_quote_detail(detail)}. "
                f"Check the ticker {self.symbol}."
            )
        if response.status != 200:
            raise TransientHttpError(f"{host} returned status {response.status}{_quote_detail(detail)}.")
        if detail:
            raise RetryLater(f"{host} returned no candles{_quote_detail(detail)}.")

    def _detail(self, body: bytes) -> str:
        """The printable text of an error object, with the key redacted; empty when the body is something else."""
        if body.lstrip()[:1] != b"{":
            return ""
        try:
            detail = json.loads(body).get("detail", "an object without candles")
        except (ValueError, RecursionError):
            return ""
        text = "".join(letter if letter.isprintable() else " " for letter in str(detail))[:200]
        return text.replace(self._key, "***") if self._key else text

    def _parse_body(self, body: bytes) -> tuple[bool, list[tuple[int, list[float]]]]:
        """Whether the server marks the candles as synthetic, and the rows. Raises TransientHttpError if unreadable."""
        try:
            response = json.loads(body)
        except (ValueError, RecursionError):
            is_html = body.lstrip()[:1] == b"<"
            raise TransientHttpError(
                f"Tiingo sent {'a web page' if is_html else 'truncated JSON'} instead of candles."
            ) from None
        try:
            matches = [series for series in response if series["ticker"].lower() == self.symbol]
            rows = [_parse_row(row) for series in matches for row in series["priceData"]]
            return any(series.get("synthetic") is True for series in matches), rows
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
            raise TransientHttpError(f"Tiingo sent unreadable candles ({type(error).__name__}: {error}).") from None


def _parse_url(url: str) -> tuple[str, str]:
    """Host and scheme of `TIINGO_URL`. Refuses a user name or password, which messages would show."""
    parts = split_http_url(url)
    if parts is None or parts.query or parts.fragment:
        raise NeedsHuman("TIINGO_URL is not a web address. Leave it unset for Tiingo itself.")
    if "@" in parts.netloc:
        raise NeedsHuman("TIINGO_URL contains a user name or a password. Remove it; the key belongs in TIINGO_API_KEY.")
    return parts.hostname or "", parts.scheme


def _rate_limit_error(seconds: float | None, detail: str) -> RetryLater:
    """The error for a rate limit; transient when it ends within `MAX_RETRY_AFTER`."""
    text = f"Tiingo's request limit is used up{_quote_detail(detail)}."
    if seconds is None:
        return RetryLater(text)
    if seconds <= MAX_RETRY_AFTER:
        return TransientHttpError(text, retry_after=seconds)
    return RetryLater(f"{text} Tiingo asks to wait {seconds:.0f} s.")


def _parse_row(row: dict[str, Any]) -> tuple[int, list[float]]:
    values = [row[name] for name in COLUMNS]
    for name, value in zip(COLUMNS, values, strict=True):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise TypeError(f"{name} is {type(value).__name__}")
    moment = datetime.fromisoformat(row["date"])
    if moment.tzinfo is None:
        raise ValueError("a date without an offset")
    # A null price becomes NaN, which the candle checks report; the rest of the response is still valid.
    return int(moment.timestamp()), [float("nan") if value is None else float(value) for value in values]


def _retry_after_seconds(retry_after: str | None, now: float) -> float | None:
    """Parse `Retry-After` (RFC 9110, 10.2.3) into seconds from now; None when it is missing or unreadable."""
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
