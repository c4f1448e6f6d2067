"""Parses what a sender posts into rows; refuses invalid rows one by one, with row number, server, cause and fix.

Invariant: an invalid row never rejects the others, and a row is accepted completely or not at all. `parse_feed` (or
`check_records`, for records from another source) checks everything that needs neither the clock nor the window;
`filter_by_time` checks the rest; only the window knows whether there is room for another server. All of it is pure. A
batch of 2,000 rows takes a few milliseconds: Python looks at each row once, numpy at the numbers.
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

from forecastd.clock import to_iso
from forecastd.fleet.contract import (
    CONTRACT_VERSION,
    DEFAULT_PROFILE,
    DEFAULT_STATUS,
    MAX_REASONS,
    METRIC_COUNT,
    METRIC_INDEX,
    METRICS,
    NDJSON,
    PERCENT_COLUMNS,
    SERVER_PATTERN,
    FeedEnvelope,
    FeedError,
    format_value,
    unit_factor,
)
from forecastd.fleet.ingest.record import InvalidRecord, describe_violation, parse_record
from forecastd.runtime.formatting import format_duration

LOWER_BOUNDS = np.array([metric.low for metric in METRICS])
UPPER_BOUNDS = np.array([metric.high for metric in METRICS])
ROUNDING_TOLERANCE = 1e-9  # for rounding errors of the sender: 100.00000000000001 % is 100 %
JUMP_FACTORS = (50.0, 200.0)  # "by a factor of about 100"
MIN_JUMPED_METRICS = 3  # minimum number of percent metrics that jump together
JUMP_CHECK_TICKS = 60  # ticks for which the previous row of a server is compared; after that a jump is believed


@dataclass(frozen=True)
class FleetRows:
    """N validated rows in feed order. Values are in the contract's units, NaN if the row has none."""

    servers: tuple[str, ...]
    profiles: tuple[str, ...]
    statuses: tuple[str, ...]
    times: NDArray[np.float64]  # [N], unix seconds
    ticks: NDArray[np.int64]  # [N], floor(time / step)
    values: NDArray[np.float32]  # [N, M]
    positions: NDArray[np.int64]  # [N], position of each row in the feed, from 0

    def __len__(self) -> int:
        return len(self.servers)

    @classmethod
    def from_values(
        cls,
        servers: Sequence[str],
        times: Sequence[float] | NDArray[np.float64],
        values: NDArray[np.floating[Any]],
        *,
        step: int,
        profiles: Sequence[str] | None = None,
        statuses: Sequence[str] | None = None,
    ) -> FleetRows:
        """Rows from valid values `[N, M]`, such as a simulator's. Nothing is checked."""
        count = len(servers)
        seconds = np.asarray(times, dtype=np.float64)
        return cls(
            tuple(servers),
            tuple(profiles) if profiles is not None else (DEFAULT_PROFILE,) * count,
            tuple(statuses) if statuses is not None else (DEFAULT_STATUS,) * count,
            seconds,
            np.floor(seconds / step).astype(np.int64),
            np.ascontiguousarray(values, dtype=np.float32),
            np.arange(count, dtype=np.int64),
        )

    @classmethod
    def empty(cls) -> FleetRows:
        """No rows."""
        return cls.from_values((), (), np.empty((0, METRIC_COUNT), np.float32), step=1)

    def filter(self, mask: NDArray[np.bool_]) -> FleetRows:
        """The rows where `mask` `[N]` is true."""
        return self if bool(mask.all()) else self.select(np.flatnonzero(mask))

    def select(self, indices: NDArray[np.int64]) -> FleetRows:
        """The rows at these indices, in this order."""
        index_list = indices.tolist()
        return FleetRows(
            tuple(self.servers[i] for i in index_list),
            tuple(self.profiles[i] for i in index_list),
            tuple(self.statuses[i] for i in index_list),
            self.times[indices],
            self.ticks[indices],
            self.values[indices],
            self.positions[indices],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[FleetRows]) -> FleetRows:
        """All rows of several parts."""
        parts = parts or [cls.empty()]
        return cls(
            tuple(name for part in parts for name in part.servers),
            tuple(name for part in parts for name in part.profiles),
            tuple(name for part in parts for name in part.statuses),
            np.concatenate([part.times for part in parts]),
            np.concatenate([part.ticks for part in parts]),
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.positions for part in parts]),
        )


@dataclass(frozen=True)
class RowRefusal:
    """Why a row was refused, in words for its sender; `code` is the stable name that is counted."""

    row: int
    server: str | None
    reason: str
    code: str


@dataclass
class RowRefusals:
    """The refusals of one feed: the first `MAX_REASONS` in words, all of them counted. Bounded for any input."""

    first: list[RowRefusal] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, row: int, server: object, reason: str, code: str) -> None:
        """Add one refusal."""
        self.counts[code] += 1
        if len(self.first) < MAX_REASONS:
            is_valid_name = isinstance(server, str) and SERVER_PATTERN.fullmatch(server) is not None
            self.first.append(
                RowRefusal(
                    int(row),
                    str(server) if is_valid_name else None if server is None else format_value(server),
                    reason,
                    code,
                )
            )

    def add_rows(self, rows: FleetRows, indices: NDArray[np.int64], code: str, describe: Callable[[int], str]) -> None:
        """Add several of `rows` for the same cause; `describe` is called only for refusals in words."""
        reported = indices[: max(0, MAX_REASONS - len(self.first))].tolist()
        for index in reported:
            self.add(int(rows.positions[index]), rows.servers[index], describe(index), code)
        if len(indices) > len(reported):
            self.counts[code] += len(indices) - len(reported)

    def merge(self, other: RowRefusals) -> None:
        """Add those of another part of the same feed."""
        self.counts.update(other.counts)
        self.first += other.first[: MAX_REASONS - len(self.first)]

    @property
    def total(self) -> int:
        """The number of refused rows."""
        return self.counts.total()


@dataclass(frozen=True)
class ParsedFeed:
    """A feed checked on its own: valid rows, refusals, and other observations."""

    rows: FleetRows
    refusals: RowRefusals
    unknown_metrics: Counter[str]  # unknown metric name -> number of rows with it; at most `MAX_REASONS` names

    def notices(self) -> dict[str, int]:
        """Counts reported in addition to the refusals, by name."""
        return {"unknown_metric": self.unknown_metrics.total()} if self.unknown_metrics else {}


def parse_feed(body: bytes, content_type: str | None, *, step: int) -> ParsedFeed:
    """The rows of a `POST /feed`: JSON in the contract's shape, or NDJSON (one record per line) if `content_type`
    says so.

    Raises:
        FeedError: the body is not a feed.
    """
    if (content_type or "").partition(";")[0].strip().lower() in {NDJSON, "application/ndjson", "application/jsonl"}:
        return _parse_ndjson(body, step)
    if not body.strip():
        raise FeedError(f'the body is empty; a feed is {{"version": {CONTRACT_VERSION}, "records": [...]}}')
    try:
        document = from_json(body.removeprefix(b"\xef\xbb\xbf"), allow_inf_nan=True)
    except ValueError as error:
        raise FeedError(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise FeedError(
            f'the body is {format_value(document)}; a feed is {{"version": {CONTRACT_VERSION}, "records": [...]}}'
        )
    version = document.get("version")
    if isinstance(version, bool) or version != CONTRACT_VERSION:
        problem = "is missing" if version is None else f"is {format_value(version)}"
        raise FeedError(f"the feed's version {problem}; this forecastd takes version {CONTRACT_VERSION}")
    try:
        envelope = FeedEnvelope.model_validate(document)
    except ValidationError as error:
        first_error = error.errors()[0]
        location = ".".join(format_value(key).strip("'") for key in first_error["loc"])
        raise FeedError(
            f"{location}: {first_error['msg']}; records must be a list of objects, units an object of strings"
        ) from None
    return check_records(envelope.records, step=step, units=envelope.units)


def check_records(
    records: Sequence[object], *, step: int, units: dict[str, str] | None = None, first_position: int = 0
) -> ParsedFeed:
    """Validate records as a feed's `records`, from any source; `first_position` is the position of the first.

    Raises:
        FeedError: `units` names an unknown metric or unit.
    """
    factors = np.ones(METRIC_COUNT)
    for metric, unit in (units or {}).items():
        unit_scale = unit_factor(metric, unit)
        factors[METRIC_INDEX[metric]] = unit_scale
    return _parse_records(records, step, factors, RowRefusals(), range(first_position, first_position + len(records)))


def _parse_ndjson(body: bytes, step: int) -> ParsedFeed:
    """NDJSON: a line that is not JSON is refused alone."""
    refusals = RowRefusals()
    records: list[object] = []
    positions: list[int] = []
    for position, line in enumerate(body.removeprefix(b"\xef\xbb\xbf").split(b"\n")):
        if not line.strip():
            continue
        try:
            records.append(from_json(line, allow_inf_nan=True))
            positions.append(position)
        except ValueError as error:
            refusals.add(position, None, f"the line is not JSON: {error}; send one record per line", "not_json")
    return _parse_records(records, step, np.ones(METRIC_COUNT), refusals, positions)


def _parse_records(
    records: Sequence[object], step: int, factors: NDArray[np.float64], refusals: RowRefusals, positions: Sequence[int]
) -> ParsedFeed:
    servers, profiles, statuses = [], [], []
    times, row_values, missing_counts, row_positions = [], [], [], []
    unknown: Counter[str] = Counter()
    for position, record in zip(positions, records, strict=True):
        try:
            server, time, profile, status, values, missing_count = parse_record(record, unknown)
        except InvalidRecord as error:
            refusals.add(position, record.get("server") if isinstance(record, dict) else None, str(error), error.code)
            continue
        servers.append(server)
        profiles.append(profile)
        statuses.append(status)
        times.append(time)
        row_values.append(values)
        missing_counts.append(missing_count)
        row_positions.append(position)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.array(row_values, dtype=np.float64).reshape(-1, METRIC_COUNT) * factors
    clipped = np.clip(scaled, LOWER_BOUNDS, UPPER_BOUNDS)
    rows = replace(
        FleetRows.from_values(servers, times, clipped, step=step, profiles=profiles, statuses=statuses),
        positions=np.array(row_positions, dtype=np.int64),
    )
    out_of_bounds = (scaled < LOWER_BOUNDS - ROUNDING_TOLERANCE) | (scaled > UPPER_BOUNDS * (1 + ROUNDING_TOLERANCE))
    is_invalid = out_of_bounds.any(axis=1) | (np.isnan(scaled).sum(axis=1) != np.array(missing_counts, dtype=np.int64))
    for index in np.flatnonzero(is_invalid).tolist():
        reason, code = describe_violation(row_values[index], scaled[index], out_of_bounds[index])
        refusals.add(row_positions[index], servers[index], reason, code)
    return ParsedFeed(rows.filter(~is_invalid), refusals, unknown)


def filter_by_time(
    rows: FleetRows,
    refusals: RowRefusals,
    *,
    now: float,
    step: int,
    retained_ticks: int,
    max_skew: float,
    previous: NDArray[np.float32] | None = None,
    previous_ticks: NDArray[np.int64] | None = None,
) -> FleetRows:
    """The rows that a window of `retained_ticks` ticks accepts at `now`; the others are added to `refusals`.

    A time up to `max_skew` seconds after `now` means that the sender's clock is fast: the row goes to the tick of its
    own time, for which the window has room, and counts when that tick closes. Times are never changed, so a row that
    is sent twice stays the same row.

    `previous` `[N, M]` and `previous_ticks` `[N]` are the last row of each row's server (NaN, and any tick, if there
    is none). If at least `MIN_JUMPED_METRICS` percent metrics are all about 100 times higher or lower than before,
    the unit is wrong.
    """
    oldest = (int(now // step) - retained_ticks) * step
    early, late = rows.times > now + max_skew, rows.times < oldest

    def too_early(row: int) -> str:
        time = rows.times[row]
        return (
            f"time {_format_time(time)} is {format_duration(time - now)} in the future (now {_format_time(now)}); "
            "set the server's clock, or raise FLEET_MAX_CLOCK_SKEW"
        )

    def too_late(row: int) -> str:
        time = _format_time(rows.times[row])
        return f"time {time} is before the window, which begins at {_format_time(oldest)}; it is too old"

    refusals.add_rows(rows, np.flatnonzero(early), "future", too_early)
    refusals.add_rows(rows, np.flatnonzero(late), "old", too_late)
    accepted = ~(early | late)
    if previous is not None and previous_ticks is not None:
        jumped = (
            accepted & _unit_jumped(rows.values, previous) & (np.abs(rows.ticks - previous_ticks) <= JUMP_CHECK_TICKS)
        )
        message = "all percent metrics are about 100 times more or less than in the server's last row"
        refusals.add_rows(
            rows,
            np.flatnonzero(jumped),
            "unit",
            lambda _: f"{message}: sent as a ratio, or in hundredths? Send percent",
        )
        accepted &= ~jumped
    return rows.filter(accepted)


def _unit_jumped(values: NDArray[np.float32], previous: NDArray[np.float32]) -> NDArray[np.bool_]:
    """`[N]` where at least `MIN_JUMPED_METRICS` percent metrics are comparable and all of these jumped the same way."""
    new, old = values[:, PERCENT_COLUMNS].astype(np.float64), previous[:, PERCENT_COLUMNS].astype(np.float64)
    comparable = (new > 0) & (old > 0)
    ratio = np.divide(new, old, out=np.ones_like(new), where=comparable)
    count = comparable.sum(axis=1)
    result = np.zeros(len(values), dtype=bool)
    for factors in (ratio, 1 / ratio):
        jumps = comparable & (factors > JUMP_FACTORS[0]) & (factors < JUMP_FACTORS[1])
        result |= (count >= MIN_JUMPED_METRICS) & (jumps.sum(axis=1) == count)
    return result


def _format_time(seconds: float) -> str:
    try:
        return to_iso(seconds)
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f}"
