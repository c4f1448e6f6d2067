"""`--once` from a server over HTTP and from a user's own download: accepted, incremental, and safe against faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forecastd.clock import ReplayClock, from_iso
from forecastd.settings import load_settings
from forecastd.sources import open_source
from forecastd.sources.faketiingo import FakeTiingo, Fault

Once = Callable[..., Any]
KEY = "s3cret-tiingo-key"
NOW = "2026-03-01T12:30:00Z"
LATER = "2026-03-01T13:30:00Z"


def tiingo(*faults: str) -> FakeTiingo:
    source = open_source("sample", load_settings())
    return FakeTiingo(source, ReplayClock(from_iso(LATER)), key=KEY, faults=[Fault.parse(fault) for fault in faults])


def test_a_server_over_http_is_asked_only_for_what_is_missing(once: Once, tmp_path: Path) -> None:
    with tiingo() as server:
        environment = {"TIINGO_URL": server.url, "TIINGO_API_KEY": KEY}
        first = once("--source", "tiingo", "--as-of", NOW, **environment)
        assert (first.code, first.told["outcome"]) == (0, "submitted"), first.told["reason"]
        first_bytes = server.bytes_sent
        second = once("--source", "tiingo", "--as-of", LATER, **environment)
        assert second.told["outcome"] == "submitted"
        assert server.bytes_sent - first_bytes <= 0.02 * first_bytes
        asked = server.requests
        once("--source", "tiingo", "--as-of", LATER, "--state-dir", str(tmp_path / "state"), **environment)
        assert server.requests == asked, "nothing is missing, so nothing is asked"
    assert first.told["source"].startswith("tiingo:btcusd")
    assert KEY not in first.out + first.err


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("html", 6),
        ("truncated", 6),
        ("huge", 6),
        ("in-band", 6),
        ("rate-limit-long", 6),
        ("unauthorized", 5),
        ("broken", 6),
    ],
)
def test_a_faulty_server_costs_the_epoch_and_nothing_more(once: Once, fault: str, code: int) -> None:
    with tiingo(fault) as server:
        done = once("--source", "tiingo", "--as-of", NOW, TIINGO_URL=server.url, TIINGO_API_KEY=KEY)
    assert done.code == code, done.told["reason"]
    assert done.told["tx_hash"] is None
    assert KEY not in done.out + done.err


def test_passing_faults_are_sat_out(once: Once) -> None:
    with tiingo("rate-limit@first=1") as server:
        done = once("--source", "tiingo", "--as-of", NOW, TIINGO_URL=server.url, TIINGO_API_KEY=KEY)
    assert done.told["outcome"] == "submitted", done.told["reason"]


def test_a_users_download_works_as_it_is(once: Once, real_candles: Path) -> None:
    done = once("--source", f"file:{real_candles}", "--as-of", "2019-10-17T09:00:00Z")
    assert done.told["outcome"] == "submitted", done.told["reason"]
    assert done.told["synthetic"] is False
    assert abs(done.told["value"]) < 0.5


def test_a_download_that_ends_too_early_is_stale(once: Once, real_candles: Path) -> None:
    done = once("--source", f"file:{real_candles}", "--as-of", "2019-10-20T09:00:00Z")
    assert (done.code, done.told["check"]) == (4, "stale")
