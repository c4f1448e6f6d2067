"""A fleet's history as tables: used by training and by the export.

Invariant: a server whose rows came late is in several parts of a tick, and each part has everything known about it by
then. So the last part counts, and parts are never added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.contract import STATUSES
from forecastd.fleet.window.tick_tables import SavedTick, ServerKey


@dataclass(frozen=True)
class HistoryChunk:
    """Some ticks of the history, sorted by tick and server; `values` are `[N, len(metrics)]`, NaN where missing."""

    servers: tuple[str, ...]
    profiles: tuple[str, ...]
    statuses: tuple[str, ...]
    times: NDArray[np.float64]
    metrics: tuple[str, ...]
    values: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.servers)

    def select(
        self, start: float, end: float, servers: Sequence[str] | None, metrics: Sequence[str] | None
    ) -> HistoryChunk:
        """The rows with `start` <= time < `end` of these servers, with these metrics; None selects all.

        Raises:
            ValueError: the history does not have one of the metrics.
        """
        keep = (self.times >= start) & (self.times < end)
        if servers is not None:
            selected = frozenset(servers)
            keep &= np.array([server in selected for server in self.servers], dtype=np.bool_)
        names = self.metrics if metrics is None else tuple(metrics)
        if unknown := [name for name in names if name not in self.metrics]:
            raise ValueError(f"the history has no metric {', '.join(unknown)}")
        rows = np.flatnonzero(keep)
        columns = np.array([self.metrics.index(name) for name in names], dtype=np.int64)
        return HistoryChunk(
            tuple(self.servers[i] for i in rows.tolist()),
            tuple(self.profiles[i] for i in rows.tolist()),
            tuple(self.statuses[i] for i in rows.tolist()),
            self.times[rows],
            names,
            self.values[np.ix_(rows, columns)],
        )


def merge_parts(parts: list[SavedTick], servers: dict[int, ServerKey], metrics: tuple[str, ...]) -> HistoryChunk | None:
    """Saved ticks, sorted by tick and part, as one chunk; of a server in several parts of a tick the last counts."""
    if not parts:
        return None
    server_ids, index = np.unique(np.concatenate([part.server_ids for part in parts]), return_inverse=True)
    keys = [servers.get(server_id, ("", "")) for server_id in server_ids.tolist()]
    is_known = np.array([name != "" for name, _ in keys], dtype=np.bool_)[index]
    # Sorted by name; a server whose profile changed has two ids but is still one server.
    server_index = np.unique([name for name, _ in keys], return_inverse=True)[1][index]
    start = np.repeat([part.start for part in parts], [len(part.server_ids) for part in parts])
    order = np.lexsort((np.arange(len(index)), server_index, start))
    is_last = np.append((np.diff(start[order]) != 0) | (np.diff(server_index[order]) != 0), True)
    rows = order[is_last & is_known[order]]
    row_keys = [keys[i] for i in index[rows].tolist()]
    return HistoryChunk(
        tuple(name for name, _ in row_keys),
        tuple(profile for _, profile in row_keys),
        tuple(STATUSES[state] for state in np.concatenate([part.status_codes for part in parts])[rows].tolist()),
        (start + np.concatenate([part.offsets for part in parts]).astype(np.float64))[rows],
        metrics,
        np.concatenate([part.values for part in parts])[rows],
    )
