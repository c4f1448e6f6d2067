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
_ENTRIES = 100_000  # numbers of a table; it stays in the cache
_SERVERS = 16  # at a time

Texts = NDArray[np.uint64]


class Described(Protocol):
    """What is told of a metric."""

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...


def metrics_json(
    quantiles: NDArray[np.float32], metrics: Sequence[Described], levels: Sequence[float], served: Sequence[float]
) -> list[bytes]:
    """Of each server `{"cpu_percent":{"unit":"%","0.1":[H numbers],...},...}` from quantiles `[S, M, Q, H]`.

    Numbers have 3 decimals below 100, 1 below 10,000 and none above; one that is not known (NaN) is null.
    """
    horizon = quantiles.shape[-1]
    prefixes, width = _prefixes(metrics, served)
    template = np.zeros((len(prefixes), width + horizon * _WIDTH), dtype=np.uint8)
    for row, prefix in zip(template, prefixes, strict=True):
        row[: len(prefix)] = np.frombuffer(prefix, dtype=np.uint8)
    found = []
    for at in range(0, len(quantiles), _SERVERS):
        chosen = at_levels(quantiles[at : at + _SERVERS], levels, served)
        numbers = _texts(chosen).view(np.uint8).reshape(len(chosen), len(prefixes), -1)
        numbers[:, :, -1] = 0  # no comma after a list's last
        documents = np.broadcast_to(template, (len(chosen), *template.shape)).copy()
        documents[:, :, width:] = numbers
        found += [document.tobytes().translate(None, _PAD) + b"]}}" for document in documents]
    return found


def _prefixes(metrics: Sequence[Described], served: Sequence[float]) -> tuple[list[bytes], int]:
    """What stands before each list of numbers, metric by metric and level by level; and the longest's length."""
    found = []
    for metric in metrics:
        for place, level in enumerate(served):
            key = b'"%s":[' % f"{level:g}".encode()
            if place:
                found.append(b"]," + key)
            else:
                head = orjson.dumps(metric.name) + b':{"unit":' + orjson.dumps(metric.unit) + b"," + key
                found.append((b"]}," if found else b"{") + head)
    return found, max(map(len, found), default=0)


def _texts(numbers: NDArray[np.float32]) -> Texts:
    """Each number as eight bytes: its text, a comma, and what pads it."""
    flat = np.ascontiguousarray(numbers, dtype=np.float32).reshape(-1)
    texts = np.empty(flat.size, dtype=np.uint64)
    small = (flat >= 0) & (flat < 99.9995)
    _look_up(texts, flat, small, 3)
    if not small.all():
        large = (flat >= 99.9995) & (flat < 9_999.95)
        _look_up(texts, flat, large, 1)
        for place in np.flatnonzero(~(small | large)).tolist():
            texts[place] = _written(float(flat[place]))
    return texts


def _look_up(texts: Texts, numbers: NDArray[np.float32], where: NDArray[np.bool_], decimals: int) -> None:
    table = _table(decimals)
    if where.all():
        np.take(table, (numbers * np.float32(10**decimals) + np.float32(0.5)).astype(np.int64), out=texts, mode="clip")
    else:
        texts[where] = table[np.rint(numbers[where] * np.float32(10**decimals)).astype(np.int64)]


@cache
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
