"""The current values of all servers at a tick: the newest value of every metric, and how long a server has been
silent.

Invariant: agents do not send at every tick, and rows come late. So a value replaces missing ones for a few ticks, and
its age is kept with it: one value must never count as several.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.window.window import WindowBlock

MAX_CARRY_TICKS = 3  # ticks for which a metric's last value replaces a missing one
SILENT_WARNING_TICKS, SILENT_CRITICAL_TICKS = 12, 60  # ticks without data after which a server is at that level


@dataclass(frozen=True)
class CurrentValues:
    """The values of the servers at `tick`; `step` in seconds. Arrays have the order of `servers`.

    Args:
        values: [S, M], the newest value of each metric, NaN if older than `MAX_CARRY_TICKS` ticks
        age_ticks: [S, M], the age of the value
        silent_ticks: [S], ticks since the last row of the server
    """

    tick: int
    step: int
    servers: tuple[str, ...]
    profiles: tuple[str, ...]
    statuses: tuple[str, ...]
    values: NDArray[np.float64]
    age_ticks: NDArray[np.int64]
    silent_ticks: NDArray[np.int64]


def current_values(block: WindowBlock, step: int) -> CurrentValues:
    """The values at the last tick of a block."""
    values = block.values
    newest_first = values[:, -1 : -MAX_CARRY_TICKS - 2 : -1]
    age_ticks = np.zeros((len(values), values.shape[2]), dtype=np.int64)
    current = np.full(age_ticks.shape, np.nan)
    if newest_first.shape[1]:
        age_ticks[...] = np.argmax(~np.isnan(newest_first), axis=1)
        current[...] = np.take_along_axis(newest_first, age_ticks[:, None, :], axis=1)[:, 0]
    has_data = np.asarray(~np.isnan(values).all(axis=2))
    ticks = np.arange(1, values.shape[1] + 1)
    silent_ticks = np.asarray(values.shape[1] - (has_data * ticks).max(axis=1, initial=0))
    return CurrentValues(
        block.tick, step, block.servers, block.profiles, block.statuses, current, age_ticks, silent_ticks
    )
