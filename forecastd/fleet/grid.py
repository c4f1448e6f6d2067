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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forecastd.errors import NeedsHuman
from forecastd.fleet.contract import DEFAULT_STATUS, MOST_REASONS, STATUSES, FeedAnswer, FeedReason, M
from forecastd.fleet.intake import Parsed, Refusals, Rows, admit
from forecastd.fleet.ring import Ring
from forecastd.fleet.tickblob import SavedTick

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
        self._ring = Ring(keep + ahead)
        self._lock = threading.RLock()
        self._newest: int | None = None
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._used = 0  # slots that were ever given out
        self._profiles: list[str] = []
        self._last = np.empty(0, np.int64)  # [capacity], tick of the newest row
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
            return tick * self.step + float(self._ring.offsets[slot, tick % self._ring.size])

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
        told = [*refusals.first, *report.refusals.first][:MOST_REASONS]
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
            learnt, same = self._ring.merge(slots, rows.ticks, offsets, states, rows.values)
            self._note_newest(rows, slots, offsets)
            changed = np.unique(rows.ticks[learnt]).tolist()
            self._ring.unsaved[slots[learnt], rows.ticks[learnt] % self._ring.size] = True
            self._unsaved_ticks.update(changed)
            duplicates, superseded = int(same.sum()), int((~learnt & ~same).sum())
            return PutReport(len(rows) - duplicates, duplicates, superseded, refusals, tuple(changed))

    def unsaved(self) -> Rows:
        """The rows as they stand now of every server and tick that changed since the last call, for the store to keep."""
        with self._lock:
            ring, names, slots, ticks = self._ring, self._names(), [], []
            for tick in sorted(self._unsaved_ticks):
                at = np.flatnonzero(ring.unsaved[: self._used, tick % ring.size])
                ring.unsaved[at, tick % ring.size] = False
                slots.append(at)
                ticks.append(np.full(len(at), tick, np.int64))
            self._unsaved_ticks.clear()
            if not slots:
                return Rows.none()
            slot, tick_of = np.concatenate(slots), np.concatenate(ticks)
            cols = tick_of % ring.size
            return Rows(
                tuple(names[i] for i in slot.tolist()),
                tuple(self._profiles[i] for i in slot.tolist()),
                tuple(STATUSES[i] for i in ring.states[slot, cols].tolist()),
                (tick_of * self.step).astype(np.float64) + ring.offsets[slot, cols],
                tick_of,
                ring.values[slot, cols],
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
            first = tick - self._ring.size if self._newest is None else max(self._newest, tick - self._ring.size)
            self._newest = tick
            self._ring.empty(slice(0, self._used), np.arange(first + self.ahead + 1, tick + self.ahead + 1))
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
            profiles = tuple(self._profiles[slot] for slot in slots.tolist())
            return Block(
                tick,
                names,
                profiles,
                tuple(self._status_of(slot) for slot in slots.tolist()),
                self._ring.span(slots, tick, length),
            )

    def restore(self, table: Mapping[int, tuple[str, str]], parts: Iterable[SavedTick]) -> int:
        """Put saved ticks back, the newest first; gives how many rows had a place.

        `table` has the name and profile of the servers by number. What is put back counts as saved. What is outside the
        window, servers beyond `most_servers` and servers that are not in the table are left out.
        """
        taken = 0
        with self._lock:
            numbers = np.sort(np.fromiter(table, np.int64, len(table)))
            if not len(numbers):
                return 0
            slot_of = np.full(len(numbers) + 1, -2, np.int64)  # -2: not asked for yet, -1: no place
            slot_of[-1] = -1  # of those that are not in the table
            which = slots = np.empty(0, np.int64)
            for part in parts:
                self._reserve(min(len(part.which), self.most_servers))
                times = part.start + part.offsets.astype(np.float64)
                ticks = np.floor(times / self.step).astype(np.int64)
                if self._newest is None:
                    self.advance(int(ticks.max(initial=0)) - 1)
                if not np.array_equal(part.which, which):  # from tick to tick it is mostly the same servers
                    which = part.which
                    at = np.minimum(np.searchsorted(numbers, which), len(numbers) - 1)
                    at = np.where(numbers[at] == which, at, len(numbers))
                    for one in dict.fromkeys(at[slot_of[at] == -2].tolist()):
                        slot_of[one] = self._slot(*table[int(numbers[one])])
                    slots = slot_of[at]
                fits = (slots >= 0) & (ticks > self.newest - self.keep) & (ticks <= self.newest + self.ahead)
                into, states, values = slots, part.states, part.values
                if not fits.all():
                    into, ticks, times = slots[fits], ticks[fits], times[fits]
                    states, values = states[fits], values[fits]
                self._ring.merge(into, ticks, (times - ticks * self.step).astype(np.float32), states, values)
                np.maximum.at(self._last, into, ticks)
                taken += len(into)
            for name in [name for name, slot in self._slots.items() if self._last[slot] == NEVER]:
                self._leave(name)
        return taken

    def _placed(self, rows: Rows, refusals: Refusals) -> Rows:
        """The rows whose ticks have a place in the ring."""
        early, late = rows.ticks > self.newest + self.ahead, rows.ticks <= self.newest - self.keep
        for code, wrong, told in (
            ("future", early, "is further in the future than the window has a place for; set the server's clock"),
            ("old", late, "is before the window; it is of no use now"),
        ):
            refusals.add_rows(rows, np.flatnonzero(wrong), code, lambda _, told=told: f"its time {told}")  # type: ignore[misc]
        return rows.take(~(early | late))

    def _give_slots(self, rows: Rows, refusals: Refusals) -> NDArray[np.int64]:
        """Each row's slot, -1 where there is no room for another server."""
        slots = np.array([self._slots.get(server, -1) for server in rows.servers], dtype=np.int64)
        unknown = np.flatnonzero(slots < 0).tolist()
        self._reserve(min(self._used + len({rows.servers[at] for at in unknown}), self.most_servers))
        for at in unknown:
            slots[at] = self._slot(rows.servers[at], rows.profiles[at])
        told = f"{self.most_servers} servers are known and there is no room for another"
        refusals.add_rows(
            rows, np.flatnonzero(slots < 0), "too_many_servers",
            lambda _: f"{told}; raise FLEET_MAX_SERVERS, or wait until silent ones have left",
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
            self._reserve(self._used)
        self._slots[name] = slot
        return slot

    def _leave(self, name: str) -> None:
        slot = self._slots.pop(name)
        self._ring.empty(slice(slot, slot + 1), np.arange(self._ring.size))
        self._last[slot] = NEVER
        self._free.append(slot)

    def _reserve(self, slots: int) -> None:
        self._ring.reserve(slots, self.most_servers)
        more = len(self._ring.values) - len(self._last)
        if more:
            self._last = np.concatenate([self._last, np.full(more, NEVER)])

    def _start_again(self) -> None:
        for name in tuple(self._slots):
            self._leave(name)
        self._newest = None
        self._unsaved_ticks.clear()

    def _note_newest(self, rows: Rows, slots: NDArray[np.int64], offsets: NDArray[np.float32]) -> None:
        """Keep each server's newest tick, and its profile as the newest row has it."""
        np.maximum.at(self._last, slots, rows.ticks)
        last = self._last[slots]
        newest = (rows.ticks == last) & (offsets >= self._ring.offsets[slots, last % self._ring.size])
        for at in np.flatnonzero(newest).tolist():
            self._profiles[slots[at]] = rows.profiles[at]

    def _previous(self, rows: Rows) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The newest row of each row's server `[N, M]` and its tick `[N]`; NaN and NEVER for a server that is not there."""
        values, ticks = np.full((len(rows), M), np.nan, np.float32), np.full(len(rows), NEVER)
        slots = np.array([self._slots.get(server, -1) for server in rows.servers], dtype=np.int64)
        known = np.flatnonzero(slots >= 0)
        ticks[known] = self._last[slots[known]]
        values[known] = self._ring.values[slots[known], ticks[known] % self._ring.size]
        return values, ticks

    def _names(self) -> list[str]:
        names = [""] * self._used
        for name, slot in self._slots.items():
            names[slot] = name
        return names

    def _status_of(self, slot: int) -> str:
        last = int(self._last[slot])
        return DEFAULT_STATUS if last == NEVER else STATUSES[self._ring.states[slot, last % self._ring.size]]


def ticks_ahead(skew: float, step: int) -> int:
    """How far ahead of the last closed tick a row may be whose sender's clock is `skew` seconds fast."""
    return int(skew // step) + 2
