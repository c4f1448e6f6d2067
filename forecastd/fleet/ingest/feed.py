"""Parses what a sender posts into rows; refuses invalid rows one by one, with row number, server, cause and fix.

Invariant: an invalid row never rejects the others, and a row is accepted completely or not at all. `parse_feed` (or
`check_records`, for records from another source) checks everything that needs neither the clock nor the window;
`filter_by_time` checks the rest; only the window knows whether there is room for another server. All of it is pure. A
batch of 2,000 rows takes a few milliseconds: Python looks at each row once, numpy at the numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    STATUS_CODES,
    FeedEnvelope,
    FeedError,
    FeedRejection,
    format_value,
    unit_factor,
)
from forecastd.fleet.ingest.record import InvalidRecord, ParsedRecord, describe_violation, parse_record
from forecastd.runtime.formatting import format_duration

LOWER_BOUNDS = np.array([metric.low for metric in METRICS])
UPPER_BOUNDS = np.array([metric.high for metric in METRICS])
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
FEED_SHAPE = f'a feed is {{"version": {CONTRACT_VERSION}, "records": [...]}}'
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

    @property
    def status_codes(self) -> NDArray[np.uint8]:
        """[N] the statuses as indices into STATUSES."""
        return np.array([STATUS_CODES[status] for status in self.statuses], dtype=np.uint8)

    def offsets(self, step: int) -> NDArray[np.float32]:
        """[N] seconds into the tick of each row."""
        return (self.times - self.ticks * step).astype(np.float32)

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


@dataclass
class RowRefusals:
    """The refusals of one feed: the first `MAX_REASONS` in words, all of them counted. Bounded for any input."""

    first: list[FeedRejection] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, row: int, server: object, reason: str, code: str) -> None:
        """Add one refusal."""
        self.counts[code] += 1
        if len(self.first) < MAX_REASONS:
            is_name = isinstance(server, str) and SERVER_PATTERN.fullmatch(server) is not None
            name = None if server is None else str(server) if is_name else format_value(server)
            self.first.append(FeedRejection(row=row, server=name, reason=reason, code=code))

    def add_rows(self, rows: FleetRows, mask: NDArray[np.bool_], code: str, reason: str | Callable[[int], str]) -> None:
        """Add the rows where `mask` is true. `reason`: of all, or of the row with an index, called only when listed."""
        indices = np.flatnonzero(mask)
        listed = indices[: max(0, MAX_REASONS - len(self.first))].tolist()
        for index in listed:
            text = reason if isinstance(reason, str) else reason(index)
            self.add(int(rows.positions[index]), rows.servers[index], text, code)
        self.counts.update({code: len(indices) - len(listed)} if len(indices) > len(listed) else {})

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


def parse_feed(body: bytes, content_type: str | None, *, step: int) -> ParsedFeed:
    """The rows of a `POST /feed`: JSON in the contract's shape, or NDJSON (one record per line) if `content_type`
    says so.

    Raises:
        FeedError: the body is not a feed.
    """
    if (content_type or "").partition(";")[0].strip().lower() in {NDJSON, "application/ndjson", "application/jsonl"}:
        return _parse_ndjson(body, step)
    if not body.strip():
        raise FeedError(f"the body is empty; {FEED_SHAPE}")
    try:
        document = from_json(body.removeprefix(BYTE_ORDER_MARK), allow_inf_nan=True)
        envelope = FeedEnvelope.model_validate(document)
    except ValidationError as error:
        raise FeedError(_describe_envelope(document, error)) from None
    except ValueError as error:
        raise FeedError(f"the body is not JSON: {error}") from None
    return check_records(envelope.records, step=step, units=envelope.units)


def _describe_envelope(document: object, error: ValidationError) -> str:
    """What is wrong with a JSON document that is not a feed."""
    if not isinstance(document, dict):
        return f"the body is {format_value(document)}; {FEED_SHAPE}"
    first_error = error.errors(include_url=False, include_input=False)[0]
    if first_error["loc"][0] == "version":
        version = document.get("version")
        problem = "is missing" if version is None else f"is {format_value(version)}"
        return f"the feed's version {problem}; this forecastd takes version {CONTRACT_VERSION}"
    location = ".".join(format_value(key).strip("'") for key in first_error["loc"])
    return f"{location}: {first_error['msg']}; records must be a list of objects, units an object of strings"


def check_records(records: Sequence[object], *, step: int, units: Mapping[str, str] | None = None) -> ParsedFeed:
    """Validate records as a feed's `records`, from any source.

    Raises:
        FeedError: `units` names an unknown metric or unit.
    """
    factors = np.ones(METRIC_COUNT)
    for metric, unit in (units or {}).items():
        factor = unit_factor(metric, unit)
        factors[METRIC_INDEX[metric]] = factor
    return _parse_records(enumerate(records), step, factors, RowRefusals())


def _parse_ndjson(body: bytes, step: int) -> ParsedFeed:
    """NDJSON: a line that is not JSON is refused alone."""
    refusals = RowRefusals()

    def records() -> Iterator[tuple[int, object]]:
        for position, line in enumerate(body.removeprefix(BYTE_ORDER_MARK).split(b"\n")):
            if line.strip():
                try:
                    yield position, from_json(line, allow_inf_nan=True)
                except ValueError as error:
                    reason = f"the line is not JSON: {error}; send one record per line"
                    refusals.add(position, None, reason, "not_json")

    return _parse_records(records(), step, np.ones(METRIC_COUNT), refusals)


def _parse_records(
    records: Iterable[tuple[int, object]], step: int, factors: NDArray[np.float64], refusals: RowRefusals
) -> ParsedFeed:
    """The rows of records with their positions in the feed."""
    valid: list[ParsedRecord] = []
    positions: list[int] = []
    unknown: Counter[str] = Counter()
    for position, record in records:
        try:
            valid.append(parse_record(record, unknown))
            positions.append(position)
        except InvalidRecord as error:
            refusals.add(position, record.get("server") if isinstance(record, dict) else None, str(error), error.code)
    servers, times, profiles, statuses, raw_values = zip(*valid, strict=True) if valid else ((),) * 5
    with np.errstate(over="ignore"):
        scaled = np.array(raw_values, dtype=np.float64).reshape(-1, METRIC_COUNT) * factors
    rows = replace(
        FleetRows.from_values(
            servers, times, np.clip(scaled, LOWER_BOUNDS, UPPER_BOUNDS), step=step, profiles=profiles, statuses=statuses
        ),
        positions=np.array(positions, dtype=np.int64),
    )
    out_of_bounds = (scaled < LOWER_BOUNDS - ROUNDING_TOLERANCE) | (scaled > UPPER_BOUNDS * (1 + ROUNDING_TOLERANCE))
    is_invalid = np.asarray(out_of_bounds.any(axis=1))
    for index in np.flatnonzero(is_invalid).tolist():
        reason, code = describe_violation(scaled[index], out_of_bounds[index])
        refusals.add(positions[index], servers[index], reason, code)
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

    refusals.add_rows(rows, early, "future", too_early)
    refusals.add_rows(rows, late, "old", too_late)
    accepted = ~(early | late)
    if previous is not None and previous_ticks is not None:
        jumped = (
            accepted & _unit_jumped(rows.values, previous) & (np.abs(rows.ticks - previous_ticks) <= JUMP_CHECK_TICKS)
        )
        message = (
            "all percent metrics are about 100 times more or less than in the server's last row: sent as a ratio, or in "
            "hundredths? Send percent"
        )
        refusals.add_rows(rows, jumped, "unit", message)
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
