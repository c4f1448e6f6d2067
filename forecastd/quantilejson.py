"""Quantiles as the bytes of JSON that are served, made once a tick for all servers.

A fleet of thousands has millions of numbers a tick, and any general writer takes longer for them than the model does. Here a
number is an index into a table of texts, and a server's JSON one template of constant width whose numbers are laid in; what
pads a text to its width is taken out at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from models.interpolate import at_levels

_PAD = b"\0"  # stands in no JSON
_WIDTH = 8  # bytes of a number with its comma
_ENTRIES = 100_000  # numbers with as many decimals; those that are used stay in the cache
_SERVERS = 16  # at a time
_SMALL, _TOP = np.float32(99.9995), np.float32(9_999.95)  # up to where numbers have 3 decimals, and 1

Texts = NDArray[np.uint64]


class Described(Protocol):
    """What is told of a metric."""

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...


class Writer:
    """Writes `{"cpu_percent":{"unit":"%","0.1":[H numbers],...},...}` for one server after the other.

    Numbers have 3 decimals below 100, 1 below 10,000 and none above; a negative one, which no metric has, has a digit or two,
    and one that is not known (NaN) is null. May be shared by threads.
    """

    def __init__(self, metrics: Sequence[Described], levels: Sequence[float], served: Sequence[float]) -> None:
        """`levels`: of the quantiles that will be given; `served`: those that are written."""
        self._levels, self._served = tuple(levels), tuple(served)
        prefixes = _prefixes(metrics, served)
        self._before = np.zeros((len(prefixes), max(map(len, prefixes), default=0)), dtype=np.uint8)
        for row, prefix in zip(self._before, prefixes, strict=True):
            row[: len(prefix)] = np.frombuffer(prefix, dtype=np.uint8)

    def __call__(self, quantiles: NDArray[np.float32]) -> list[bytes]:
        """The documents of quantiles `[S, M, Q, H]`."""
        rows, width = self._before.shape
        found = []
        for at in range(0, len(quantiles), _SERVERS):
            chosen = at_levels(quantiles[at : at + _SERVERS], self._levels, self._served)
            numbers = _texts(chosen).view(np.uint8).reshape(len(chosen), rows, -1)
            numbers[:, :, -1] = 0  # no comma after a list's last
            documents = np.empty((len(chosen), rows, width + numbers.shape[-1]), dtype=np.uint8)
            documents[:, :, :width] = self._before
            documents[:, :, width:] = numbers
            found += [document.tobytes().translate(None, _PAD) + b"]}}" for document in documents]
        return found


def metrics_json(
    quantiles: NDArray[np.float32], metrics: Sequence[Described], levels: Sequence[float], served: Sequence[float]
) -> list[bytes]:
    """What a `Writer` makes of quantiles `[S, M, Q, H]`."""
    return Writer(metrics, levels, served)(quantiles)


def _prefixes(metrics: Sequence[Described], served: Sequence[float]) -> list[bytes]:
    """What stands before each list of numbers, metric by metric and level by level."""
    found = []
    for metric in metrics:
        for place, level in enumerate(served):
            key = b'"%s":[' % f"{level:g}".encode()
            if place:
                found.append(b"]," + key)
            else:
                head = orjson.dumps(metric.name) + b':{"unit":' + orjson.dumps(metric.unit) + b"," + key
                found.append((b"]}," if found else b"{") + head)
    return found


def _texts(numbers: NDArray[np.float32]) -> Texts:
    """Each number as eight bytes: its text, a comma, and what pads it."""
    flat = np.ascontiguousarray(numbers, dtype=np.float32).reshape(-1)
    rest = np.empty(0, dtype=np.int64)
    if flat.size and not (flat.min() >= 0 and flat.max() < _TOP):
        rest = np.flatnonzero(~((flat >= 0) & (flat < _TOP)))
        odd, flat = flat[rest].tolist(), flat.copy()
        flat[rest] = 0
    half = np.float32(0.5)  # to the nearest
    places = np.where(flat < _SMALL, flat * np.float32(1000) + half, flat * np.float32(10) + (_ENTRIES + half))
    texts: Texts = np.take(_tables(), places.astype(np.intp), mode="clip")
    if len(rest):
        texts[rest] = [_written(number) for number in odd]
    return texts


@cache
def _tables() -> Texts:
    """Numbers with 3 decimals, and behind them those with 1."""
    return np.concatenate([_table(3), _table(1)])


def _table(decimals: int) -> Texts:
    """The texts of 0, 1, ... in units of the last decimal; made by digits, for a general writer would take seconds."""
    entries = np.arange(_ENTRIES)
    whole = entries // 10**decimals
    text = np.zeros((_ENTRIES, _WIDTH), dtype=np.uint8)
    places = 5 - decimals  # digits before the point
    for place in range(places):
        power = 10 ** (places - 1 - place)
        shown = (whole >= power) | (power == 1)
        text[:, place] = np.where(shown, ord("0") + whole // power % 10, 0)
    text[:, places] = ord(".")
    for place in range(decimals):
        text[:, places + 1 + place] = ord("0") + entries // 10 ** (decimals - 1 - place) % 10
    text[:, -1] = ord(",")
    return text.view(np.uint64)[:, 0]


def _written(number: float) -> np.uint64:
    """The text of a number that no table has."""
    if not np.isfinite(number):
        text = "null"
    elif 0 <= number < 9_999_999.5:
        text = f"{number:.0f}"
    else:
        text = f"{number:.1e}" if number > 0 else f"{number:.0e}"
    return np.uint64(int.from_bytes(text.encode().ljust(_WIDTH - 1, _PAD) + b",", sys.byteorder))
