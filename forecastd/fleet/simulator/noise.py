"""Noise without state: every value is a function of (seed, series, tick), so ticks can be computed in any order.

Invariant: the hash defines the series. Another constant or another order of operations gives every simulated fleet
another history, which the demo model was not trained on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

KeyArray = NDArray[np.uint64]
FloatArray = NDArray[np.float64]
TickArray = NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the increment and the two multipliers of SplitMix64 (Steele, Lea, Flood 2014)
_MULTIPLIER_1, _MULTIPLIER_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_MASK_16 = np.uint64(0xFFFF)
_SHIFT_16, _SHIFT_30, _SHIFT_27, _SHIFT_31 = (np.uint64(bits) for bits in (16, 30, 27, 31))


def mix(value: KeyArray) -> KeyArray:
    """The output function of SplitMix64: 64 random-looking bits from a 64-bit counter."""
    value = (value ^ (value >> _SHIFT_30)) * _MULTIPLIER_1
    value = (value ^ (value >> _SHIFT_27)) * _MULTIPLIER_2
    return value ^ (value >> _SHIFT_31)


def keys(seed: int, count: int) -> KeyArray:
    """One key per server; the key of server i does not depend on the number of servers."""
    numbers = np.arange(1, count + 1, dtype=np.uint64)
    return mix(mix(numbers * _GOLDEN) ^ np.uint64(seed % 2**64))


def derive(key: KeyArray, *streams: int) -> KeyArray:
    """The keys of a series derived from these keys and stream numbers."""
    for stream in streams:
        key = mix(key + np.uint64((stream + 1) * int(_GOLDEN) % 2**64))
    return key


def bits_at(key: KeyArray, ticks: TickArray) -> KeyArray:
    """64 random bits for each key and tick; the two shapes are broadcast."""
    return mix(key + ticks.astype(np.uint64) * _GOLDEN)


def uniform(bits: KeyArray) -> FloatArray:
    """Uniform numbers in [0, 1)."""
    return np.asarray((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def normal(bits: KeyArray) -> FloatArray:
    """Nearly standard normal numbers: the sum of four 16-bit uniforms, so never beyond 3.47."""
    total = (
        (bits & _MASK_16)
        + ((bits >> _SHIFT_16) & _MASK_16)
        + ((bits >> np.uint64(32)) & _MASK_16)
        + (bits >> np.uint64(48))
    )
    return np.asarray((total.astype(np.float64) - 131_070.0) * (np.sqrt(3.0) / 65_535.5))


def white(key: KeyArray, ticks: TickArray) -> FloatArray:
    """[S, T] standard normal, independent at each tick. `key` is [S], `ticks` [T]."""
    return normal(bits_at(key[:, None], ticks[None, :]))


def smooth(key: KeyArray, ticks: TickArray, period: int) -> FloatArray:
    """[S, T] standard normal at each tick, drifting from one value to the next within `period` ticks.

    Random values on a lattice, blended by a cosine so that the variance is the same everywhere. `key` is [S], `ticks`
    [T].
    """
    cell = ticks // period
    first = int(cell.min())
    lattice = white(key, np.arange(first, int(cell.max()) + 2, dtype=np.int64))
    angle = (ticks - cell * period) * (np.pi / 2 / period)
    return np.asarray(lattice[:, cell - first] * np.cos(angle) + lattice[:, cell - first + 1] * np.sin(angle))


def drift(key: KeyArray, ticks: TickArray, *periods: int) -> FloatArray:
    """[S, T] nearly standard normal, correlated over several periods at once, like the load of a server."""
    components = [smooth(derive(key, period), ticks, period) for period in periods]
    return np.asarray(sum(components) / np.sqrt(len(components)))
