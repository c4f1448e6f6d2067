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

from models.quantiles import interpolate_quantiles

_PADDING = b"\0"  # stands in no JSON
_NUMBER_BYTES = 8  # bytes of a number with its comma
_TABLE_SIZE = 100_000  # numbers with as many decimals; those that are used stay in the cache
_BATCH_SIZE = 16  # at a time
_THREE_DECIMALS_LIMIT, _ONE_DECIMAL_LIMIT = (
    np.float32(99.9995),
    np.float32(9_999.95),
)  # up to where numbers have 3 decimals, and 1

PackedTexts = NDArray[np.uint64]


class MetricInfo(Protocol):
    """What is told of a metric."""

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...


class QuantileJsonWriter:
    """Writes `{"cpu_percent":{"unit":"%","0.1":[H numbers],...},...}` for one server after the other.

    Numbers have 3 decimals below 100, 1 below 10,000 and none above; a negative one, which no metric has, has a digit or two,
    and one that is not known (NaN) is null. May be shared by threads.
    """

    def __init__(self, metrics: Sequence[MetricInfo], levels: Sequence[float], output_levels: Sequence[float]) -> None:
        """`levels`: of the quantiles that will be given; `served`: those that are written."""
        self._levels, self._output_levels = tuple(levels), tuple(output_levels)
        prefixes = _build_prefixes(metrics, output_levels)
        self._prefixes = np.zeros((len(prefixes), max(map(len, prefixes), default=0)), dtype=np.uint8)
        for row, prefix in zip(self._prefixes, prefixes, strict=True):
            row[: len(prefix)] = np.frombuffer(prefix, dtype=np.uint8)

    def __call__(self, quantiles: NDArray[np.float32]) -> list[bytes]:
        """The documents of quantiles `[S, M, Q, H]`."""
        rows, width = self._prefixes.shape
        output = []
        for start in range(0, len(quantiles), _BATCH_SIZE):
            values = interpolate_quantiles(quantiles[start : start + _BATCH_SIZE], self._levels, self._output_levels)
            numbers = _format_numbers(values).view(np.uint8).reshape(len(values), rows, -1)
            numbers[:, :, -1] = 0  # no comma after a list's last
            documents = np.empty((len(values), rows, width + numbers.shape[-1]), dtype=np.uint8)
            documents[:, :, :width] = self._prefixes
            documents[:, :, width:] = numbers
            output += [document.tobytes().translate(None, _PADDING) + b"]}}" for document in documents]
        return output


def metrics_json(
    quantiles: NDArray[np.float32],
    metrics: Sequence[MetricInfo],
    levels: Sequence[float],
    output_levels: Sequence[float],
) -> list[bytes]:
    """What a `Writer` makes of quantiles `[S, M, Q, H]`."""
    return QuantileJsonWriter(metrics, levels, output_levels)(quantiles)


def _build_prefixes(metrics: Sequence[MetricInfo], output_levels: Sequence[float]) -> list[bytes]:
    """What stands before each list of numbers, metric by metric and level by level."""
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
    """Each number as eight bytes: its text, a comma, and what pads it."""
    flat = np.ascontiguousarray(numbers, dtype=np.float32).reshape(-1)
    other_indices = np.empty(0, dtype=np.int64)
    if flat.size and not (flat.min() >= 0 and flat.max() < _ONE_DECIMAL_LIMIT):
        other_indices = np.flatnonzero(~((flat >= 0) & (flat < _ONE_DECIMAL_LIMIT)))
        other_numbers, flat = flat[other_indices].tolist(), flat.copy()
        flat[other_indices] = 0
    rounding = np.float32(0.5)  # to the nearest
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
    """Numbers with 3 decimals, and behind them those with 1."""
    return np.concatenate([_number_table(3), _number_table(1)])


def _number_table(decimals: int) -> PackedTexts:
    """The texts of 0, 1, ... in units of the last decimal; made by digits, for a general writer would take seconds."""
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
    """The text of a number that no table has."""
    if not np.isfinite(number):
        text = "null"
    elif 0 <= number < 9_999_999.5:
        text = f"{number:.0f}"
    else:
        text = f"{number:.1e}" if number > 0 else f"{number:.0e}"
    return np.uint64(int.from_bytes(text.encode().ljust(_NUMBER_BYTES - 1, _PADDING) + b",", sys.byteorder))
