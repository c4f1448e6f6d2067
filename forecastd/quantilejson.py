"""Quantiles as the bytes of JSON that are served, made once a tick for all servers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from models.interpolate import at_levels

DECIMALS = {"none": 2, "log1p": 3}  # of a number that is served, by its metric's transformation
_WRITE = orjson.OPT_SERIALIZE_NUMPY


class Described(Protocol):
    """What is told of a metric."""

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def transform(self) -> str: ...


def metrics_json(
    quantiles: NDArray[np.float32], metrics: Sequence[Described], levels: Sequence[float], served: Sequence[float]
) -> list[bytes]:
    """Of each server `{"cpu_percent": {"unit": "%", "0.1": [H numbers], ...}, ...}` from quantiles `[S, M, Q, H]`.

    A number that is not known (NaN) is null.
    """
    keys, units = [f"{level:g}" for level in served], [metric.unit for metric in metrics]
    names, decimals = [metric.name for metric in metrics], [DECIMALS[metric.transform] for metric in metrics]
    found = []
    for server in quantiles:
        chosen = np.ascontiguousarray(at_levels(server, levels, served))
        for row, digits in zip(chosen, decimals, strict=True):
            np.round(row, digits, out=row)
        document = {
            name: {"unit": unit, **dict(zip(keys, rows, strict=True))}
            for name, unit, rows in zip(names, units, chosen, strict=True)
        }
        found.append(orjson.dumps(document, option=_WRITE))
    return found
