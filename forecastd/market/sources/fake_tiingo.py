"""A fake Tiingo server for demos, tests and benchmarks: the same path and JSON, over a real socket.

It serves the candles of any source and marks synthetic ones, so that they stay synthetic for the client. Faults are
selected by name and request number, so that runs are reproducible.
"""

from __future__ import annotations

import hmac
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from forecastd.clock import Clock, from_iso
from forecastd.errors import ForecastdError, NeedsHuman
from forecastd.market.candles import Candles
from forecastd.market.sources.base import Source
from forecastd.market.sources.tiingo import PRICES_PATH
from forecastd.runtime.closeable import Closeable
from forecastd.settings import Settings

MAX_RESPONSE_ROWS = 5_000  # candles per response; a longer range is truncated
HUGE_BODY_BYTES = 100 * 2**20
DRIP_SECONDS = 0.25  # seconds between two bytes of a slow response

FAULTS = {
    "rate-limit": "429 with a Retry-After of one second",
    "rate-limit-long": "429 with a Retry-After of an hour",
    "in-band": "200 with the rate-limit error in the body",
    "html": "200 with a web page",
    "truncated": "200 with truncated JSON",
    "wrong-types": "200 with text instead of numbers",
    "slow": "200, one byte every quarter of a second",
    "hang": "the request is accepted but never answered",
    "huge": "200 with 100 MB",
    "unauthorized": "401",
    "redirect": "302 to another host",
    "broken": "500",
    "empty": "200 with no series at all",
}


@dataclass(frozen=True)
class TiingoFault:
    """A fault and the requests that get it: the `first` N, every `every`-th, or all when neither is set."""

    name: str
    first: int | None = None
    every: int | None = None

    @classmethod
    def parse(cls, text: str) -> TiingoFault:
        """Parse `html`, `html@first=2` or `html@every=3`.

        Raises:
            NeedsHuman: there is no such fault, or the form is wrong.
        """
        name, separator, rule = text.partition("@")
        kind, _, number = rule.partition("=")
        if name not in FAULTS or (separator and not (kind in {"first", "every"} and number.isdigit() and int(number))):
            raise NeedsHuman(
                f"{text!r} is not a fault. Write NAME, NAME@first=N or NAME@every=N. "
                f"NAME is one of: {', '.join(FAULTS)}."
            )
        return cls(name, **({kind: int(number)} if rule else {}))

    def applies_to(self, number: int) -> bool:
        """Whether the request with this number (from 1) gets the fault."""
        if self.first is not None:
            return number <= self.first
        return self.every is None or number % self.every == 0


class FakeTiingo(Closeable):
    """The server; it runs in its own thread inside a `with` block.

    `request_count` and `bytes_sent` (headers and bodies) count requests and responses.
    """

    def __init__(
        self,
        source: Source,
        clock: Clock,
        *,
        key: str | None = None,
        faults: Sequence[TiingoFault] = (),
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.source = source
        self.clock = clock
        self.key = key
        self.faults = tuple(faults)
        self.request_count = 0
        self.bytes_sent = 0
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        try:
            self._server = _FakeTiingoServer((host, port), _FakeTiingoHandler)
        except OSError as error:
            raise NeedsHuman(f"Cannot listen on {host}:{port}: {error.strerror}. Choose another --port.") from None
        self._server.fake = self
        self.url = f"http://{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="fake tiingo", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def next_fault(self) -> str | None:
        """Count a request and return the fault it gets, if any."""
        with self.lock:
            self.request_count += 1
            return next((fault.name for fault in self.faults if fault.applies_to(self.request_count)), None)


def require_api_key(settings: Settings) -> str:
    """The API key that clients must send.

    Raises:
        NeedsHuman: no key is set.
    """
    if settings.source.tiingo_api_key is None:
        raise NeedsHuman("TIINGO_API_KEY is not set. Set the key that the server requires; any text is allowed.")
    return settings.source.tiingo_api_key.get_secret_value()


class _FakeTiingoServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    fake: FakeTiingo


class _FakeTiingoHandler(BaseHTTPRequestHandler):
    server: _FakeTiingoServer
    timeout = 30

    def do_GET(self) -> None:
        fake = self.server.fake
        fault = fake.next_fault()
        try:
            if fault is not None and fault not in {"truncated", "wrong-types", "slow"}:
                self._send_fault(fault)
                return
            status, payload = self._respond()
            body = json.dumps(payload, separators=(",", ":")).encode()
            if fault == "truncated":
                body = body[: len(body) * 2 // 3]
            if fault == "wrong-types":
                body = body.replace(b'"close":', b'"close":"n/a","was":')
            self._send(status, body, drip=fault == "slow")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has given up, as expected

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Log nothing; the counters are enough."""

    def _respond(self) -> tuple[int, object]:
        fake = self.server.fake
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        rejection = self._reject(url.path, query)
        if rejection is not None:
            return rejection[0], {"detail": rejection[1]}
        now = fake.clock.now()
        try:
            end = from_iso(query["endDate"]) if "endDate" in query else now
            start = from_iso(query["startDate"]) if "startDate" in query else end - 86_400
            candles = fake.source.fetch(int(start), int(end) + 1, now)
        except ValueError:
            return 400, {"detail": "startDate and endDate are ISO 8601 times."}
        except ForecastdError as error:
            return 500, {"detail": str(error)}
        return 200, to_tiingo_series(candles) if query.get("tickers", "").lower() == candles.symbol else []

    def _reject(self, path: str, query: dict[str, str]) -> tuple[int, str] | None:
        """Status and message for a request that is not a valid request for candles; None for a valid one."""
        key = self.server.fake.key
        authorization = self.headers.get("Authorization", "")
        if key is not None and not hmac.compare_digest(authorization.encode(), f"Token {key}".encode()):
            return 401, "Invalid token."
        if path != PRICES_PATH:
            return 404, "Not found."
        if query.get("resampleFreq") not in {"1hour", "60min"}:
            return 400, "This server has hourly candles only: resampleFreq=1hour."
        return None

    def _send_fault(self, fault: str) -> None:
        limit = {"detail": "Error: You have run over your hourly request allocation. Please upgrade."}
        page = b"<!DOCTYPE html><html><body><h1>Checking your browser</h1></body></html>"
        if fault == "hang":
            self.server.fake.stopping.wait(60)
            self.close_connection = True
        elif fault == "huge":
            self._send(200, b"[" + b" " * (HUGE_BODY_BYTES - 1))
        elif fault == "html":
            self._send(200, page, {"Content-Type": "text/html"})
        elif fault == "redirect":
            self._send(302, b"", {"Location": "https://example.invalid/"})
        else:
            status, payload, headers = {
                "rate-limit": (429, limit, {"Retry-After": "1"}),
                "rate-limit-long": (429, limit, {"Retry-After": "3600"}),
                "in-band": (200, limit, {}),
                "unauthorized": (401, {"detail": "Invalid token."}, {}),
                "broken": (500, {"detail": "A server error occurred."}, {}),
                "empty": (200, [], {}),
            }[fault]
            self._send(status, json.dumps(payload).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, drip: bool = False) -> None:
        fields = {"Content-Type": "application/json", **(headers or {}), "Content-Length": str(len(body))}
        lines = [
            f"HTTP/1.0 {status} {HTTPStatus(status).phrase}",
            *(f"{name}: {text}" for name, text in fields.items()),
        ]
        head = "\r\n".join([*lines, "", ""]).encode()
        self._write(head)
        for offset in range(0, len(body), 1 if drip else 2**20):
            self._write(body[offset : offset + (1 if drip else 2**20)])
            if drip and self.server.fake.stopping.wait(DRIP_SECONDS):
                break

    def _write(self, chunk: bytes) -> None:
        with self.server.fake.lock:  # before the write, so that a client that has read the response sees it counted
            self.server.fake.bytes_sent += len(chunk)
        self.wfile.write(chunk)


def to_tiingo_series(candles: Candles) -> list[dict[str, object]]:
    """Candles as Tiingo's JSON."""
    symbol = candles.symbol
    columns = zip(candles.time.tolist(), *(column.tolist() for column in candles.columns), strict=True)
    data = [
        {
            "date": datetime.fromtimestamp(time, tz=UTC).isoformat(),
            "open": open_,
            "high": high,
            "low": low,
            "close": close,
            "volume": volume,
            "volumeNotional": round(volume * close, 4),
            "tradesDone": float(round(volume)),
        }
        for (time, open_, high, low, close, volume), _ in zip(columns, range(MAX_RESPONSE_ROWS), strict=False)
    ]
    quote = symbol[3:] if len(symbol) > 3 else symbol
    result: dict[str, object] = {
        "ticker": symbol,
        "baseCurrency": symbol[:3],
        "quoteCurrency": quote,
        "priceData": data,
    }
    return [result | ({"synthetic": True} if candles.provenance.synthetic else {})]
