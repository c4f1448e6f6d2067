"""The rolling window of a fleet in memory: per server a ring of ticks, float32, NaN where nothing came.

The one thing to know before changing it: a value stands at the tick of its own time and nowhere else. Ticks are never
spliced, shifted or filled here, and the ring is bounded per server, so a new server takes no history from another one. A tick
is *open* until `advance` closes it, which the service's clock decides, never a sender's; a late row still goes to its tick.

Within one tick the newer row of a server wins, metric by metric: what it does not have stays as the older one had it. So two
agents may report different metrics of one server, and rows may come in any order and more than once.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forecastd.errors import NeedsHuman
from forecastd.fleet.contract import DEFAULT_STATUS, STATUSES, FeedAnswer, FeedReason, M
from forecastd.fleet.intake import Parsed, Refusals, Rows, admit
from forecastd.fleet.tickblob import SavedTick

FIRST_CAPACITY = 64  # servers; doubled when it is full
MOST_A_TICK = 16  # rows of one server and tick that a batch is looked through for, the newest
NEVER = np.iinfo(np.int64).min // 2
_STATUS = {name: code for code, name in enumerate(STATUSES)}


@dataclass(frozen=True)
class PutReport:
    """What became of rows that were put into the window."""

    accepted: (
        int  # rows that were new; `superseded` of them brought nothing, because a newer one of their tick was there
    )
    duplicates: int  # rows that were there already: same server, same time
    superseded: int
    refusals: Refusals
    changed: tuple[int, ...]  # ticks whose values changed, sorted


@dataclass(frozen=True)
class Block:
    """The last L ticks of all servers up to `tick`; row i of everything is one server."""

    tick: int
    servers: tuple[str, ...]
    profiles: tuple[str, ...]
    statuses: tuple[str, ...]  # of each server's newest row
    values: NDArray[np.float32]  # [S, L, M], NaN where nothing came; [:, -1] is `tick`


class FleetWindow:
    """Per-server rings of `keep` closed ticks of `step` seconds, for at most `most_servers` servers. Thread-safe.

    `ahead` is how many ticks above the last closed one rows are taken for: 2 are the open tick and the next; a service that
    allows a clock skew takes `ticks_ahead(skew, step)`. A server whose last row has left the window leaves it, and its place
    is free.
    """

    def __init__(self, step: int, keep: int, most_servers: int, *, ahead: int = 2) -> None:
        if step < 1 or keep < 1 or most_servers < 1 or ahead < 1:
            raise NeedsHuman("A fleet's step, the ticks that are kept and the number of servers are all at least 1.")
        self.step, self.keep, self.most_servers, self.ahead = step, keep, most_servers, ahead
        self._ring = keep + ahead
        self._lock = threading.RLock()
        self._newest: int | None = None
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._used = 0  # slots that were ever given out
        self._profiles: list[str] = []
        self._last = np.empty(0, np.int64)  # [capacity], tick of the newest row
        self._values = np.empty((0, self._ring, M), np.float32)
        self._offsets = np.empty((0, self._ring), np.float32)  # seconds into the tick; NaN where there is no row
        self._states = np.empty((0, self._ring), np.uint8)
        self._unsaved = np.empty((0, self._ring), np.bool_)
        self._unsaved_ticks: set[int] = set()

    @property
    def newest(self) -> int:
        """The last closed tick, -1 before there is one."""
        with self._lock:
            return -1 if self._newest is None else self._newest

    def __len__(self) -> int:
        with self._lock:
            return len(self._slots)

    def servers(self) -> tuple[str, ...]:
        """The names of the servers, in the order of a block."""
        with self._lock:
            return tuple(self._slots)

    def profile(self, server: str) -> str | None:
        """The server's profile by its newest row; None for a server that is not there."""
        with self._lock:
            slot = self._slots.get(server)
            return None if slot is None else self._profiles[slot]

    def status(self, server: str) -> str | None:
        """The server's status by its newest row; None for a server that is not there."""
        with self._lock:
            slot = self._slots.get(server)
            return None if slot is None else self._status_of(slot)

    def last_seen(self, server: str) -> float | None:
        """Unix time of the server's newest row; None for a server that is not there."""
        with self._lock:
            slot = self._slots.get(server)
            if slot is None:
                return None
            tick = int(self._last[slot])
            return tick * self.step + float(self._offsets[slot, tick % self._ring])

    def take(self, parsed: Parsed, *, now: float, max_skew: float) -> FeedAnswer:
        """Judge a parsed feed at `now`, put its rows in, and answer the sender."""
        rows, refusals = parsed.rows, parsed.refusals
        with self._lock:
            values, ticks = self._previous(rows)
            rows = admit(
                rows, refusals, now=now, step=self.step, keep=self.keep, max_skew=max_skew,
                previous=values, previous_ticks=ticks,
            )  # fmt: skip
            report = self.put(rows)
        counts = refusals.counts + report.refusals.counts + Counter(parsed.notes())
        if report.superseded:
            counts["superseded"] = report.superseded
        told = [*refusals.first, *report.refusals.first][:100]
        return FeedAnswer(
            accepted=report.accepted,
            refused=refusals.total + report.refusals.total,
            duplicates=report.duplicates,
            reasons=[FeedReason(row=one.row, server=one.server, reason=one.reason, code=one.code) for one in told],
            counts=dict(counts),
        )

    def put(self, rows: Rows) -> PutReport:
        """Put rows in their ticks. Before the first `advance` the newest row's tick becomes the open one."""
        refusals = Refusals()
        if not len(rows):
            return PutReport(0, 0, 0, refusals, ())
        with self._lock:
            if self._newest is None:
                self.advance(int(rows.ticks.max()) - 1)
            rows = self._placed(rows, refusals)
            slots = self._give_slots(rows, refusals)
            rows, slots = rows.take(slots >= 0), slots[slots >= 0]
            if not len(rows):
                return PutReport(0, 0, 0, refusals, ())
            states = np.array([_STATUS[status] for status in rows.statuses], dtype=np.uint8)
            offsets = (rows.times - rows.ticks * self.step).astype(np.float32)
            learnt, same = self._merge(slots, rows.ticks, offsets, states, rows.values)
            self._note_newest(rows, slots)
            changed = np.unique(rows.ticks[learnt]).tolist()
            cols = rows.ticks[learnt] % self._ring
            self._unsaved[slots[learnt], cols] = True
            self._unsaved_ticks.update(changed)
            duplicates, superseded = int(same.sum()), int((~learnt & ~same).sum())
            return PutReport(len(rows) - duplicates, duplicates, superseded, refusals, tuple(changed))

    def unsaved(self) -> Rows:
        """The rows as they stand now of every server and tick that changed since the last call, for the store to keep."""
        with self._lock:
            names, slots, ticks = self._names(), [], []
            for tick in sorted(self._unsaved_ticks):
                at = np.flatnonzero(self._unsaved[: self._used, tick % self._ring])
                self._unsaved[at, tick % self._ring] = False
                slots.append(at)
                ticks.append(np.full(len(at), tick, np.int64))
            self._unsaved_ticks.clear()
            if not slots:
                return Rows.none()
            slot, tick_of = np.concatenate(slots), np.concatenate(ticks)
            cols = tick_of % self._ring
            return Rows(
                tuple(names[i] for i in slot.tolist()),
                tuple(self._profiles[i] for i in slot.tolist()),
                tuple(STATUSES[i] for i in self._states[slot, cols].tolist()),
                (tick_of * self.step).astype(np.float64) + self._offsets[slot, cols],
                tick_of,
                self._values[slot, cols],
                np.arange(len(slot), dtype=np.int64),
            )

    def advance(self, tick: int) -> tuple[str, ...]:
        """Close all ticks up to `tick`; gives the servers that left because nothing came from them in the whole window.

        A tick that is closed already changes nothing: when the clock is set back, the window waits for it. Set back by more
        than the whole window, there is nothing left to wait for: the window is empty and begins there.
        """
        with self._lock:
            if self._newest is not None and tick < self._newest - self.keep:
                self._start_again()
            if self._newest is not None and tick <= self._newest:
                return ()
            first = tick - self._ring if self._newest is None else self._newest
            self._newest = tick
            fresh = np.arange(max(first, tick - self._ring) + self.ahead + 1, tick + self.ahead + 1) % self._ring
            self._empty(slice(0, self._used), fresh)
            self._unsaved_ticks = {one for one in self._unsaved_ticks if one > tick - self.keep}
            gone = [name for name, slot in self._slots.items() if self._last[slot] <= tick - self.keep]
            for name in gone:
                self._leave(name)
            return tuple(gone)

    def block(self, tick: int, length: int) -> Block:
        """The `length` ticks up to `tick` of every server, as a copy.

        Raises:
            ValueError: the window does not hold them.
        """
        with self._lock:
            if length < 1 or tick > self.newest + self.ahead or tick - length < self.newest - self.keep:
                raise ValueError(
                    f"the window ends at tick {self.newest} and holds {self.keep}; {length} up to {tick} do not fit"
                )
            names = tuple(self._slots)
            slots = np.fromiter(self._slots.values(), np.int64, len(names))
            first, last = (tick - length + 1) % self._ring, tick % self._ring
            spans = [(first, last + 1)] if first <= last else [(first, self._ring), (0, last + 1)]
            values = np.empty((len(names), length, M), np.float32)
            dense = len(names) == self._used and bool((slots == np.arange(len(names))).all())
            at = 0
            for begin, end in spans:
                part = self._values[: self._used, begin:end]
                values[:, at : at + end - begin] = part if dense else part[slots]
                at += end - begin
            profiles = tuple(self._profiles[slot] for slot in slots.tolist())
            return Block(tick, names, profiles, tuple(self._status_of(slot) for slot in slots.tolist()), values)

    def restore(self, table: Mapping[int, tuple[str, str]], parts: Iterable[SavedTick]) -> int:
        """Put saved ticks back, the newest first; gives how many rows had a place.

        `table` has the name and profile of the servers by number. What is put back counts as saved. What is outside the
        window, servers beyond `most_servers` and servers that are not in the table are left out.
        """
        taken = 0
        with self._lock:
            slot_of = np.full(max(table, default=0) + 1, -2, np.int64)  # -2: not asked for yet, -1: no place
            for part in parts:
                times = part.start + part.offsets.astype(np.float64)
                ticks = np.floor(times / self.step).astype(np.int64)
                if self._newest is None:
                    self.advance(int(ticks.max(initial=0)) - 1)
                which = np.where(part.which < len(slot_of), part.which, 0)  # no server has the number 0
                for one in np.unique(which[slot_of[which] == -2]).tolist():
                    slot_of[one] = self._slot(*table[one]) if one in table else -1
                slots = slot_of[which]
                fits = (slots >= 0) & (ticks > self.newest - self.keep) & (ticks <= self.newest + self.ahead)
                if not fits.any():
                    continue
                slots, ticks = slots[fits], ticks[fits]
                offsets = (times[fits] - ticks * self.step).astype(np.float32)
                self._merge(slots, ticks, offsets, part.states[fits], part.values[fits])
                np.maximum.at(self._last, slots, ticks)
                taken += len(slots)
            for name in [name for name, slot in self._slots.items() if self._last[slot] == NEVER]:
                self._leave(name)
        return taken

    def _placed(self, rows: Rows, refusals: Refusals) -> Rows:
        """The rows whose ticks have a place in the ring."""
        early, late = rows.ticks > self.newest + self.ahead, rows.ticks <= self.newest - self.keep
        for code, wrong, told in (
            ("future", early, "is further in the future than the window has a place for; set the server's clock"),
            ("old", late, "is before the window; a row that old cannot be used any more"),
        ):
            for at in np.flatnonzero(wrong).tolist():
                refusals.add(int(rows.places[at]), rows.servers[at], f"time {rows.times[at]:.0f} {told}", code)
        return rows.take(~(early | late))

    def _give_slots(self, rows: Rows, refusals: Refusals) -> NDArray[np.int64]:
        """Each row's slot, -1 where there is no room for another server."""
        slots = np.array([self._slots.get(server, -1) for server in rows.servers], dtype=np.int64)
        for at in np.flatnonzero(slots < 0).tolist():
            slots[at] = self._slot(rows.servers[at], rows.profiles[at])
            if slots[at] < 0:
                told = f"{self.most_servers} servers are known and there is no room for another"
                refusals.add(
                    int(rows.places[at]), rows.servers[at],
                    f"{told}; raise FLEET_MAX_SERVERS, or wait until silent ones have left", "too_many_servers",
                )  # fmt: skip
        return slots

    def _slot(self, name: str, profile: str) -> int:
        """The server's slot, given to it when it is new; -1 where there is no room."""
        if name in self._slots:
            return self._slots[name]
        if len(self._slots) >= self.most_servers:
            return -1
        if self._free:
            slot = self._free.pop()
            self._profiles[slot] = profile
        else:
            slot = self._used
            self._used += 1
            self._profiles.append(profile)
            if slot >= len(self._last):
                self._grow()
        self._slots[name] = slot
        return slot

    def _leave(self, name: str) -> None:
        slot = self._slots.pop(name)
        self._empty(slice(slot, slot + 1), np.arange(self._ring))
        self._last[slot] = NEVER
        self._free.append(slot)

    def _start_again(self) -> None:
        for name in tuple(self._slots):
            self._leave(name)
        self._newest = None
        self._unsaved_ticks.clear()

    def _grow(self) -> None:
        """Twice as many slots; what is in them stays where it is."""
        more = min(max(FIRST_CAPACITY, len(self._last)), max(self.most_servers - len(self._last), 1))
        self._last = np.concatenate([self._last, np.full(more, NEVER)])
        self._values = np.concatenate([self._values, np.full((more, self._ring, M), np.nan, np.float32)])
        self._offsets = np.concatenate([self._offsets, np.full((more, self._ring), np.nan, np.float32)])
        self._states = np.concatenate([self._states, np.zeros((more, self._ring), np.uint8)])
        self._unsaved = np.concatenate([self._unsaved, np.zeros((more, self._ring), np.bool_)])

    def _empty(self, slots: slice, cols: NDArray[np.int64]) -> None:
        self._values[slots, cols] = np.nan
        self._offsets[slots, cols] = np.nan
        self._unsaved[slots, cols] = False

    def _merge(
        self,
        slots: NDArray[np.int64],
        ticks: NDArray[np.int64],
        offsets: NDArray[np.float32],
        states: NDArray[np.uint8],
        values: NDArray[np.float32],
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Lay rows over what their ticks have; which of them brought something new, and which were there already."""
        learnt, same = np.zeros(len(slots), np.bool_), np.zeros(len(slots), np.bool_)
        cols = ticks % self._ring
        for part in _rounds(slots * self._ring + cols, offsets):
            at = (slots[part], cols[part])
            old_offset, old, offset, new = self._offsets[at], self._values[at], offsets[part], values[part]
            newer = np.isnan(old_offset) | (offset > old_offset)
            merged = np.where((newer[:, None] & ~np.isnan(new)) | np.isnan(old), new, old)
            learns = newer | (np.isnan(old) & ~np.isnan(new)).any(axis=1)
            self._values[at] = merged
            self._offsets[at] = np.where(newer, offset, old_offset)
            self._states[at] = np.where(newer, states[part], self._states[at])
            learnt[part], same[part] = learns, ~learns & (offset == old_offset)
        return learnt, same

    def _note_newest(self, rows: Rows, slots: NDArray[np.int64]) -> None:
        """Keep each server's newest tick, and its profile as the newest row has it."""
        newest = rows.ticks >= self._last[slots]
        np.maximum.at(self._last, slots, rows.ticks)
        for at in np.flatnonzero(newest).tolist():
            self._profiles[slots[at]] = rows.profiles[at]

    def _previous(self, rows: Rows) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The newest row of each row's server `[N, M]` and its tick `[N]`; NaN and NEVER for a server that is not there."""
        values, ticks = np.full((len(rows), M), np.nan, np.float32), np.full(len(rows), NEVER)
        slots = np.array([self._slots.get(server, -1) for server in rows.servers], dtype=np.int64)
        known = np.flatnonzero(slots >= 0)
        ticks[known] = self._last[slots[known]]
        values[known] = self._values[slots[known], ticks[known] % self._ring]
        return values, ticks

    def _names(self) -> list[str]:
        names = [""] * self._used
        for name, slot in self._slots.items():
            names[slot] = name
        return names

    def _status_of(self, slot: int) -> str:
        last = int(self._last[slot])
        return DEFAULT_STATUS if last == NEVER else STATUSES[self._states[slot, last % self._ring]]


def ticks_ahead(skew: float, step: int) -> int:
    """How far ahead of the last closed tick a row may be whose sender's clock is `skew` seconds fast."""
    return int(skew // step) + 2


def _rounds(keys: NDArray[np.int64], offsets: NDArray[np.float32]) -> Iterator[NDArray[np.int64]]:
    """Indices in rounds that have each key once, the older rows first; of each key at most the newest `MOST_A_TICK`."""
    if len(np.unique(keys)) == len(keys):
        yield np.arange(len(keys))
        return
    order = np.lexsort((offsets, keys))
    _, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
    from_end = np.repeat(starts + counts, counts) - np.arange(len(keys))  # 1 is a key's newest
    for place in range(min(int(counts.max()), MOST_A_TICK), 0, -1):
        yield order[from_end == place]
