"""Turns what a sender posts into rows: partial acceptance, every refusal with row, server, cause and fix.

The one thing to know before changing it: a bad row never costs the others, and a row is either taken whole or not at all.
What needs neither the clock nor the window is judged by `parse_feed` (or `check`, for records that came another way), the
rest by `admit`; whether there is room for another server only the window knows. All of it is pure. A batch of 2,000 rows is
judged in a few milliseconds: per row only what Python must look at, per number with numpy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from pydantic_core import from_json

from forecastd.clock import iso
from forecastd.fleet.contract import (
    CONTRACT_VERSION,
    DEFAULT_PROFILE,
    DEFAULT_STATUS,
    INDEX,
    METRICS,
    MOST_REASONS,
    NDJSON,
    PERCENTS,
    SERVER,
    Envelope,
    FeedError,
    M,
    clip,
    factor,
)
from forecastd.fleet.record import BadRecord, complaint, judge

LOW = np.array([metric.low for metric in METRICS])
HIGH = np.array([metric.high for metric in METRICS])
ROUNDING = 1e-9  # what a sender's arithmetic may be off: 100.00000000000001 % is 100 %
JUMP = (50.0, 200.0)  # "by a factor of about 100"
JUMPED = 3  # percent metrics that have to jump together
JUDGED = 60  # ticks for which a server's previous row speaks against a jump; what lasts longer is taken for true


@dataclass(frozen=True)
class Rows:
    """N judged rows, in the order of the feed. Values are in the contract's units, NaN where the row has none."""

    servers: tuple[str, ...]
    profiles: tuple[str, ...]
    statuses: tuple[str, ...]
    times: NDArray[np.float64]  # [N], unix seconds
    ticks: NDArray[np.int64]  # [N], floor(time / step)
    values: NDArray[np.float32]  # [N, M]
    places: NDArray[np.int64]  # [N], each row's place in what was sent, from 0

    def __len__(self) -> int:
        return len(self.servers)

    @classmethod
    def of(
        cls,
        servers: Sequence[str],
        times: Sequence[float] | NDArray[np.float64],
        values: NDArray[np.floating[Any]],
        *,
        step: int,
        profiles: Sequence[str] | None = None,
        statuses: Sequence[str] | None = None,
    ) -> Rows:
        """Rows of known-good values `[N, M]`, such as a simulator's. Nothing is checked."""
        count = len(servers)
        moments = np.asarray(times, dtype=np.float64)
        return cls(
            tuple(servers),
            tuple(profiles) if profiles is not None else (DEFAULT_PROFILE,) * count,
            tuple(statuses) if statuses is not None else (DEFAULT_STATUS,) * count,
            moments,
            np.floor(moments / step).astype(np.int64),
            np.ascontiguousarray(values, dtype=np.float32),
            np.arange(count, dtype=np.int64),
        )

    @classmethod
    def none(cls) -> Rows:
        """No rows."""
        return cls.of((), (), np.empty((0, M), np.float32), step=1)

    def take(self, keep: NDArray[np.bool_]) -> Rows:
        """The rows where `keep` `[N]` is true."""
        return self if bool(keep.all()) else self.at(np.flatnonzero(keep))

    def at(self, places: NDArray[np.int64]) -> Rows:
        """The rows in these places, in this order."""
        which = places.tolist()
        return Rows(
            tuple(self.servers[i] for i in which),
            tuple(self.profiles[i] for i in which),
            tuple(self.statuses[i] for i in which),
            self.times[places],
            self.ticks[places],
            self.values[places],
            self.places[places],
        )

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """All rows of several."""
        parts = parts or [cls.none()]
        return cls(
            tuple(name for part in parts for name in part.servers),
            tuple(name for part in parts for name in part.profiles),
            tuple(name for part in parts for name in part.statuses),
            np.concatenate([part.times for part in parts]),
            np.concatenate([part.ticks for part in parts]),
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.places for part in parts]),
        )


@dataclass(frozen=True)
class Refusal:
    """Why a row was not taken, in words for its sender; `code` is the stable name that is counted."""

    row: int
    server: str | None
    reason: str
    code: str


@dataclass
class Refusals:
    """The refusals of one feed: the first `MOST_REASONS` in words, all of them counted. Bounded, whatever is sent."""

    first: list[Refusal] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, row: int, server: object, reason: str, code: str) -> None:
        """One more."""
        self.counts[code] += 1
        if len(self.first) < MOST_REASONS:
            known = isinstance(server, str) and SERVER.fullmatch(server) is not None
            self.first.append(
                Refusal(int(row), str(server) if known else None if server is None else clip(server), reason, code)
            )

    def add_rows(self, rows: Rows, at: NDArray[np.int64], code: str, say: Callable[[int], str]) -> None:
        """Several of `rows`, for the same cause; `say` is asked only for those that are told."""
        told = at[: max(0, MOST_REASONS - len(self.first))].tolist()
        for one in told:
            self.add(int(rows.places[one]), rows.servers[one], say(one), code)
        if len(at) > len(told):
            self.counts[code] += len(at) - len(told)

    def merge(self, other: Refusals) -> None:
        """Those of another part of the same feed."""
        self.counts.update(other.counts)
        self.first += other.first[: MOST_REASONS - len(self.first)]

    @property
    def total(self) -> int:
        """How many rows were refused."""
        return self.counts.total()


@dataclass(frozen=True)
class Parsed:
    """A feed as far as it can be judged by itself: its good rows, the refusals so far, and what was noticed else."""

    rows: Rows
    refusals: Refusals
    unknown: Counter[str]  # metrics of no known name -> rows that had it; at most `MOST_REASONS` names

    def notes(self) -> dict[str, int]:
        """What is told beside the refusals, by name."""
        return {"unknown_metric": self.unknown.total()} if self.unknown else {}


def parse_feed(body: bytes, content_type: str | None, *, step: int) -> Parsed:
    """The rows of a `POST /feed`: JSON of the contract's shape, or NDJSON (a record a line) where `content_type` says so.

    Raises:
        FeedError: the body is no feed at all.
    """
    if (content_type or "").partition(";")[0].strip().lower() in {NDJSON, "application/ndjson", "application/jsonl"}:
        return _lines(body, step)
    if not body.strip():
        raise FeedError(f'the body is empty; a feed is {{"version": {CONTRACT_VERSION}, "records": [...]}}')
    try:
        sent = from_json(body.removeprefix(b"\xef\xbb\xbf"), allow_inf_nan=True)
    except ValueError as error:
        raise FeedError(f"the body is not JSON: {error}") from None
    if not isinstance(sent, dict):
        raise FeedError(f'the body is {clip(sent)}; a feed is {{"version": {CONTRACT_VERSION}, "records": [...]}}')
    version = sent.get("version")
    if isinstance(version, bool) or version != CONTRACT_VERSION:
        told = "is missing" if version is None else f"is {clip(version)}"
        raise FeedError(f"the feed's version {told}; this forecastd takes version {CONTRACT_VERSION}")
    try:
        envelope = Envelope.model_validate(sent)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(clip(part).strip("'") for part in first["loc"])
        raise FeedError(f"{where}: {first['msg']}; records is a list of objects, units an object of texts") from None
    return check(envelope.records, step=step, units=envelope.units)


def check(records: Sequence[object], *, step: int, units: dict[str, str] | None = None, first: int = 0) -> Parsed:
    """Judge records as a feed's `records` would be, whichever way they came; `first` is the place of the first of them.

    Raises:
        FeedError: `units` names a metric or a unit that is not known.
    """
    factors = np.ones(M)
    for metric, unit in (units or {}).items():
        value = factor(metric, unit)
        factors[INDEX[metric]] = value
    return _judge(records, step, factors, Refusals(), range(first, first + len(records)))


def _lines(body: bytes, step: int) -> Parsed:
    """NDJSON: a line that is not JSON costs that line."""
    refusals = Refusals()
    records: list[object] = []
    places: list[int] = []
    for place, line in enumerate(body.removeprefix(b"\xef\xbb\xbf").split(b"\n")):
        if not line.strip():
            continue
        try:
            records.append(from_json(line, allow_inf_nan=True))
            places.append(place)
        except ValueError as error:
            refusals.add(place, None, f"the line is not JSON: {error}; one record a line", "not_json")
    return _judge(records, step, np.ones(M), refusals, places)


def _judge(
    records: Sequence[object], step: int, factors: NDArray[np.float64], refusals: Refusals, places: Sequence[int]
) -> Parsed:
    servers, profiles, statuses = [], [], []
    times, table, missing, kept = [], [], [], []
    unknown: Counter[str] = Counter()
    for place, record in zip(places, records, strict=True):
        try:
            server, time, profile, status, values, empty = judge(record, unknown)
        except BadRecord as bad:
            refusals.add(place, record.get("server") if isinstance(record, dict) else None, str(bad), bad.code)
            continue
        servers.append(server)
        profiles.append(profile)
        statuses.append(status)
        times.append(time)
        table.append(values)
        missing.append(empty)
        kept.append(place)
    with np.errstate(over="ignore", invalid="ignore"):
        values64 = np.array(table, dtype=np.float64).reshape(-1, M) * factors
    clipped = np.clip(values64, LOW, HIGH)
    rows = replace(
        Rows.of(servers, times, clipped, step=step, profiles=profiles, statuses=statuses),
        places=np.array(kept, dtype=np.int64),
    )
    wrong = (values64 < LOW - ROUNDING) | (values64 > HIGH * (1 + ROUNDING))
    bad_rows = wrong.any(axis=1) | (np.isnan(values64).sum(axis=1) != np.array(missing, dtype=np.int64))
    for at in np.flatnonzero(bad_rows).tolist():
        reason, code = complaint(table[at], values64[at], wrong[at])
        refusals.add(kept[at], servers[at], reason, code)
    return Parsed(rows.take(~bad_rows), refusals, unknown)


def admit(
    rows: Rows,
    refusals: Refusals,
    *,
    now: float,
    step: int,
    keep: int,
    max_skew: float,
    previous: NDArray[np.float32] | None = None,
    previous_ticks: NDArray[np.int64] | None = None,
) -> Rows:
    """The rows that may go into a window of `keep` ticks at `now`; the refused ones are added to `refusals`.

    A time up to `max_skew` seconds ahead of `now` is a clock that is a little fast: the row goes to the tick of its own time,
    where the window keeps a place for it, and counts when that tick has closed. Nothing is moved, so that sending a row
    twice remains the same row.

    `previous` `[N, M]` and `previous_ticks` `[N]` are the last row of each row's server (NaN, and any tick, where there
    is none): where at least `JUMPED` percent metrics are all about 100 times what they were, up or down, the unit is wrong.
    """
    oldest = (int(now // step) - keep) * step
    early, late = rows.times > now + max_skew, rows.times < oldest

    def too_early(at: int) -> str:
        told = f"time {_moment(rows.times[at])} is {rows.times[at] - now:.0f} s in the future (now {_moment(now)})"
        return f"{told}; set the server's clock, or raise FLEET_MAX_SKEW"

    def too_late(at: int) -> str:
        return f"time {_moment(rows.times[at])} is before the window, which begins at {_moment(oldest)}; it is of no use now"

    refusals.add_rows(rows, np.flatnonzero(early), "future", too_early)
    refusals.add_rows(rows, np.flatnonzero(late), "old", too_late)
    good = ~(early | late)
    if previous is not None and previous_ticks is not None:
        jumped = good & _jumped(rows.values, previous) & (np.abs(rows.ticks - previous_ticks) <= JUDGED)
        told = "all percent metrics are about 100 times more or less than in the server's last row"
        refusals.add_rows(
            rows, np.flatnonzero(jumped), "unit", lambda _: f"{told}: sent as a ratio, or in hundredths? Send percent"
        )
        good &= ~jumped
    return rows.take(good)


def _jumped(values: NDArray[np.float32], previous: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where at least `JUMPED` percent metrics can be compared and all that can be have jumped the same way `[N]`."""
    new, old = values[:, PERCENTS].astype(np.float64), previous[:, PERCENTS].astype(np.float64)
    comparable = (new > 0) & (old > 0)
    ratio = np.divide(new, old, out=np.ones_like(new), where=comparable)
    count = comparable.sum(axis=1)
    result = np.zeros(len(values), dtype=bool)
    for factors in (ratio, 1 / ratio):
        jumps = comparable & (factors > JUMP[0]) & (factors < JUMP[1])
        result |= (count >= JUMPED) & (jumps.sum(axis=1) == count)
    return result


def _moment(seconds: float) -> str:
    try:
        return iso(seconds)
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f}"
