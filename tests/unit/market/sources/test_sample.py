"""The sample source: deterministic, independent of the requested range, and similar to a market."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from forecastd.market.candles import COLUMNS, HOUR, check_candles
from forecastd.market.sources.sample import SampleSource

NOW = 4e9
LAST = int(NOW) // HOUR - 2_000


@given(
    seed=st.integers(0, 10**9 - 1), hour=st.integers(-10_000, LAST), before=st.integers(0, 600), n=st.integers(1, 600)
)
def test_sample_hour_is_independent_of_the_range(seed: int, hour: int, before: int, n: int) -> None:
    source = SampleSource("btcusd", seed)
    single = source.fetch(hour * HOUR, (hour + 1) * HOUR, NOW)
    among = source.fetch((hour - before) * HOUR, (hour + n) * HOUR, NOW)
    assert len(among) == before + n
    for name in ("time", *COLUMNS):
        assert getattr(single, name)[0] == getattr(among, name)[before]


def test_sample_candles_are_unchanged() -> None:
    """A change of the generator changes every demo and the demo bundle, so it must be deliberate."""
    candles = SampleSource("btcusd").fetch(1_700_000_000, 1_700_000_000 + 3 * HOUR, NOW)
    assert candles.time.tolist() == [1_700_002_800, 1_700_006_400, 1_700_010_000]
    assert candles.close.tolist() == [34630.75, 34744.06, 34892.6]


def test_sample_years_pass_checks_and_resemble_a_market() -> None:
    candles = SampleSource("btcusd").fetch(1_400_000_000, 1_700_000_000, NOW)
    check_candles(candles, now=candles.end, min_length=len(candles), max_age=0)
    moves = np.diff(np.log(candles.close))
    size = np.abs(moves)
    assert candles.provenance.synthetic
    assert 0.003 < moves.std() < 0.008
    assert 1_000 < candles.low.min() < candles.high.max() < 200_000
    assert np.mean((moves / moves.std()) ** 4) > 5, "tails are heavy"
    assert np.corrcoef(size[:-24], size[24:])[0, 1] > 0.1, "volatility clusters"
    assert np.corrcoef(np.log(candles.volume[1:]), size)[0, 1] > 0.3, "volume correlates with volatility"
    assert (candles.open[1:] == candles.close[:-1]).all()


def test_sample_has_weak_mean_reversion() -> None:
    level = np.log(SampleSource("btcusd").fetch(1_200_000_000, 1_700_000_000, NOW).close)
    mean = np.convolve(level, np.ones(72) / 72, "valid")  # of the 72 hours up to each
    stretch, future = (level[71:] - mean)[:-168], level[71 + 168 :] - level[71:-168]
    correlation = np.corrcoef(stretch, future)[0, 1]
    assert -0.4 < correlation < -0.05


def test_sample_seeds_give_independent_markets() -> None:
    first_returns, other_returns = (SampleSource("btcusd", seed).fetch(0, 1_000 * HOUR, NOW) for seed in (0, 1))
    assert abs(np.corrcoef(np.diff(np.log(first_returns.close)), np.diff(np.log(other_returns.close)))[0, 1]) < 0.2
    assert (first_returns.provenance.source, other_returns.provenance.source) == ("sample", "sample:1")


def test_sample_returns_only_complete_candles() -> None:
    source = SampleSource("btcusd")
    assert source.fetch(0, 100 * HOUR, 10 * HOUR - 0.5).end == 9 * HOUR
    assert source.fetch(0, 100 * HOUR, 10 * HOUR).end == 10 * HOUR
    assert len(source.fetch(5 * HOUR, 5 * HOUR, NOW)) == 0
