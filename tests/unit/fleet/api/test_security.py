"""Request headers, rate limits, and the log of refused requests."""

from __future__ import annotations

import ipaddress
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.fleet.api.errors import LOG_INTERVAL_SECONDS, RefusalLog, RequestRefused, quote
from forecastd.fleet.api.security import (
    CLIENT_BUCKETS,
    RateLimit,
    client_bucket,
    declared_length,
    header,
    is_cross_site,
    is_local_name,
    request_key,
)
from forecastd.testing import ManualClock

names = st.sampled_from([b"host", b"origin", b"x-api-key", b"authorization", b"content-length", b"content-encoding"])
headers = st.lists(st.tuples(names, st.binary(max_size=40)), max_size=6)


@given(request_headers=headers)
def test_arbitrary_headers_are_parsed(request_headers: list[tuple[bytes, bytes]]) -> None:
    request_key(request_headers)
    is_local_name(header(request_headers, b"host"))
    is_cross_site(header(request_headers, b"origin"), header(request_headers, b"host"), ())
    length = declared_length(request_headers)
    assert length is None or length >= 0


@pytest.mark.parametrize(
    ("request_headers", "key"),
    [([(b"x-api-key", b" k ")], "k"), ([(b"authorization", b"Bearer k")], "k"), ([(b"authorization", b"BEARER  k")], "k"),
     ([(b"authorization", b"Basic k")], None), ([(b"authorization", b"k")], None), ([], None),
     ([(b"x-api-key", b"a"), (b"x-api-key", b"b")], None), ([(b"x-api-key", b"a"), (b"authorization", b"Bearer b")], "a")],
)  # fmt: skip
def test_request_key_is_read_from_headers(request_headers: list[tuple[bytes, bytes]], key: str | None) -> None:
    assert request_key(request_headers) == key


@pytest.mark.parametrize(
    ("origin", "host", "foreign"),
    [(None, "a:1", False), ("http://a:1", "a:1", False), ("https://A:1", "a:1", False), ("http://a:2", "a:1", True),
     ("http://b", "a", True), ("null", "a", True), ("http://a", None, True), ("http://[", "a", True),
     ("https://ok", "a", False)],
)  # fmt: skip
def test_cross_site_request_is_detected(origin: str | None, host: str | None, foreign: bool) -> None:
    assert is_cross_site(origin, host, ("https://ok",)) is foreign


@given(address=st.ip_addresses(), salt=st.integers(0, 2**64))
def test_client_bucket_count_is_bounded(address: ipaddress.IPv4Address | ipaddress.IPv6Address, salt: int) -> None:
    name = client_bucket(str(address), salt)
    assert int(name.removeprefix("address-")) < CLIENT_BUCKETS
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        neighbor = ipaddress.IPv6Address(int(address) ^ 1)
        if neighbor.ipv4_mapped is None:
            assert client_bucket(str(neighbor), salt) == name
    elif isinstance(address, ipaddress.IPv4Address):
        assert client_bucket(f"::ffff:{address}", salt) == name


def test_rate_limit_counts_per_client_and_zero_disables() -> None:
    limit = RateLimit(5)
    waits = [limit.retry_after("one") for _ in range(7)]
    assert waits[:4] == [0, 0, 0, 0]
    assert waits[-1] >= 1
    assert limit.retry_after("two") == 0
    assert limit.client_key(3, "127.0.0.1") == "key-3"
    unlimited = RateLimit(0)
    assert not any(unlimited.retry_after("one") for _ in range(100))


def test_refusals_log_one_line_per_kind_and_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    clock = ManualClock()
    refusal_log = RefusalLog(clock)
    unknown_key = RequestRefused(401, "The API key is unknown.", "Send another.")
    for _ in range(1000):
        refusal_log.record(unknown_key, "10.0.0.9")
    refusal_log.record(RequestRefused(429, "Another kind.", "Wait."), "10.0.0.9")
    assert len(caplog.records) == 2
    assert caplog.messages[0] == "A request from 10.0.0.9 was refused with 401: The API key is unknown."
    clock.advance(LOG_INTERVAL_SECONDS)
    refusal_log.record(unknown_key, "10.0.0.9")
    assert "999 more" in caplog.records[-1].getMessage()


@given(text=st.text(max_size=300))
def test_quote_is_short_and_printable(text: str) -> None:
    result = quote(text)
    assert len(result) <= 90
    assert result.isprintable()
