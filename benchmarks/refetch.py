"""HTTP bytes of a second run after a restart, next to the first: only missing candles may be fetched."""

from __future__ import annotations

import tempfile

from benchmarks.figures import Figure
from benchmarks.processes import measure, python
from forecastd.clock import ReplayClock, from_iso, to_iso
from forecastd.market.sources import open_source
from forecastd.market.sources.fake_tiingo import FakeTiingo
from forecastd.settings import load_settings

KEY = "benchmark"
HOUR = 3600


def run(*, quick: bool) -> list[Figure]:
    """`--once` with a fake Tiingo server, and again one hour later in a new process."""
    first_hour = from_iso("2026-03-01T12:05:00Z")
    source = open_source("sample", load_settings())
    figures = []
    with tempfile.TemporaryDirectory() as state, FakeTiingo(source, ReplayClock(first_hour + HOUR), key=KEY) as tiingo:
        sent = []
        for hour in range(2):
            before = tiingo.bytes_sent
            environment = {"STATE_DIR": state, "LOG_DIR": state, "TIINGO_URL": tiingo.url, "TIINGO_API_KEY": KEY}
            as_of = to_iso(first_hour + hour * HOUR)
            measure(python("submit_prediction.py", "--once", "--source", "tiingo", "--as-of", as_of), environment)
            sent.append(tiingo.bytes_sent - before)
        figures.append(
            Figure(
                "second --once, one hour later", sent[1], sent[0], "bytes", "first --once", "at most 2 %: ratio >= 50"
            )
        )
    return figures
