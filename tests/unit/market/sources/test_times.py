"""Times and headers in files: the formats of many vendors, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.market.sources.headers import HEADERLESS, find_layout
from forecastd.market.sources.times import TimeTextError, seconds_of_number, seconds_of_texts

NINE_O_CLOCK = int(datetime(2019, 10, 17, 9, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    "text",
    [
        "2019-10-17 09-AM", "2019-10-17T09:00:00Z", "2019-10-17 09:00", "2019-10-17T11:00:00+02:00",
        "2019-10-17 04:00:00-05:00", "2019-10-17 09:00:00 UTC", "2019-10-17 09:00:00.000", "2019.10.17 09:00:00",
        "2019/10/17 09:00", "2019/10/17 9:00:00", "1571302800", "1571302800.0", "1571302800000", "1571302800000000",
        "1571302800000000000", "10/17/2019 09:00", "10/17/2019 9:00 AM", "17.10.2019 09:00:00.000 GMT+0000",
        "17.10.2019 11:00:00.000 GMT+0200", "17/10/2019 09:00:00", "201910170900", "20191017090000", "20191017 090000",
    ],
)  # fmt: skip
def test_times_formats_give_the_same_hour(text: str) -> None:
    assert seconds_of_texts([text]).tolist() == [NINE_O_CLOCK]


@pytest.mark.parametrize(
    ("text", "hour"), [("12-AM", 0), ("01-AM", 1), ("11-AM", 11), ("12-PM", 12), ("01-PM", 13), ("11-PM", 23)]
)
def test_times_noon_and_midnight_are_twelve(text: str, hour: int) -> None:
    assert seconds_of_texts([f"2019-10-17 {text}"]).tolist() == [NINE_O_CLOCK + (hour - 9) * 3600]


@given(st.datetimes(datetime(2009, 1, 1), datetime(2099, 1, 1)), st.integers(-12, 14))  # noqa: DTZ001 - made aware below
def test_times_iso_offset_matches_python(moment: datetime, offset: int) -> None:
    aware = moment.replace(microsecond=0, tzinfo=UTC)
    text = f"{aware.replace(tzinfo=None).isoformat()}{offset:+03d}:00"
    assert seconds_of_texts([text])[0] == int(aware.timestamp()) - offset * 3600


@given(st.integers(1_230_768_000, 4_102_444_800), st.sampled_from([1, 10**3, 10**6, 10**9]))
def test_times_number_unit_is_detected_by_size(seconds: int, unit: int) -> None:
    assert abs(seconds_of_number(seconds * unit) - seconds) < 1e-3
    assert seconds_of_texts([str(seconds * unit)]).tolist() == [seconds]


def test_times_column_resolves_day_and_month() -> None:
    texts = ["01/02/2019 00:00", "02/02/2019 00:00", "13/02/2019 00:00"]
    assert seconds_of_texts(texts)[0] == datetime(2019, 2, 1, tzinfo=UTC).timestamp()
    with pytest.raises(TimeTextError) as error:
        seconds_of_texts(texts[:2])
    assert error.value.ambiguous


@pytest.mark.parametrize("text", ["", "soon", "2019-13-01", "2019-10-17 25:00", "09-AM", "12", "-5", "1e9x"])
def test_times_invalid_text_is_refused_with_its_index(text: str) -> None:
    with pytest.raises(TimeTextError) as error:
        seconds_of_texts(["2019-10-17 09:00", text])
    assert error.value.index == 1


@pytest.mark.parametrize(
    ("header", "places"),
    [
        ("date,symbol,open,high,low,close,volume_btc,volume", (0, (2, 3, 4, 5), 6, 1)),
        ("unix,date,symbol,open,high,low,close,Volume BTC,Volume USD", (0, (3, 4, 5, 6), 7, 2)),
        ("Unix Timestamp,Date,Symbol,Open,High,Low,Close,Volume", (0, (3, 4, 5, 6), 7, 2)),
        ("Open time,Open,High,Low,Close,Volume,Close time", (0, (1, 2, 3, 4), 5, None)),
        ("time,low,high,open,close,volume", (0, (3, 2, 1, 4), 5, None)),
        (",open,high,low,close,volume", (0, (1, 2, 3, 4), 5, None)),
        ("Unnamed: 0,Open,High,Low,Close,Volume USD", (0, (1, 2, 3, 4), 5, None)),
        ("Timestamp,Open,High,Low,Close,Volume_(BTC),Volume_(Currency)", (0, (1, 2, 3, 4), 5, None)),
        ("Date,Price,Open,High,Low,Vol.", (0, (2, 3, 4, 1), 5, None)),
        ("t,o,h,l,c,v", (0, (1, 2, 3, 4), 5, None)),
        ("datetime,open,high,low,close", (0, (1, 2, 3, 4), None, None)),
    ],
)
def test_headers_of_many_vendors_are_recognized(
    header: str, places: tuple[int, tuple[int, ...], int | None, int | None]
) -> None:
    layout = find_layout(header.split(","), "btcusd")
    assert layout is not None
    assert (layout.time, layout.prices, layout.volume, layout.symbol) == places


def test_headers_date_and_time_columns_are_joined() -> None:
    layout = find_layout(["<DATE>", "<TIME>", "<OPEN>", "<HIGH>", "<LOW>", "<CLOSE>", "<TICKVOL>"], "btcusd")
    assert layout is not None
    assert (layout.time, layout.time_of_day, layout.prices) == (0, 1, (2, 3, 4, 5))


def test_headers_other_line_is_not_a_header() -> None:
    assert find_layout(["Timestamps are UTC timezone", "https://example.com"], "btcusd") is None
    assert find_layout(["date", "open", "high"], "btcusd") is None
    assert HEADERLESS.prices == (1, 2, 3, 4)


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "1900-01-01", "0001-01-01"])
def test_times_distant_date_is_parsed(text: str) -> None:
    moment = datetime.fromisoformat(text)
    expected = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    assert seconds_of_texts([text]).tolist() == [expected]
