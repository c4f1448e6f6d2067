"""Turns what a sender posts into rows: partial acceptance, every refusal with row, server, cause and fix.

The one thing to know before changing it: a bad row never costs the others, and a row is either taken whole or not at all.
What needs neither the clock nor the window is judged by `parse_feed` (or `check`, for records that came another way), the
rest by `admit`; whether there is room for another server only the window knows. All of it is pure. A batch of 2,000 rows is
judged in a few milliseconds: per row only what Python must look at, per number with numpy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from operator import itemgetter
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
    NAMES,
    NDJSON,
    PERCENTS,
    PROFILE,
    SERVER,
    STATUSES,
    Envelope,
    FeedError,
    M,
    clip,
    factor,
)

LOW = np.array([metric.low for metric in METRICS])
HIGH = np.array([metric.high for metric in METRICS])
MILLISECONDS = 1e11  # a time above this is no number of seconds before the year 5138
MOST_TEXT = 40  # characters of a time
JUMP = (50.0, 200.0)  # "by a factor of about 100"
JUMPED = 3  # percent metrics that have to jump together
_ALL = itemgetter(*NAMES)
_PLAIN = frozenset({float, type(None)})
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
        if bool(keep.all()):
            return self
        at = np.flatnonzero(keep).tolist()
        return Rows(
            tuple(self.servers[i] for i in at),
            tuple(self.profiles[i] for i in at),
            tuple(self.statuses[i] for i in at),
            self.times[keep],
            self.ticks[keep],
            self.values[keep],
            self.places[keep],
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
            name = (
                None if server is None else server if isinstance(server, str) and len(server) <= 128 else clip(server)
            )
            self.first.append(Refusal(int(row), name, reason, code))

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


class _Bad(Exception):
    """A row that is refused."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


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


def check(records: Sequence[object], *, step: int, units: dict[str, str] | None = None) -> Parsed:
    """Judge records as a feed's `records` would be, whichever way they came.

    Raises:
        FeedError: `units` names a metric or a unit that is not known.
    """
    factors = np.ones(M)
    for metric, unit in (units or {}).items():
        value = factor(metric, unit)
        factors[INDEX[metric]] = value
    return _judge(records, step, factors, Refusals(), range(len(records)))


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
            server, time, profile, status, values, empty = _row(record, unknown)
        except _Bad as bad:
            refusals.add(place, record.get("server") if isinstance(record, dict) else None, str(bad), bad.code)
            continue
        servers.append(server)
        profiles.append(profile)
        statuses.append(status)
        times.append(time)
        table.append(values)
        missing.append(empty)
        kept.append(place)
    values64 = np.array(table, dtype=np.float64).reshape(-1, M) * factors
    rows = replace(
        Rows.of(servers, times, values64, step=step, profiles=profiles, statuses=statuses),
        places=np.array(kept, dtype=np.int64),
    )
    with np.errstate(invalid="ignore"):
        wrong = (values64 < LOW) | (values64 > HIGH)
    bad_rows = wrong.any(axis=1) | (np.isnan(values64).sum(axis=1) != np.array(missing, dtype=np.int64))
    for at in np.flatnonzero(bad_rows).tolist():
        reason, code = _complaint(table[at], values64[at], wrong[at])
        refusals.add(kept[at], servers[at], reason, code)
    return Parsed(rows.take(~bad_rows), refusals, unknown)


def _row(record: object, unknown: Counter[str]) -> tuple[str, float, str, str, tuple[float | None, ...], int]:
    """Server, time, profile, status, values and how many of them are missing; bounds are looked at later, all at once."""
    if not isinstance(record, dict):
        raise _Bad("not_a_record", f"the record is {clip(record)}; it is an object with server, time and metrics")
    server = record.get("server")
    if not isinstance(server, str) or SERVER.fullmatch(server) is None:
        told = "is missing" if server is None else f"is {clip(server)}"
        raise _Bad(
            "server",
            f"server {told}; it is a name of up to 128 letters, digits and . _ : - that begins with a letter or digit",
        )
    time = _time(record.get("time"))
    profile = record.get("profile")
    if profile is None:
        profile = DEFAULT_PROFILE
    elif not isinstance(profile, str) or PROFILE.fullmatch(profile) is None:
        raise _Bad(
            "profile", f"profile is {clip(profile)}; it is a name of up to 32 lower-case letters, digits, _ and -"
        )
    status = record.get("status")
    if status is None:
        status = DEFAULT_STATUS
    elif not isinstance(status, str) or status not in STATUSES:
        raise _Bad("status", f"status is {clip(status)}; it is one of {', '.join(STATUSES)}")
    metrics = record.get("metrics")
    if metrics is None:
        metrics = {}
    elif not isinstance(metrics, dict):
        raise _Bad("metrics", f"metrics is {clip(metrics)}; it is an object of metric names and numbers")
    values, empty = _values(metrics, unknown)
    if empty == M and status in {"ok", "degraded"}:
        raise _Bad("no_metrics", f"there is none of the contract's metrics in it; they are {', '.join(NAMES)}")
    return server, time, profile, status, values, empty


def _values(metrics: dict[str, Any], unknown: Counter[str]) -> tuple[tuple[float | None, ...], int]:
    try:
        values = _ALL(metrics)  # as quick as it can be, for the usual record
    except KeyError:
        values = tuple(map(metrics.get, NAMES))
    if not _PLAIN.issuperset(map(type, values)):
        for name, value in zip(NAMES, values, strict=True):
            if value is not None and type(value) not in {float, int}:
                raise _Bad("not_a_number", f"{name} is {clip(value)}; send it as a JSON number, without quotes")
            if isinstance(value, int) and abs(value) > 10**18:
                raise _Bad("range", f"{name} is {clip(value)}, more than any machine has")
    empty = values.count(None)
    if len(metrics) != M - empty:
        for name in metrics:
            if name not in INDEX and (name in unknown or len(unknown) < MOST_REASONS):
                unknown[name[:64]] += 1
    return values, empty


def _time(value: object) -> float:
    """Unix seconds of a record's time."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(
                value[:MOST_TEXT]
            )  # cut: what is longer is no time, and is not looked through
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise _Bad(
                "time",
                f"time is {clip(value)}; send unix seconds as a number, or ISO 8601 such as 2025-01-31T12:00:00Z",
            ) from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        told = "is missing" if value is None else f"is {clip(value)}"
        raise _Bad("time", f"time {told}; send unix seconds as a number, or ISO 8601 such as 2025-01-31T12:00:00Z")
    if not -MILLISECONDS < value < MILLISECONDS:
        small = "milliseconds, microseconds or nanoseconds" if value > 0 else "no unix time"
        raise _Bad("time", f"time is {clip(value)}, which looks like {small}; send seconds")
    return float(value)


def _complaint(
    sent: tuple[float | None, ...], values: NDArray[np.float64], wrong: NDArray[np.bool_]
) -> tuple[str, str]:
    """What is wrong with the numbers of a row, of the first metric that is."""
    for metric, raw, value, bad in zip(METRICS, sent, values.tolist(), wrong.tolist(), strict=True):
        if raw is not None and np.isnan(value):
            return f"{metric.name} is NaN; leave a metric out that has no value", "nan"
        if not bad:
            continue
        if abs(value) == float("inf"):
            return f"{metric.name} is infinite; leave a metric out that has no value", "nan"
        if value > metric.high:
            return _too_high(metric.name, value, metric.high, metric.unit)
        if value >= 0 and metric.low > 0:
            told = f"{metric.name} {value:g} is below {metric.low:g} {metric.unit}"
            return (
                f'{told}, which no running machine has: sent as a ratio? Say so: "units": {{"{metric.name}": "ratio"}}',
                "unit",
            )
        return f"{metric.name} {value:g} is below {metric.low:g} {metric.unit}", "range"
    raise AssertionError("a row is refused for a reason")


def _too_high(name: str, value: float, high: float, unit: str) -> tuple[str, str]:
    told = f"{name} {value:g} is above {high:g} {unit}"
    if unit == "%" and value <= 100 * high:
        return f"{told}: sent in hundredths of a percent, or as a count? Send percent", "unit"
    return f"{told}: sent in a smaller unit? The contract's is {unit}, `units` of a feed may name another", "unit"


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
    good = np.ones(len(rows), dtype=bool)
    for at in np.flatnonzero(rows.times > now + max_skew).tolist():
        good[at] = False
        told = f"time {_moment(rows.times[at])} is {rows.times[at] - now:.0f} s in the future (now {_moment(now)})"
        refusals.add(
            int(rows.places[at]), rows.servers[at], f"{told}; set the server's clock, or raise FLEET_MAX_SKEW", "future"
        )
    for at in np.flatnonzero(rows.times < oldest).tolist():
        good[at] = False
        told = f"time {_moment(rows.times[at])} is before the window, which begins at {_moment(oldest)}"
        refusals.add(int(rows.places[at]), rows.servers[at], f"{told}; a row that old cannot be used any more", "old")
    if previous is not None and previous_ticks is not None:
        jumped = _jumped(rows.values, previous) & (np.abs(rows.ticks - previous_ticks) <= JUDGED) & good
        for at in np.flatnonzero(jumped).tolist():
            good[at] = False
            told = "all percent metrics are about 100 times more or less than in the server's last row"
            refusals.add(
                int(rows.places[at]),
                rows.servers[at],
                f"{told}: sent as a ratio, or in hundredths? Send percent",
                "unit",
            )
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
