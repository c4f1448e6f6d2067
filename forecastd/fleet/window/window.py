"""The rolling window of a fleet in memory: for each server a ring of ticks, float32, NaN where a value is missing.

Invariant: a value belongs to the tick of its own time and to no other. Nothing here splices, shifts or fills ticks.
The ring is bounded per server, so a new server takes no history from another one. A tick is *open* until `advance`
closes it; the clock of the service decides that, never a sender. A late row still goes to its own tick.

Within one tick the newer row of a server wins, metric by metric: metrics that it lacks keep the value of the older
row. So two agents may report different metrics of one server, and rows may arrive in any order and more than once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forecastd.errors import NeedsHuman
from forecastd.fleet.contract import DEFAULT_STATUS, METRIC_COUNT, STATUSES, FeedResponse
from forecastd.fleet.ingest.feed import FleetRows, ParsedFeed, RowRefusals, filter_by_time
from forecastd.fleet.window.ring import NO_TICK, TickRing
from forecastd.fleet.window.tick_tables import SavedTick


@dataclass(frozen=True)
class WindowBlock:
    """The last L ticks of all servers up to `tick`; row i of each field is one server."""

    tick: int
    servers: tuple[str, ...]
    profiles: tuple[str, ...]
    statuses: tuple[str, ...]  # of each server's newest row
    values: NDArray[np.float32]  # [S, L, M], NaN where missing; [:, -1] is `tick`


class FleetWindow:
    """Per-server rings of `retained_ticks` closed ticks of `step` seconds, for at most `max_servers` servers.
    Thread-safe.

    `ticks_ahead`: how many ticks after the last closed one are accepted. 2 means the open tick and the next; a
    service that allows a clock skew uses `max_ticks_ahead(skew, step)`. A server whose last row is no longer in the
    window is removed, and its slot is free.
    """

    def __init__(self, step: int, retained_ticks: int, max_servers: int, *, ticks_ahead: int = 2) -> None:
        if step < 1 or retained_ticks < 1 or max_servers < 1 or ticks_ahead < 1:
            raise NeedsHuman("The step, the retained ticks, the servers and the ticks ahead must all be at least 1.")
        self.step, self.retained_ticks = step, retained_ticks
        self.max_servers, self.ticks_ahead = max_servers, ticks_ahead
        self._ring = TickRing(retained_ticks + ticks_ahead)
        self._lock = threading.RLock()
        self.newest = -1  # the last closed tick, -1 if there is none
        self._slot_by_server: dict[str, int] = {}
        self._free_slots: list[int] = []
        self._names: list[str] = []  # of each slot that was ever assigned, and its profile
        self._profiles: list[str] = []

    def __len__(self) -> int:
        with self._lock:
            return len(self._slot_by_server)

    def servers(self) -> tuple[str, ...]:
        """The names of the servers, in the order of a block."""
        with self._lock:
            return tuple(self._slot_by_server)

    def profile(self, server: str) -> str | None:
        """The profile of the server's newest row; None for an unknown server."""
        with self._lock:
            slot = self._slot_by_server.get(server)
            return None if slot is None else self._profiles[slot]

    def status(self, server: str) -> str | None:
        """The status of the server's newest row; None for an unknown server."""
        with self._lock:
            slot = self._slot_by_server.get(server)
            return None if slot is None else self._status_of(slot)

    def last_seen(self, server: str) -> float | None:
        """Unix time of the server's newest row; None for an unknown server."""
        with self._lock:
            slot = self._slot_by_server.get(server)
            if slot is None:
                return None
            tick = int(self._ring.last_ticks[slot])
            return tick * self.step + float(self._ring.offsets[slot, tick % self._ring.size])

    def ingest(self, parsed: ParsedFeed, *, now: float, max_skew: float) -> FeedResponse:
        """Check a parsed feed against the time `now`, put its rows in, and return the response to the sender."""
        with self._lock:
            values, ticks = self._previous_rows(parsed.rows)
            rows = filter_by_time(
                parsed.rows, parsed.refusals, now=now, step=self.step, retained_ticks=self.retained_ticks,
                max_skew=max_skew, previous=values, previous_ticks=ticks,
            )  # fmt: skip
            response = self.put(rows, parsed.refusals)
        if parsed.unknown_metrics:
            response.counts["unknown_metric"] = parsed.unknown_metrics.total()
        return response

    def put(self, rows: FleetRows, refusals: RowRefusals | None = None) -> FeedResponse:
        """Put rows into their ticks. Before the first `advance` the tick of the newest row becomes the open one.

        `refusals`: those of the feed so far. Rows that the window had already (same server, same time) are
        duplicates; accepted rows without effect, because their tick has a newer row, count as `superseded`.
        """
        refusals = refusals or RowRefusals()
        with self._lock:
            if len(rows) and self.newest < 0:
                self.advance(int(rows.ticks.max()) - 1)
            rows = self._drop_outside_ring(rows, refusals)
            slots = self._assign_slots(rows, refusals)
            rows, slots = rows.filter(slots >= 0), slots[slots >= 0]
            offsets = rows.offsets(self.step)
            updated, repeated = self._ring.merge(slots, rows.ticks, offsets, rows.status_codes, rows.values)
            self._update_newest(rows, slots, offsets)
            self._ring.unsaved[slots[updated], rows.ticks[updated] % self._ring.size] = True
        counts, duplicates, superseded = dict(refusals.counts), int(repeated.sum()), int((~updated & ~repeated).sum())
        if superseded:
            counts["superseded"] = superseded
        return FeedResponse(
            accepted=len(rows) - duplicates, refused=refusals.total, duplicates=duplicates, reasons=refusals.first,
            counts=counts,
        )  # fmt: skip

    def unsaved(self) -> FleetRows:
        """The current rows of every server and tick that changed since the last call, for the store."""
        with self._lock:
            ring, last = self._ring, self.newest + self.ticks_ahead
            # Flat, because NumPy finds the true cells of one axis several times faster than of two.
            slots, cols = np.divmod(np.flatnonzero(ring.unsaved[: len(self._names)]), ring.size)
            ring.unsaved[slots, cols] = False
            ticks = last - (last - cols) % ring.size
            return FleetRows(
                tuple(self._names[slot] for slot in slots.tolist()),
                tuple(self._profiles[slot] for slot in slots.tolist()),
                tuple(STATUSES[code] for code in ring.status_codes[slots, cols].tolist()),
                (ticks * self.step).astype(np.float64) + ring.offsets[slots, cols],
                ticks,
                ring.values[slots, cols],
                np.arange(len(slots), dtype=np.int64),
            )

    def advance(self, tick: int) -> tuple[str, ...]:
        """Close all ticks up to `tick`; returns the servers that were removed because the window has no row of them.

        A tick that is closed already changes nothing: if the clock is set back, the window waits for it. If it is set
        back by more than the whole window, the window is emptied and starts there.
        """
        with self._lock:
            if tick < self.newest - self.retained_ticks:
                for name in tuple(self._slot_by_server):
                    self._remove_server(name)
                self.newest = -1
            if tick <= self.newest:
                return ()
            first = max(self.newest, tick - self._ring.size)
            self.newest = tick
            new_ticks = np.arange(first, tick) + self.ticks_ahead + 1
            self._ring.clear(slice(0, len(self._names)), new_ticks)
            oldest = tick - self.retained_ticks
            removed = [name for name, slot in self._slot_by_server.items() if self._ring.last_ticks[slot] <= oldest]
            for name in removed:
                self._remove_server(name)
            return tuple(removed)

    def block(self, tick: int, length: int) -> WindowBlock:
        """A copy of the `length` ticks up to `tick` of every server.

        Raises:
            ValueError: the window does not have these ticks.
        """
        with self._lock:
            if length < 1 or tick > self.newest + self.ticks_ahead or tick - length < self.newest - self.retained_ticks:
                held = f"ends at tick {self.newest} and holds {self.retained_ticks}"
                raise ValueError(f"the window {held}; {length} up to {tick} do not fit")
            slots = list(self._slot_by_server.values())
            return WindowBlock(
                tick, tuple(self._slot_by_server), tuple(self._profiles[slot] for slot in slots),
                tuple(self._status_of(slot) for slot in slots),
                self._ring.read(np.array(slots, dtype=np.int64), tick, length),
            )  # fmt: skip

    def restore(self, table: Mapping[int, tuple[str, str]], parts: Iterable[SavedTick]) -> int:
        """Put saved ticks back, the newest first; returns the number of rows restored.

        `table`: name and profile of the servers by id. Restored rows count as saved. Rows outside the window, servers
        beyond `max_servers` and servers that are not in the table are skipped.
        """
        restored = 0
        with self._lock:
            slot_by_id: dict[int, int] = {}
            server_ids = slots = np.empty(0, np.int64)
            for part in parts:
                self._ring.reserve(min(len(part.server_ids), self.max_servers), self.max_servers)
                times = part.start + part.offsets.astype(np.float64)
                ticks = np.floor(times / self.step).astype(np.int64)
                if self.newest < 0:
                    self.advance(int(ticks.max(initial=0)) - 1)
                if not np.array_equal(part.server_ids, server_ids):  # most ticks have the servers of the one before
                    server_ids = part.server_ids
                    for server_id in server_ids.tolist():
                        if server_id not in slot_by_id:
                            slot_by_id[server_id] = self._slot_for(*table[server_id]) if server_id in table else -1
                    slots = np.array([slot_by_id[server_id] for server_id in server_ids.tolist()], dtype=np.int64)
                age = ticks - self.newest
                usable = (slots >= 0) & (age > -self.retained_ticks) & (age <= self.ticks_ahead)
                keep = slice(None) if usable.all() else np.flatnonzero(usable)  # a slice copies nothing
                offsets = (times - ticks * self.step).astype(np.float32)
                self._ring.merge(slots[keep], ticks[keep], offsets[keep], part.status_codes[keep], part.values[keep])
                np.maximum.at(self._ring.last_ticks, slots[keep], ticks[keep])
                restored += int(usable.sum())
            for name in [name for name, slot in self._slot_by_server.items() if self._ring.last_ticks[slot] == NO_TICK]:
                self._remove_server(name)
        return restored

    def _drop_outside_ring(self, rows: FleetRows, refusals: RowRefusals) -> FleetRows:
        """The rows whose ticks are in the ring."""
        early, late = rows.ticks > self.newest + self.ticks_ahead, rows.ticks <= self.newest - self.retained_ticks
        reason = "its time is too far in the future for the window; set the server's clock"
        refusals.add_rows(rows, early, "future", reason)
        refusals.add_rows(rows, late, "old", "its time is before the window; it is too old")
        return rows.filter(~(early | late))

    def _assign_slots(self, rows: FleetRows, refusals: RowRefusals) -> NDArray[np.int64]:
        """The slot of each row, -1 if there is no room for another server."""
        slots = np.array([self._slot_by_server.get(server, -1) for server in rows.servers], dtype=np.int64)
        new_rows = np.flatnonzero(slots < 0).tolist()
        new_servers = {rows.servers[row] for row in new_rows}
        self._ring.reserve(min(len(self._names) + len(new_servers), self.max_servers), self.max_servers)
        for row in new_rows:
            slots[row] = self._slot_for(rows.servers[row], rows.profiles[row])
        fix = "raise FLEET_MAX_SERVERS, or wait until silent servers are removed"
        reason = f"{self.max_servers} servers are in the window, which is the limit; {fix}"
        refusals.add_rows(rows, slots < 0, "too_many_servers", reason)
        return slots

    def _slot_for(self, name: str, profile: str) -> int:
        """The slot of the server, assigned if it is new; -1 if there is no room."""
        if name in self._slot_by_server:
            return self._slot_by_server[name]
        if len(self._slot_by_server) >= self.max_servers:
            return -1
        if self._free_slots:
            slot = self._free_slots.pop()
            self._names[slot], self._profiles[slot] = name, profile
        else:
            slot = len(self._names)
            self._names.append(name)
            self._profiles.append(profile)
            self._ring.reserve(len(self._names), self.max_servers)
        self._slot_by_server[name] = slot
        return slot

    def _remove_server(self, name: str) -> None:
        slot = self._slot_by_server.pop(name)
        self._ring.clear(slice(slot, slot + 1), np.arange(self._ring.size))
        self._ring.last_ticks[slot] = NO_TICK
        self._free_slots.append(slot)

    def _update_newest(self, rows: FleetRows, slots: NDArray[np.int64], offsets: NDArray[np.float32]) -> None:
        """Update each server's newest tick, and its profile from the newest row."""
        np.maximum.at(self._ring.last_ticks, slots, rows.ticks)
        last = self._ring.last_ticks[slots]
        is_newest = (rows.ticks == last) & (offsets >= self._ring.offsets[slots, last % self._ring.size])
        for row in np.flatnonzero(is_newest).tolist():
            self._profiles[slots[row]] = rows.profiles[row]

    def _previous_rows(self, rows: FleetRows) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The newest row of each row's server `[N, M]` and its tick `[N]`; NaN and NO_TICK for an unknown server."""
        values, ticks = np.full((len(rows), METRIC_COUNT), np.nan, np.float32), np.full(len(rows), NO_TICK)
        slots = np.array([self._slot_by_server.get(server, -1) for server in rows.servers], dtype=np.int64)
        has_slot = np.flatnonzero(slots >= 0)
        ticks[has_slot] = self._ring.last_ticks[slots[has_slot]]
        values[has_slot] = self._ring.values[slots[has_slot], ticks[has_slot] % self._ring.size]
        return values, ticks

    def _status_of(self, slot: int) -> str:
        last = int(self._ring.last_ticks[slot])
        return DEFAULT_STATUS if last == NO_TICK else STATUSES[self._ring.status_codes[slot, last % self._ring.size]]


def max_ticks_ahead(max_skew: float, step: int) -> int:
    """How many ticks after the last closed one a row may be from a sender whose clock is `max_skew` seconds fast."""
    return int(max_skew // step) + 2
