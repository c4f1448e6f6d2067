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

from forecastd.candles import COLUMNS, HOUR
from forecastd.clock import ReplayClock
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.sources.faketiingo import FAULTS, FakeTiingo, Fault
from forecastd.sources.sample import SampleSource
from forecastd.sources.tiingo import CHUNK, PATH, TiingoSource

KEY = "s3cr3t-k3y"
NOW = 1_700_000_000 // HOUR * HOUR + 90
START = NOW - 90 - 408 * HOUR
Serve = Callable[..., AbstractContextManager[tuple[FakeTiingo, TiingoSource]]]


@pytest.fixture
def serve() -> Serve:
    @contextmanager
    def serve(*faults: str, key: str = KEY, deadline: float = 60.0) -> Iterator[tuple[FakeTiingo, TiingoSource]]:
        chosen = [Fault.parse(text) for text in faults]
        with FakeTiingo(SampleSource("btcusd"), ReplayClock(NOW), key=KEY, faults=chosen) as server:
            yield server, TiingoSource("btcusd", key, server.url, deadline=deadline)

    return serve


@pytest.mark.parametrize("hours", [1, 408, CHUNK, CHUNK + 1, 3 * CHUNK - 1])
def test_candles_arrive_as_they_were_served(serve: Serve, hours: int) -> None:
    start = NOW - 90 - hours * HOUR
    with serve() as (server, source):
        candles = source.fetch(start, NOW + 5 * HOUR, NOW)
        assert server.requests == -(-hours // CHUNK)
    served = SampleSource("btcusd").fetch(start, NOW, NOW)
    for name in ("time", *COLUMNS):
        np.testing.assert_array_equal(getattr(candles, name), getattr(served, name))
    assert candles.provenance.synthetic, "what was made up there is made up here"
    assert (candles.provenance.source, candles.provenance.fetched_at) == (source.name, NOW)


def test_nothing_is_asked_for_nothing(serve: Serve) -> None:
    with serve() as (server, source):
        assert len(source.fetch(NOW - 90, NOW + HOUR, NOW)) == 0
        assert server.requests == 0


PASSING = ["html", "truncated", "wrong-types", "broken", "slow", "hang", "rate-limit"]
HANGING = ("slow", "hang")


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_is_passed(serve: Serve, fault: str) -> None:
    # An attempt that hangs costs half of it, and the rest is for the next one.
    with serve(f"{fault}@first=1", deadline=8.0 if fault in HANGING else 60.0) as (server, source):
        assert len(source.fetch(START, NOW, NOW)) == 408
        assert server.requests == 2


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        ("rate-limit", RetryLater, "request limit is used up"),
        ("rate-limit-long", RetryLater, "asks to wait 3600 s"),
        ("in-band", RetryLater, "hourly request allocation"),
        ("html", RetryLater, "a web page"),
        ("truncated", RetryLater, "cut off"),
        ("wrong-types", RetryLater, "close is str"),
        ("slow", RetryLater, "did not answer in full"),
        ("hang", RetryLater, "did not answer in full"),
        ("huge", RetryLater, "more than 32 MB"),
        ("broken", RetryLater, "500"),
        ("unauthorized", NeedsHuman, "Set TIINGO_API_KEY"),
        ("redirect", NeedsHuman, "The key does not follow"),
    ],
)
def test_a_fault_that_stays_is_told_by_what_to_do(
    serve: Serve, fault: str, error: type[Exception], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    deadline = 2.0 if fault in HANGING else 60.0
    with serve(fault, deadline=deadline) as (server, source), pytest.raises(error, match=says) as caught:
        source.fetch(START, NOW, NOW)
    assert server.requests <= 3
    assert KEY not in str(caught.value) + caplog.text
    assert server.bytes_sent < 60 * 2**20


def test_an_answer_without_any_series_is_no_candles(serve: Serve) -> None:
    with serve("empty") as (_, source):
        assert len(source.fetch(START, NOW, NOW)) == 0


def test_every_fault_of_the_server_is_tried_here() -> None:
    assert set(FAULTS) == {*PASSING, "rate-limit-long", "in-band", "huge", "unauthorized", "redirect", "empty"}


def test_a_wrong_key_needs_a_person(serve: Serve) -> None:
    with serve(key="wrong") as (server, source), pytest.raises(NeedsHuman, match="refuses the key"):
        source.fetch(START, NOW, NOW)
    assert server.requests == 1


def test_no_server_is_a_passing_fault() -> None:
    with pytest.raises(RetryLater, match="cannot be reached"):
        TiingoSource("btcusd", KEY, "http://127.0.0.1:9").fetch(START, NOW, NOW)


def test_a_long_wait_ends_when_told_to_stop(serve: Serve) -> None:
    with serve("rate-limit") as (server, source):
        source.stop.set()
        with pytest.raises(RetryLater):
            source.fetch(START, NOW, NOW)
        assert server.requests == 1


def test_the_key_is_in_the_header_and_never_in_the_address(httpserver: HTTPServer) -> None:
    httpserver.expect_request(PATH).respond_with_json([])
    TiingoSource("btcusd", KEY, httpserver.url_for("")).fetch(START, NOW, NOW)
    request = httpserver.log[0][0]
    assert request.headers["Authorization"] == f"Token {KEY}"
    assert KEY not in request.url
    assert request.args["resampleFreq"] == "1hour"


def test_a_key_that_a_server_echoes_is_cut_out(httpserver: HTTPServer) -> None:
    httpserver.expect_request(PATH).respond_with_json({"detail": f"bad {KEY}\x1b[2J"}, status=400)
    with pytest.raises(NeedsHuman) as caught:
        TiingoSource("btcusd", KEY, httpserver.url_for("")).fetch(START, NOW, NOW)
    assert KEY not in str(caught.value)
    assert "\x1b" not in str(caught.value)


ROW = {"date": "2023-11-14T21:00:00+00:00", "open": 1, "high": 2, "low": 1, "close": 2, "volume": 3}


@pytest.mark.parametrize(
    "answer",
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
def test_an_answer_of_another_shape_is_a_passing_fault(httpserver: HTTPServer, answer: object) -> None:
    httpserver.expect_request(PATH).respond_with_data(json.dumps(answer))
    with pytest.raises(RetryLater):
        TiingoSource("btcusd", KEY, httpserver.url_for("")).fetch(START, NOW, NOW)


def test_json_nested_without_end_is_a_passing_fault(httpserver: HTTPServer) -> None:
    httpserver.expect_request(PATH).respond_with_data("[" * 200_000)
    with pytest.raises(RetryLater):
        TiingoSource("btcusd", KEY, httpserver.url_for("")).fetch(START, NOW, NOW)


def test_other_tickers_and_other_hours_in_an_answer_are_left_out_and_null_is_kept_as_nan(
    httpserver: HTTPServer,
) -> None:
    late = ROW | {"date": "2031-01-01T00:00:00+00:00"}
    series = [
        {"ticker": "ethusd", "priceData": [ROW]},
        {"ticker": "BTCUSD", "priceData": [late, ROW | {"volume": None}]},
    ]
    httpserver.expect_ordered_request(PATH).respond_with_json(series)
    httpserver.expect_request(PATH).respond_with_json([])
    candles = TiingoSource("btcusd", KEY, httpserver.url_for("")).fetch(START, NOW, NOW)
    assert candles.time.tolist() == [1_699_995_600]
    assert np.isnan(candles.volume[0])


def test_a_server_that_gives_one_candle_at_a_time_does_not_hold_us_for_ever(httpserver: HTTPServer) -> None:
    from werkzeug import Request, Response

    def one(request: Request) -> Response:
        row = ROW | {"date": request.args["startDate"] + "+00:00"}
        return Response(json.dumps([{"ticker": "btcusd", "priceData": [row]}]))

    httpserver.expect_request(PATH).respond_with_handler(one)
    with pytest.raises(RetryLater, match="too short"):
        TiingoSource("btcusd", KEY, httpserver.url_for("")).fetch(START, NOW, NOW)


def test_neither_pandas_nor_a_proxy_is_needed(serve: Serve) -> None:
    code = (
        "import sys; from forecastd.sources.tiingo import TiingoSource; "
        f"c = TiingoSource('btcusd', {KEY!r}, sys.argv[1]).fetch({START}, {NOW}, {NOW}); "
        "print(len(c), 'pandas' in sys.modules)"
    )
    with serve() as (server, _):
        environment = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
        done = subprocess.run(
            [sys.executable, "-c", code, server.url], capture_output=True, text=True, env=environment, check=True
        )
    assert done.stdout.split() == ["408", "False"]


@pytest.mark.parametrize("text", ["", "fire", "html@", "html@first", "html@first=0", "html@first=x", "html@last=2"])
def test_a_bad_fault_is_told_what_there_is(text: str) -> None:
    with pytest.raises(NeedsHuman, match="rate-limit"):
        Fault.parse(text)


def test_faults_strike_by_the_number_of_the_request() -> None:
    assert [Fault.parse("html@first=2").strikes(number) for number in (1, 2, 3)] == [True, True, False]
    assert [Fault.parse("html@every=2").strikes(number) for number in (1, 2, 3, 4)] == [False, True, False, True]
    assert Fault.parse("html").strikes(99)


@pytest.mark.parametrize("url", ["https://user:p4ssw0rd@example.org", "http://user:p4ssw0rd@127.0.0.1:9"])
def test_an_address_with_a_password_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(NeedsHuman, match="user name or a password") as caught:
        TiingoSource("btcusd", KEY, url)
    assert "p4ssw0rd" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://[::1", "https://example.org:port", "ftp://example.org", "https://", "x",
                                 "https://example.org/?token=abc"])  # fmt: skip
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(NeedsHuman, match="no web address"):
        TiingoSource("btcusd", KEY, url)


def test_a_retry_is_told_in_one_plain_sentence_and_not_to_people(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serve("html@first=1") as (_, source):
        source.fetch(START, NOW, NOW)
    told = [record for record in caplog.records if not record.name.startswith("urllib3")]
    assert [(record.levelname, record.getMessage()) for record in told] == [
        ("INFO", "Tiingo sent a web page instead of candles. Trying again.")
    ]
