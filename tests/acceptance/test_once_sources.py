"""`--once` with candles from an HTTP server and from a downloaded file: incremental, and safe against faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forecastd.clock import ReplayClock, from_iso
from forecastd.market.sources import open_source
from forecastd.market.sources.fake_tiingo import FakeTiingo, TiingoFault
from forecastd.settings import load_settings

Once = Callable[..., Any]
KEY = "s3cret-tiingo-key"
NOW = "2026-03-01T12:30:00Z"
LATER = "2026-03-01T13:30:00Z"


def tiingo(*faults: str) -> FakeTiingo:
    source = open_source("sample", load_settings())
    return FakeTiingo(
        source, ReplayClock(from_iso(LATER)), key=KEY, faults=[TiingoFault.parse(fault) for fault in faults]
    )


def test_http_source_is_asked_only_for_missing_candles(once: Once, tmp_path: Path) -> None:
    with tiingo() as server:
        environment = {"TIINGO_URL": server.url, "TIINGO_API_KEY": KEY}
        first = once("--source", "tiingo", "--as-of", NOW, **environment)
        assert (first.code, first.document["outcome"]) == (0, "submitted"), first.document["reason"]
        first_bytes = server.bytes_sent
        second = once("--source", "tiingo", "--as-of", LATER, **environment)
        assert second.document["outcome"] == "submitted"
        assert server.bytes_sent - first_bytes <= 0.02 * first_bytes
        request_count = server.request_count
        once("--source", "tiingo", "--as-of", LATER, "--state-dir", str(tmp_path / "state"), **environment)
        assert server.request_count == request_count, "no candle is missing, so nothing may be requested"
    assert first.document["source"].startswith("tiingo:btcusd")
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
def test_faulty_server_skips_or_fails_the_epoch(once: Once, fault: str, code: int) -> None:
    with tiingo(fault) as server:
        result = once("--source", "tiingo", "--as-of", NOW, TIINGO_URL=server.url, TIINGO_API_KEY=KEY)
    assert result.code == code, result.document["reason"]
    assert result.document["tx_hash"] is None
    assert KEY not in result.out + result.err


def test_temporary_faults_are_retried(once: Once) -> None:
    with tiingo("rate-limit@first=1") as server:
        result = once("--source", "tiingo", "--as-of", NOW, TIINGO_URL=server.url, TIINGO_API_KEY=KEY)
    assert result.document["outcome"] == "submitted", result.document["reason"]


def test_user_download_is_accepted(once: Once, real_candles: Path) -> None:
    result = once("--source", f"file:{real_candles}", "--as-of", "2019-10-17T09:00:00Z")
    assert result.document["outcome"] == "submitted", result.document["reason"]
    assert result.document["synthetic"] is False
    assert abs(result.document["value"]) < 0.5


def test_old_download_is_stale(once: Once, real_candles: Path) -> None:
    result = once("--source", f"file:{real_candles}", "--as-of", "2019-10-20T09:00:00Z")
    assert (result.code, result.document["check"]) == (4, "stale")
