"""`sample`: synthetic, market-like hourly candles that are the same on every machine and in every version.

Invariant: the candle of an hour is a pure function of the seed and that hour; nothing here may depend on where the
requested range starts. Randomness is a hash of (seed, stream, index), and the log price is a sum of parts that can each
be computed at any hour without the hours before it:

- a Brownian path in Levy's construction: independent anchors every 2**14 hours, and between them hat functions of
  finer and finer octaves, each with its own hashed height. The heights follow the volatility of their hour, which
  varies on several scales (volatility clustering). Independent anchors keep the level near its mean over the years;
- a mean-reverting part on the scale of days: weak but real structure for a model to learn;
- small daily and weekly seasonality, and jumps that fade within three weeks.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from forecastd.market.candles import HOUR, Candles, Provenance

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MEAN_PRICE = 20_000.0
MEAN_VOLUME = 350.0
SIGMA = 0.0045  # typical standard deviation of an hour's log-return, about that of BTC/USD
ANCHOR_OCTAVE = 14  # octave of the anchors: 2**14 hours, nearly two years
JUMP_BLOCK_HOURS = 512  # jumps fade to zero within a block of this many hours
JUMP_CHANCE = 1 / 400  # per hour
JUMP_SIZE = 0.02  # standard deviation of a jump, in log price
REVERSION = 0.042  # standard deviation of the mean-reverting part
REVERSION_OCTAVES = (5, 6)

# Streams of random numbers; each draws from its own part of the hash's domain.
ANCHOR, PATH, VOLATILITY, REVERT, JUMP, WICK_UP, WICK_DOWN, TRADES = range(0, 800, 100)


class SampleSource:
    """A deterministic generator. Different seeds give different markets."""

    step = HOUR
    synthetic = True
    local = True

    def __init__(self, symbol: str, seed: int = 0) -> None:
        self.symbol = symbol
        self.seed = seed
        self.name = "sample" if seed == 0 else f"sample:{seed}"

    def fetch(self, start: int, end: int, now: float) -> Candles:
        """See `Source.fetch`. Every hour of the range exists."""
        first = -(-start // HOUR)
        last = min(-(-end // HOUR), int(now // HOUR))
        hours = np.arange(first, max(first, last), dtype=np.int64)
        columns = _generate_candles(self.seed, hours) if len(hours) else (np.empty(0),) * 5
        time = hours * HOUR
        digest = hashlib.sha256(time.astype("<i8").tobytes())
        for column in columns:
            digest.update(column.astype("<f8").tobytes())
        origin = Provenance(source=self.name, fetched_at=now, sha256=digest.hexdigest(), synthetic=True)
        return Candles(self.symbol, HOUR, time, *columns, provenance=origin)


def _generate_candles(seed: int, hours: Ints) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """open, high, low, close, volume of consecutive `hours` (hours since 1970)."""
    edges = np.append(hours, hours[-1] + 1)
    level = np.exp(_log_price(seed, edges)) * MEAN_PRICE
    open_, close = level[:-1], level[1:]
    sigma = SIGMA * _volatility(seed, hours)
    high = np.maximum(open_, close) * (1 + 0.5 * sigma * np.abs(_normal(seed, WICK_UP, hours)))
    low = np.minimum(open_, close) * (1 - np.minimum(0.5 * sigma * np.abs(_normal(seed, WICK_DOWN, hours)), 0.5))
    move = np.abs(close / open_ - 1) / SIGMA
    activity = sigma / SIGMA * (1 + 0.6 * move) * (1.0 + 0.35 * _normal(seed, TRADES, hours) / 3.5)
    return (*(np.round(part, 2) for part in (open_, high, low, close)), np.round(MEAN_VOLUME * activity, 4))  # type: ignore[return-value]


def _log_price(seed: int, hours: Ints) -> Floats:
    """Log of the price over its mean, for consecutive `hours`."""
    day, week = 2 * np.pi * (hours % 24) / 24, 2 * np.pi * (hours % 168) / 168
    level: Floats = 0.0012 * np.sin(day) + 0.004 * np.sin(week + 1)
    level += _lattice(seed, ANCHOR, hours, ANCHOR_OCTAVE, SIGMA * np.sqrt(2**ANCHOR_OCTAVE / 2))
    for octave in range(1, ANCHOR_OCTAVE + 1):
        # The midpoint of a Brownian bridge of length n has the standard deviation sigma * sqrt(n) / 2.
        level += _hats(seed, PATH + octave, hours, octave, SIGMA * np.sqrt(2**octave) / 2)
    for octave in REVERSION_OCTAVES:
        level += _lattice(seed, REVERT + octave, hours, octave, REVERSION / np.sqrt(len(REVERSION_OCTAVES)))
    return level + _jumps(seed, hours)


def _volatility(seed: int, hours: Ints) -> Floats:
    """Volatility relative to its typical value at any `hours`: clusters of half a day to six weeks, and time of day."""
    log = np.zeros(len(hours))
    for octave, weight in ((4, 0.25), (6, 0.3), (8, 0.35), (10, 0.35)):
        log += _lattice(seed, VOLATILITY + octave, hours, octave, weight)
    clock = 1 + 0.3 * np.cos(2 * np.pi * (hours % 24 - 15) / 24)
    weekend = np.where((hours // 24 + 3) % 7 >= 5, 0.8, 1.0)  # 1970-01-01 was a Thursday
    return np.asarray(0.9 * np.exp(log) * clock * weekend, dtype=np.float64)


def _hats(seed: int, stream: int, hours: Ints, octave: int, height: float) -> Floats:
    """Adjacent hat functions, 2**octave hours wide: zero at their borders, a random peak in the middle."""
    width = 1 << octave
    index = hours >> octave
    unique = np.arange(index.min(), index.max() + 1)
    peaks = height * _normal(seed, stream, unique) * _volatility(seed, unique * width + width // 2)
    shape = 1 - np.abs(2 * (hours & (width - 1)) / width - 1)
    return np.asarray(peaks[index - unique[0]] * shape, dtype=np.float64)


def _lattice(seed: int, stream: int, hours: Ints, octave: int, height: float) -> Floats:
    """Independent random values every 2**octave hours, interpolated linearly. `hours` may be in any order."""
    width = 1 << octave
    index = hours >> octave
    first = int(index.min())
    values = height * _normal(seed, stream, np.arange(first, int(index.max()) + 2))
    part = (hours & (width - 1)) / width
    index = index - first
    return np.asarray(values[index] * (1 - part) + values[index + 1] * part, dtype=np.float64)


def _jumps(seed: int, hours: Ints) -> Floats:
    """Sudden steps, each reverted linearly within its block, so that blocks are independent."""
    blocks = np.arange(hours.min() // JUMP_BLOCK_HOURS, hours.max() // JUMP_BLOCK_HOURS + 1)
    block_hours = np.arange(blocks[0] * JUMP_BLOCK_HOURS, (blocks[-1] + 1) * JUMP_BLOCK_HOURS)
    is_jump = _uniform(seed, JUMP, block_hours) < JUMP_CHANCE
    steps = np.where(is_jump, JUMP_SIZE * _normal(seed, JUMP + 1, block_hours) * _volatility(seed, block_hours), 0.0)
    path = np.cumsum(steps.reshape(-1, JUMP_BLOCK_HOURS), axis=1)
    path -= path[:, -1:] * np.arange(1, JUMP_BLOCK_HOURS + 1) / JUMP_BLOCK_HOURS
    return np.asarray(path.ravel()[hours - block_hours[0]], dtype=np.float64)


def _hash(seed: int, stream: int, index: Ints) -> NDArray[np.uint64]:
    """64 well-mixed bits for each index: two rounds of the splitmix64 finalizer (Steele, Lea, Flood 2014)."""
    start = np.uint64((seed * 1_000 + stream) * 0x9E3779B97F4A7C15 % 2**64)
    bits = index.astype(np.uint64) * np.uint64(0xD1342543DE82EF95) + start
    for _ in range(2):
        bits ^= bits >> np.uint64(30)
        bits *= np.uint64(0xBF58476D1CE4E5B9)
        bits ^= bits >> np.uint64(27)
        bits *= np.uint64(0x94D049BB133111EB)
        bits ^= bits >> np.uint64(31)
    return bits


def _uniform(seed: int, stream: int, index: Ints) -> Floats:
    """Uniform on [0, 1)."""
    return np.asarray((_hash(seed, stream, index) >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def _normal(seed: int, stream: int, index: Ints) -> Floats:
    """Nearly standard normal: the sum of eight 16-bit uniforms, within +-4.9, exact on every machine."""
    total = np.zeros(len(index))
    for half in (0, 1):
        bits = _hash(seed, stream + 50 * half, index)
        for shift in (0, 16, 32, 48):
            total += (bits >> np.uint64(shift) & np.uint64(0xFFFF)).astype(np.float64)
    # Eight uniforms on 0..65535: mean 262140, variance 8 * (65536**2 - 1) / 12.
    return (total - 262_140.0) / 53_509.918
