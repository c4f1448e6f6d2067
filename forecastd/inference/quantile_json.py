"""Format quantiles as JSON bytes, once per tick for all servers of the fleet.

A fleet of thousands of servers has millions of numbers per tick; a general JSON writer would take longer than the
model. Here a number is an index into a table of texts, and the JSON of a server is a template of fixed width into which
the texts are copied. The padding bytes are removed at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from models.quantiles import interpolate_quantiles

_PADDING = b"\0"  # never occurs in JSON
_NUMBER_BYTES = 8  # bytes per number, including its comma
_TABLE_SIZE = 100_000  # numbers per count of decimals; the entries in use stay in the CPU cache
_BATCH_SIZE = 16  # servers per batch
_THREE_DECIMALS_LIMIT = np.float32(99.9995)  # smaller numbers have 3 decimals
_ONE_DECIMAL_LIMIT = np.float32(9_999.95)  # smaller numbers have 1 decimal

PackedTexts = NDArray[np.uint64]


class MetricInfo(Protocol):
    """The fields of a metric that the JSON contains."""

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...


class QuantileJsonWriter:
    """Writes `{"cpu_percent":{"unit":"%","0.1":[H numbers],...},...}` for each server.

    Numbers have 3 decimals below 100, 1 below 10,000 and none above. Negative numbers, which no metric has, get one or
    two significant digits; NaN is null. May be shared by threads.
    """

    def __init__(self, metrics: Sequence[MetricInfo], levels: Sequence[float], output_levels: Sequence[float]) -> None:
        """`levels`: levels of the input quantiles; `output_levels`: levels that are written."""
        self._levels, self._output_levels = tuple(levels), tuple(output_levels)
        prefixes = _build_prefixes(metrics, output_levels)
        self._prefixes = np.zeros((len(prefixes), max(map(len, prefixes), default=0)), dtype=np.uint8)
        for row, prefix in zip(self._prefixes, prefixes, strict=True):
            row[: len(prefix)] = np.frombuffer(prefix, dtype=np.uint8)

    def __call__(self, quantiles: NDArray[np.float32]) -> list[bytes]:
        """One JSON document per server, from quantiles `[S, M, Q, H]`."""
        rows, width = self._prefixes.shape
        output = []
        for start in range(0, len(quantiles), _BATCH_SIZE):
            values = interpolate_quantiles(quantiles[start : start + _BATCH_SIZE], self._levels, self._output_levels)
            numbers = _format_numbers(values).view(np.uint8).reshape(len(values), rows, -1)
            numbers[:, :, -1] = 0  # no comma after the last number of a list
            documents = np.empty((len(values), rows, width + numbers.shape[-1]), dtype=np.uint8)
            documents[:, :, :width] = self._prefixes
            documents[:, :, width:] = numbers
            output += [document.tobytes().translate(None, _PADDING) + b"]}}" for document in documents]
        return output


def _build_prefixes(metrics: Sequence[MetricInfo], output_levels: Sequence[float]) -> list[bytes]:
    """The bytes before each list of numbers, by metric and level."""
    prefixes = []
    for metric in metrics:
        for index, level in enumerate(output_levels):
            key = b'"%s":[' % f"{level:g}".encode()
            if index:
                prefixes.append(b"]," + key)
            else:
                head = orjson.dumps(metric.name) + b':{"unit":' + orjson.dumps(metric.unit) + b"," + key
                prefixes.append((b"]}," if prefixes else b"{") + head)
    return prefixes


def _format_numbers(numbers: NDArray[np.float32]) -> PackedTexts:
    """Each number as eight bytes: its text, a comma and padding."""
    flat = np.ascontiguousarray(numbers, dtype=np.float32).reshape(-1)
    other_indices = np.empty(0, dtype=np.int64)
    if flat.size and not (flat.min() >= 0 and flat.max() < _ONE_DECIMAL_LIMIT):
        other_indices = np.flatnonzero(~((flat >= 0) & (flat < _ONE_DECIMAL_LIMIT)))
        other_numbers, flat = flat[other_indices].tolist(), flat.copy()
        flat[other_indices] = 0
    rounding = np.float32(0.5)  # rounds to the nearest entry
    table_indices = np.where(
        flat < _THREE_DECIMALS_LIMIT,
        flat * np.float32(1000) + rounding,
        flat * np.float32(10) + (_TABLE_SIZE + rounding),
    )
    texts: PackedTexts = np.take(_number_tables(), table_indices.astype(np.intp), mode="clip")
    if len(other_indices):
        texts[other_indices] = [_format_number(number) for number in other_numbers]
    return texts


@cache
def _number_tables() -> PackedTexts:
    """The table of numbers with 3 decimals, followed by that with 1 decimal."""
    return np.concatenate([_number_table(3), _number_table(1)])


def _number_table(decimals: int) -> PackedTexts:
    """The texts of 0, 1, ... in units of the last decimal. Built digit by digit: formatting each would take seconds."""
    entries = np.arange(_TABLE_SIZE)
    whole = entries // 10**decimals
    text = np.zeros((_TABLE_SIZE, _NUMBER_BYTES), dtype=np.uint8)
    whole_digits = 5 - decimals  # digits before the point
    for digit in range(whole_digits):
        power = 10 ** (whole_digits - 1 - digit)
        is_visible = (whole >= power) | (power == 1)
        text[:, digit] = np.where(is_visible, ord("0") + whole // power % 10, 0)
    text[:, whole_digits] = ord(".")
    for digit in range(decimals):
        text[:, whole_digits + 1 + digit] = ord("0") + entries // 10 ** (decimals - 1 - digit) % 10
    text[:, -1] = ord(",")
    return text.view(np.uint64)[:, 0]


def _format_number(number: float) -> np.uint64:
    """The text of a number that is not in the tables."""
    if not np.isfinite(number):
        text = "null"
    elif 0 <= number < 9_999_999.5:
        text = f"{number:.0f}"
    else:
        text = f"{number:.1e}" if number > 0 else f"{number:.0e}"
    return np.uint64(int.from_bytes(text.encode().ljust(_NUMBER_BYTES - 1, _PADDING) + b",", sys.byteorder))
