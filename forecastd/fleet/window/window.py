"""The rolling window of a fleet in memory: for each server a ring of ticks, float32, NaN where a value is missing.

Invariant: a value belongs to the tick of its own time and to no other. Nothing here splices, shifts or fills ticks.
The ring is bounded per server, so a new server takes no history from another one. A tick is *open* until `advance`
closes it; the clock of the service decides that, never a sender. A late row still goes to its own tick.

Within one tick the newer row of a server wins, metric by metric: metrics that it lacks keep the value of the older
row. So two agents may report different metrics of one server, and rows may arrive in any order and more than once.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forecastd.errors import NeedsHuman
from forecastd.fleet.contract import DEFAULT_STATUS, MAX_REASONS, METRIC_COUNT, STATUSES, FeedResponse
from forecastd.fleet.ingest.feed import FleetRows, ParsedFeed, RowRefusals, filter_by_time
from forecastd.fleet.window.ring import TickRing
from forecastd.fleet.window.tick_codec import SavedTick

NO_TICK = np.iinfo(np.int64).min // 2
_STATUS_CODES = {name: code for code, name in enumerate(STATUSES)}


@dataclass(frozen=True)
class PutReport:
    """The result of putting rows into the window."""

    accepted: int  # new rows, including the superseded ones
    duplicates: int  # rows that the window had already: same server, same time
    superseded: int  # new rows without effect, because their tick has a newer row
    refusals: RowRefusals
    changed_ticks: tuple[int, ...]  # ticks whose values changed, sorted


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
        self._newest: int | None = None
        self._slot_by_server: dict[str, int] = {}
        self._free_slots: list[int] = []
        self._slot_count = 0  # slots that were ever assigned
        self._profiles: list[str] = []
        self._last_ticks = np.empty(0, np.int64)  # [capacity], tick of the newest row
        self._unsaved_ticks: set[int] = set()

    @property
    def newest(self) -> int:
        """The last closed tick, -1 if there is none."""
        with self._lock:
            return -1 if self._newest is None else self._newest

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
            tick = int(self._last_ticks[slot])
            return tick * self.step + float(self._ring.offsets[slot, tick % self._ring.size])

    def ingest(self, parsed: ParsedFeed, *, now: float, max_skew: float) -> FeedResponse:
        """Check a parsed feed against the time `now`, put its rows in, and return the response to the sender."""
        rows, refusals = parsed.rows, parsed.refusals
        with self._lock:
            values, ticks = self._previous_rows(rows)
            rows = filter_by_time(
                rows, refusals, now=now, step=self.step, retained_ticks=self.retained_ticks, max_skew=max_skew,
                previous=values, previous_ticks=ticks,
            )  # fmt: skip
            report = self.put(rows)
        counts = refusals.counts + report.refusals.counts + Counter(parsed.notices())
        if report.superseded:
            counts["superseded"] = report.superseded
        return FeedResponse(
            accepted=report.accepted,
            refused=refusals.total + report.refusals.total,
            duplicates=report.duplicates,
            reasons=[*refusals.first, *report.refusals.first][:MAX_REASONS],
            counts=dict(counts),
        )

    def put(self, rows: FleetRows) -> PutReport:
        """Put rows into their ticks. Before the first `advance` the tick of the newest row becomes the open one."""
        refusals = RowRefusals()
        if not len(rows):
            return PutReport(0, 0, 0, refusals, ())
        with self._lock:
            if self._newest is None:
                self.advance(int(rows.ticks.max()) - 1)
            rows = self._drop_outside_ring(rows, refusals)
            slots = self._assign_slots(rows, refusals)
            rows, slots = rows.filter(slots >= 0), slots[slots >= 0]
            if not len(rows):
                return PutReport(0, 0, 0, refusals, ())
            states = np.array([_STATUS_CODES[status] for status in rows.statuses], dtype=np.uint8)
            offsets = (rows.times - rows.ticks * self.step).astype(np.float32)
            updated, repeated = self._ring.merge(slots, rows.ticks, offsets, states, rows.values)
            self._update_newest(rows, slots, offsets)
            changed = np.unique(rows.ticks[updated]).tolist()
            self._ring.unsaved[slots[updated], rows.ticks[updated] % self._ring.size] = True
            self._unsaved_ticks.update(changed)
            duplicates, superseded = int(repeated.sum()), int((~updated & ~repeated).sum())
            return PutReport(len(rows) - duplicates, duplicates, superseded, refusals, tuple(changed))

    def unsaved(self) -> FleetRows:
        """The current rows of every server and tick that changed since the last call, for the store."""
        with self._lock:
            ring, names, slots, ticks = self._ring, self._names_by_slot(), [], []
            for tick in sorted(self._unsaved_ticks):
                tick_slots = np.flatnonzero(ring.unsaved[: self._slot_count, tick % ring.size])
                ring.unsaved[tick_slots, tick % ring.size] = False
                slots.append(tick_slots)
                ticks.append(np.full(len(tick_slots), tick, np.int64))
            self._unsaved_ticks.clear()
            if not slots:
                return FleetRows.empty()
            slot_of_row, tick_of_row = np.concatenate(slots), np.concatenate(ticks)
            cols = tick_of_row % ring.size
            return FleetRows(
                tuple(names[i] for i in slot_of_row.tolist()),
                tuple(self._profiles[i] for i in slot_of_row.tolist()),
                tuple(STATUSES[i] for i in ring.status_codes[slot_of_row, cols].tolist()),
                (tick_of_row * self.step).astype(np.float64) + ring.offsets[slot_of_row, cols],
                tick_of_row,
                ring.values[slot_of_row, cols],
                np.arange(len(slot_of_row), dtype=np.int64),
            )

    def advance(self, tick: int) -> tuple[str, ...]:
        """Close all ticks up to `tick`; returns the servers that were removed because the window has no row of them.

        A tick that is closed already changes nothing: if the clock is set back, the window waits for it. If it is set
        back by more than the whole window, the window is emptied and starts there.
        """
        with self._lock:
            if self._newest is not None and tick < self._newest - self.retained_ticks:
                self._reset()
            if self._newest is not None and tick <= self._newest:
                return ()
            first = tick - self._ring.size if self._newest is None else max(self._newest, tick - self._ring.size)
            self._newest = tick
            self._ring.clear(
                slice(0, self._slot_count), np.arange(first + self.ticks_ahead + 1, tick + self.ticks_ahead + 1)
            )
            self._unsaved_ticks = {
                unsaved_tick for unsaved_tick in self._unsaved_ticks if unsaved_tick > tick - self.retained_ticks
            }
            removed = [
                name
                for name, slot in self._slot_by_server.items()
                if self._last_ticks[slot] <= tick - self.retained_ticks
            ]
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
                raise ValueError(
                    f"the window ends at tick {self.newest} and holds {self.retained_ticks}; {length} up to {tick} do not fit"
                )
            names = tuple(self._slot_by_server)
            slots = np.fromiter(self._slot_by_server.values(), np.int64, len(names))
            profiles = tuple(self._profiles[slot] for slot in slots.tolist())
            return WindowBlock(
                tick,
                names,
                profiles,
                tuple(self._status_of(slot) for slot in slots.tolist()),
                self._ring.read(slots, tick, length),
            )

    def restore(self, table: Mapping[int, tuple[str, str]], parts: Iterable[SavedTick]) -> int:
        """Put saved ticks back, the newest first; returns the number of rows restored.

        `table`: name and profile of the servers by id. Restored rows count as saved. Rows outside the window, servers
        beyond `max_servers` and servers that are not in the table are skipped.
        """
        restored = 0
        with self._lock:
            known_ids = np.sort(np.fromiter(table, np.int64, len(table)))
            if not len(known_ids):
                return 0
            slot_of = np.full(len(known_ids) + 1, -2, np.int64)  # -2: not looked up yet, -1: no slot
            slot_of[-1] = -1  # for ids that are not in the table
            server_ids = slots = np.empty(0, np.int64)
            for part in parts:
                self._reserve(min(len(part.server_ids), self.max_servers))
                times = part.start + part.offsets.astype(np.float64)
                ticks = np.floor(times / self.step).astype(np.int64)
                if self._newest is None:
                    self.advance(int(ticks.max(initial=0)) - 1)
                if not np.array_equal(
                    part.server_ids, server_ids
                ):  # most ticks have the same servers as the one before
                    server_ids = part.server_ids
                    indices = np.minimum(np.searchsorted(known_ids, server_ids), len(known_ids) - 1)
                    indices = np.where(known_ids[indices] == server_ids, indices, len(known_ids))
                    for index in dict.fromkeys(indices[slot_of[indices] == -2].tolist()):
                        slot_of[index] = self._slot_for(*table[int(known_ids[index])])
                    slots = slot_of[indices]
                in_window = (
                    (slots >= 0)
                    & (ticks > self.newest - self.retained_ticks)
                    & (ticks <= self.newest + self.ticks_ahead)
                )
                target_slots, states, values = slots, part.status_codes, part.values
                if not in_window.all():
                    target_slots, ticks, times = slots[in_window], ticks[in_window], times[in_window]
                    states, values = states[in_window], values[in_window]
                self._ring.merge(target_slots, ticks, (times - ticks * self.step).astype(np.float32), states, values)
                np.maximum.at(self._last_ticks, target_slots, ticks)
                restored += len(target_slots)
            for name in [name for name, slot in self._slot_by_server.items() if self._last_ticks[slot] == NO_TICK]:
                self._remove_server(name)
        return restored

    def _drop_outside_ring(self, rows: FleetRows, refusals: RowRefusals) -> FleetRows:
        """The rows whose ticks are in the ring."""
        early, late = rows.ticks > self.newest + self.ticks_ahead, rows.ticks <= self.newest - self.retained_ticks
        for code, mask, reason in (
            ("future", early, "is too far in the future for the window; set the server's clock"),
            ("old", late, "is before the window; it is too old"),
        ):
            refusals.add_rows(rows, mask, code, lambda _, reason=reason: f"its time {reason}")  # type: ignore[misc]
        return rows.filter(~(early | late))

    def _assign_slots(self, rows: FleetRows, refusals: RowRefusals) -> NDArray[np.int64]:
        """The slot of each row, -1 if there is no room for another server."""
        slots = np.array([self._slot_by_server.get(server, -1) for server in rows.servers], dtype=np.int64)
        new_rows = np.flatnonzero(slots < 0).tolist()
        self._reserve(min(self._slot_count + len({rows.servers[row] for row in new_rows}), self.max_servers))
        for row in new_rows:
            slots[row] = self._slot_for(rows.servers[row], rows.profiles[row])
        message = f"{self.max_servers} servers are in the window, which is the limit"
        refusals.add_rows(
            rows, slots < 0, "too_many_servers",
            lambda _: f"{message}; raise FLEET_MAX_SERVERS, or wait until silent servers are removed",
        )  # fmt: skip
        return slots

    def _slot_for(self, name: str, profile: str) -> int:
        """The slot of the server, assigned if it is new; -1 if there is no room."""
        if name in self._slot_by_server:
            return self._slot_by_server[name]
        if len(self._slot_by_server) >= self.max_servers:
            return -1
        if self._free_slots:
            slot = self._free_slots.pop()
            self._profiles[slot] = profile
        else:
            slot = self._slot_count
            self._slot_count += 1
            self._profiles.append(profile)
            self._reserve(self._slot_count)
        self._slot_by_server[name] = slot
        return slot

    def _remove_server(self, name: str) -> None:
        slot = self._slot_by_server.pop(name)
        self._ring.clear(slice(slot, slot + 1), np.arange(self._ring.size))
        self._last_ticks[slot] = NO_TICK
        self._free_slots.append(slot)

    def _reserve(self, slots: int) -> None:
        self._ring.reserve(slots, self.max_servers)
        extra = len(self._ring.values) - len(self._last_ticks)
        if extra:
            self._last_ticks = np.concatenate([self._last_ticks, np.full(extra, NO_TICK)])

    def _reset(self) -> None:
        for name in tuple(self._slot_by_server):
            self._remove_server(name)
        self._newest = None
        self._unsaved_ticks.clear()

    def _update_newest(self, rows: FleetRows, slots: NDArray[np.int64], offsets: NDArray[np.float32]) -> None:
        """Update each server's newest tick, and its profile from the newest row."""
        np.maximum.at(self._last_ticks, slots, rows.ticks)
        last = self._last_ticks[slots]
        is_newest = (rows.ticks == last) & (offsets >= self._ring.offsets[slots, last % self._ring.size])
        for row in np.flatnonzero(is_newest).tolist():
            self._profiles[slots[row]] = rows.profiles[row]

    def _previous_rows(self, rows: FleetRows) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The newest row of each row's server `[N, M]` and its tick `[N]`; NaN and NO_TICK for an unknown server."""
        values, ticks = np.full((len(rows), METRIC_COUNT), np.nan, np.float32), np.full(len(rows), NO_TICK)
        slots = np.array([self._slot_by_server.get(server, -1) for server in rows.servers], dtype=np.int64)
        has_slot = np.flatnonzero(slots >= 0)
        ticks[has_slot] = self._last_ticks[slots[has_slot]]
        values[has_slot] = self._ring.values[slots[has_slot], ticks[has_slot] % self._ring.size]
        return values, ticks

    def _names_by_slot(self) -> list[str]:
        names = [""] * self._slot_count
        for name, slot in self._slot_by_server.items():
            names[slot] = name
        return names

    def _status_of(self, slot: int) -> str:
        last = int(self._last_ticks[slot])
        return DEFAULT_STATUS if last == NO_TICK else STATUSES[self._ring.status_codes[slot, last % self._ring.size]]


def max_ticks_ahead(max_skew: float, step: int) -> int:
    """How many ticks after the last closed one a row may be from a sender whose clock is `max_skew` seconds fast."""
    return int(max_skew // step) + 2
