"""The Tiingo source against the fake server: faults, retries, and the protection of the key."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from forecastd.clock import ReplayClock
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.market.candles import COLUMNS, HOUR
from forecastd.market.sources.fake_tiingo import FAULTS, FakeTiingo, TiingoFault
from forecastd.market.sources.sample import SampleSource
from forecastd.market.sources.tiingo import CHUNK_CANDLES, PRICES_PATH, TiingoSource

KEY = "s3cr3t-k3y"
NOW = 1_700_000_000 // HOUR * HOUR + 90
START = NOW - 90 - 408 * HOUR
Serve = Callable[..., AbstractContextManager[tuple[FakeTiingo, TiingoSource]]]


@pytest.fixture
def serve() -> Serve:
    @contextmanager
    def serve(*faults: str, key: str = KEY, deadline: float = 60.0) -> Iterator[tuple[FakeTiingo, TiingoSource]]:
        options = [TiingoFault.parse(text) for text in faults]
        with FakeTiingo(SampleSource("btcusd"), ReplayClock(NOW), key=KEY, faults=options) as server:
            yield server, TiingoSource("btcusd", key, server.url, deadline=deadline)

    return serve


@pytest.mark.parametrize("hours", [1, 408, CHUNK_CANDLES, CHUNK_CANDLES + 1, 3 * CHUNK_CANDLES - 1])
def test_tiingo_candles_equal_the_served_ones(serve: Serve, hours: int) -> None:
    start = NOW - 90 - hours * HOUR
    with serve() as (server, source):
        candles = source.fetch(start, NOW + 5 * HOUR, NOW)
        assert server.request_count == -(-hours // CHUNK_CANDLES)
    served = SampleSource("btcusd").fetch(start, NOW, NOW)
    for name in ("time", *COLUMNS):
        np.testing.assert_array_equal(getattr(candles, name), getattr(served, name))
    assert candles.provenance.synthetic, "synthetic candles stay synthetic"
    assert (candles.provenance.source, candles.provenance.fetched_at) == (source.name, NOW)


def test_tiingo_empty_range_sends_no_request(serve: Serve) -> None:
    with serve() as (server, source):
        assert len(source.fetch(NOW - 90, NOW + HOUR, NOW)) == 0
        assert server.request_count == 0


TRANSIENT_FAULTS = ["html", "truncated", "wrong-types", "broken", "slow", "hang", "rate-limit"]
HANGING_FAULTS = ("slow", "hang")


@pytest.mark.parametrize("fault", TRANSIENT_FAULTS)
def test_tiingo_transient_fault_is_retried(serve: Serve, fault: str) -> None:
    # A hanging attempt uses half of the deadline; the rest is for the next one.
    with serve(f"{fault}@first=1", deadline=8.0 if fault in HANGING_FAULTS else 60.0) as (server, source):
        assert len(source.fetch(START, NOW, NOW)) == 408
        assert server.request_count == 2


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("rate-limit", RetryLater, "request limit is used up"),
        ("rate-limit-long", RetryLater, "asks to wait 3600 s"),
        ("in-band", RetryLater, "hourly request allocation"),
        ("html", RetryLater, "a web page"),
        ("truncated", RetryLater, "truncated JSON"),
        ("wrong-types", RetryLater, "close is str"),
        ("slow", RetryLater, "did not answer in full"),
        ("hang", RetryLater, "did not answer in full"),
        ("huge", RetryLater, "more than 32 MB"),
        ("broken", RetryLater, "500"),
        ("unauthorized", NeedsHuman, "Set TIINGO_API_KEY"),
        ("redirect", NeedsHuman, "The key is not sent to another host"),
    ],
)
def test_tiingo_permanent_fault_raises_matching_error(
    serve: Serve, fault: str, error: type[Exception], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    deadline = 2.0 if fault in HANGING_FAULTS else 60.0
    with serve(fault, deadline=deadline) as (server, source), pytest.raises(error, match=message) as error_info:
        source.fetch(START, NOW, NOW)
    assert server.request_count <= 3
    assert KEY not in str(error_info.value) + caplog.text
    assert server.bytes_sent < 60 * 2**20


def test_tiingo_empty_response_gives_no_candles(serve: Serve) -> None:
    with serve("empty") as (_, source):
        assert len(source.fetch(START, NOW, NOW)) == 0


def test_fake_tiingo_every_fault_is_tested() -> None:
    assert set(FAULTS) == {*TRANSIENT_FAULTS, "rate-limit-long", "in-band", "huge", "unauthorized", "redirect", "empty"}


def test_tiingo_wrong_key_needs_a_person(serve: Serve) -> None:
    with serve(key="wrong") as (server, source), pytest.raises(NeedsHuman, match="refuses the key"):
        source.fetch(START, NOW, NOW)
    assert server.request_count == 1


def test_tiingo_unreachable_is_retryable() -> None:
    with pytest.raises(RetryLater, match="cannot be reached"):
        TiingoSource("btcusd", KEY, "http://127.0.0.1:9").fetch(START, NOW, NOW)


def test_tiingo_stop_event_ends_a_long_wait(serve: Serve) -> None:
    with serve("rate-limit") as (server, source):
        source.stop.set()
        with pytest.raises(RetryLater):
            source.fetch(START, NOW, NOW)
        assert server.request_count == 1


def test_tiingo_key_is_sent_in_header_only(httpserver: HTTPServer) -> None:
    httpserver.expect_request(PRICES_PATH).respond_with_json([])
    TiingoSource("btcusd", KEY, httpserver.url_for("")).fetch(START, NOW, NOW)
    request = httpserver.log[0][0]
    assert request.headers["Authorization"] == f"Token {KEY}"
    assert KEY not in request.url
    assert request.args["resampleFreq"] == "1hour"


def test_tiingo_key_echoed_by_server_is_redacted(httpserver: HTTPServer) -> None:
    httpserver.expect_request(PRICES_PATH).respond_with_json({"detail": f"bad {KEY}\x1b[2J"}, status=400)
    with pytest.raises(NeedsHuman) as error_info:
        TiingoSource("btcusd", KEY, httpserver.url_for("")).fetch(START, NOW, NOW)
    assert KEY not in str(error_info.value)
    assert "\x1b" not in str(error_info.value)


ROW = {"date": "2023-11-14T21:00:00+00:00", "open": 1, "high": 2, "low": 1, "close": 2, "volume": 3}


@pytest.mark.parametrize(
    "payload",
    [
        [{"ticker": "btcusd"}], [{"ticker": None, "priceData": []}], ["btcusd"], [7], 7, "text",
        [{"ticker": "btcusd", "priceData": [ROW | {"date": "yesterday"}]}],
        [{"ticker": "btcusd", "priceData": [ROW | {"date": "2023-11-14T21:00:00"}]}],
        [{"ticker": "btcusd", "priceData": [ROW | {"volume": [1]}]}],
        [{"ticker": "btcusd", "priceData": [ROW | {"close": True}]}],
        [{"ticker": "btcusd", "priceData": [ROW | {"close": 10**400}]}],
        [{"ticker": "btcusd", "priceData": [{}]}],
        [{"ticker": "btcusd", "priceData": {"a": 1}}],
    ],
)  # fmt: skip
def test_tiingo_unexpected_response_is_retryable(httpserver: HTTPServer, payload: object) -> None:
    httpserver.expect_request(PRICES_PATH).respond_with_data(json.dumps(payload))
    with pytest.raises(RetryLater):
        TiingoSource("btcusd", KEY, httpserver.url_for("")).fetch(START, NOW, NOW)


def test_tiingo_deeply_nested_json_is_retryable(httpserver: HTTPServer) -> None:
    httpserver.expect_request(PRICES_PATH).respond_with_data("[" * 200_000)
    with pytest.raises(RetryLater):
        TiingoSource("btcusd", KEY, httpserver.url_for("")).fetch(START, NOW, NOW)


def test_tiingo_extra_rows_are_dropped_and_null_is_nan(
    httpserver: HTTPServer,
) -> None:
    late = ROW | {"date": "2031-01-01T00:00:00+00:00"}
    series = [
        {"ticker": "ethusd", "priceData": [ROW]},
        {"ticker": "BTCUSD", "priceData": [late, ROW | {"volume": None}]},
    ]
    httpserver.expect_ordered_request(PRICES_PATH).respond_with_json(series)
    httpserver.expect_request(PRICES_PATH).respond_with_json([])
    candles = TiingoSource("btcusd", KEY, httpserver.url_for("")).fetch(START, NOW, NOW)
    assert candles.time.tolist() == [1_699_995_600]
    assert np.isnan(candles.volume[0])


def test_tiingo_one_candle_per_response_is_bounded(httpserver: HTTPServer) -> None:
    def respond(request: Request) -> Response:
        row = ROW | {"date": request.args["startDate"] + "+00:00"}
        return Response(json.dumps([{"ticker": "btcusd", "priceData": [row]}]))

    httpserver.expect_request(PRICES_PATH).respond_with_handler(respond)
    with pytest.raises(RetryLater, match="truncates its responses"):
        TiingoSource("btcusd", KEY, httpserver.url_for("")).fetch(START, NOW, NOW)


def test_tiingo_fetch_needs_neither_pandas_nor_proxy(serve: Serve) -> None:
    code = (
        "import sys; from forecastd.market.sources.tiingo import TiingoSource; "
        f"c = TiingoSource('btcusd', {KEY!r}, sys.argv[1]).fetch({START}, {NOW}, {NOW}); "
        "print(len(c), 'pandas' in sys.modules)"
    )
    with serve() as (server, _):
        environment = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
        result = subprocess.run(
            [sys.executable, "-c", code, server.url], capture_output=True, text=True, env=environment, check=True
        )
    assert result.stdout.split() == ["408", "False"]


@pytest.mark.parametrize("text", ["", "fire", "html@", "html@first", "html@first=0", "html@first=x", "html@last=2"])
def test_fake_tiingo_unknown_fault_lists_the_known(text: str) -> None:
    with pytest.raises(NeedsHuman, match="rate-limit"):
        TiingoFault.parse(text)


def test_fake_tiingo_faults_apply_by_request_number() -> None:
    assert [TiingoFault.parse("html@first=2").applies_to(number) for number in (1, 2, 3)] == [True, True, False]
    assert [TiingoFault.parse("html@every=2").applies_to(number) for number in (1, 2, 3, 4)] == [
        False,
        True,
        False,
        True,
    ]
    assert TiingoFault.parse("html").applies_to(99)


@pytest.mark.parametrize("url", ["https://user:p4ssw0rd@example.org", "http://user:p4ssw0rd@127.0.0.1:9"])
def test_tiingo_url_with_password_is_refused_unshown(url: str) -> None:
    with pytest.raises(NeedsHuman, match="user name or a password") as error_info:
        TiingoSource("btcusd", KEY, url)
    assert "p4ssw0rd" not in str(error_info.value)


@pytest.mark.parametrize("url", ["http://[::1", "https://example.org:port", "ftp://example.org", "https://", "x",
                                 "https://example.org/?token=abc"])  # fmt: skip
def test_tiingo_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(NeedsHuman, match="not a web address"):
        TiingoSource("btcusd", KEY, url)


def test_tiingo_retry_is_logged_in_one_sentence(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serve("html@first=1") as (_, source):
        source.fetch(START, NOW, NOW)
    messages = [record for record in caplog.records if not record.name.startswith("urllib3")]
    assert [(record.levelname, record.getMessage()) for record in messages] == [
        ("INFO", "Tiingo sent a web page instead of candles. Retrying.")
    ]
