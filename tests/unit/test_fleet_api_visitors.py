"""What a request's headers say of who sends it; how many requests a client may send; what is logged of refusals."""

from __future__ import annotations

import ipaddress
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.fleet.api.rate import RateLimit
from forecastd.fleet.api.refusals import quoted
from forecastd.fleet.api.remarks import EVERY, Remarks
from forecastd.fleet.api.visitors import (
    BUCKETS,
    bucket,
    declared_length,
    given_key,
    header,
    is_foreign,
    is_local_name,
)

names = st.sampled_from([b"host", b"origin", b"x-api-key", b"authorization", b"content-length", b"content-encoding"])
headers = st.lists(st.tuples(names, st.binary(max_size=40)), max_size=6)


@given(found=headers)
def test_any_headers_can_be_looked_at(found: list[tuple[bytes, bytes]]) -> None:
    given_key(found)
    is_local_name(header(found, b"host"))
    is_foreign(header(found, b"origin"), header(found, b"host"), ())
    length = declared_length(found)
    assert length is None or length >= 0


@pytest.mark.parametrize(
    ("found", "key"),
    [([(b"x-api-key", b" k ")], "k"), ([(b"authorization", b"Bearer k")], "k"), ([(b"authorization", b"BEARER  k")], "k"),
     ([(b"authorization", b"Basic k")], None), ([(b"authorization", b"k")], None), ([], None),
     ([(b"x-api-key", b"a"), (b"x-api-key", b"b")], None), ([(b"x-api-key", b"a"), (b"authorization", b"Bearer b")], "a")],
)  # fmt: skip
def test_where_a_key_is_looked_for(found: list[tuple[bytes, bytes]], key: str | None) -> None:
    assert given_key(found) == key


@pytest.mark.parametrize(
    ("origin", "host", "foreign"),
    [(None, "a:1", False), ("http://a:1", "a:1", False), ("https://A:1", "a:1", False), ("http://a:2", "a:1", True),
     ("http://b", "a", True), ("null", "a", True), ("http://a", None, True), ("http://[", "a", True),
     ("https://ok", "a", False)],
)  # fmt: skip
def test_whether_a_request_comes_from_another_site(origin: str | None, host: str | None, foreign: bool) -> None:
    assert is_foreign(origin, host, ("https://ok",)) is foreign


@given(address=st.ip_addresses(), salt=st.integers(0, 2**64))
def test_an_address_has_one_of_a_fixed_number_of_counters(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, salt: int
) -> None:
    name = bucket(str(address), salt)
    assert int(name.removeprefix("address-")) < BUCKETS
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        neighbour = ipaddress.IPv6Address(int(address) ^ 1)
        if neighbour.ipv4_mapped is None:
            assert bucket(str(neighbour), salt) == name
    elif isinstance(address, ipaddress.IPv4Address):
        assert bucket(f"::ffff:{address}", salt) == name


def test_a_rate_counts_each_client_by_itself_and_0_counts_nobody() -> None:
    limit = RateLimit(5)
    waits = [limit.wait("one") for _ in range(7)]
    assert waits[:4] == [0, 0, 0, 0]
    assert waits[-1] >= 1
    assert limit.wait("two") == 0
    assert limit.client(3, "127.0.0.1") == "key-3"
    free = RateLimit(0)
    assert not any(free.wait("one") for _ in range(100))


class Hand:
    def __init__(self) -> None:
        self.mono = 0.0

    def now(self) -> float:
        return 0.0

    def monotonic(self) -> float:
        return self.mono


def test_refusals_of_a_kind_are_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    clock = Hand()
    remarks = Remarks(clock)
    for _ in range(1000):
        remarks.refused("401", "A request from 10.0.0.9 was refused.")
    remarks.refused("429", "Another kind.")
    assert len(caplog.records) == 2
    clock.mono = EVERY
    remarks.refused("401", "A request from 10.0.0.9 was refused.")
    assert "999 more" in caplog.records[-1].getMessage()


@given(text=st.text(max_size=300))
def test_a_clients_words_are_quoted_short_and_printable(text: str) -> None:
    told = quoted(text)
    assert len(told) <= 90
    assert told.isprintable()
