"""The candle type, its provenance and its checks.

A candle's time is its opening time; the candle is complete when it closes, one step later.

Invariant: only complete candles enter a forecast, and their provenance travels with them to the place where bytes are
signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from forecastd.clock import to_iso
from forecastd.errors import SkipEpoch
from forecastd.runtime.formatting import format_count, format_duration

HOUR = 3600
COLUMNS = ("open", "high", "low", "close", "volume")

# Thresholds of the checks. Chosen so that the worst real hours of major pairs pass (docs/data.md has the figures).
MIN_TIME, MAX_TIME = 1_199_145_600, 4_102_444_800  # 2008 and 2100: a time outside is not in seconds
DATETIME_SECONDS = range(-62_135_596_800, 253_402_300_800)  # the years 1 to 9999, the range of datetime
TIME_UNITS = {"milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
JUMP_LOG_RETURN = 0.5  # log-return between two closes: +65 % or -39 % in one step
JUMP_SIGMAS = 15.0  # or this many robust standard deviations, whichever is larger
UNIT_CHANGE_LOG_RETURN = np.log(8.0)  # a larger jump that lasts is a change of unit
SETTLE_CANDLES = 6  # a jump that does not revert within this many candles lasts
MAX_WICK_RATIO = 10.0  # highest over lowest price within one candle
PRICE_TOLERANCE = 0.01  # relative; aggregators let open and close lie this far outside low and high
MAX_STALE_STEPS = 3  # maximum age of the last close for a forecast, in steps: an outage of two hours costs no epoch
MAX_FROZEN_CANDLES = 6  # consecutive candles that repeat the previous close and have high == low
MAX_UNCHANGED_CANDLES = 24  # consecutive candles that repeat the previous close


@dataclass(frozen=True)
class Provenance:
    """Where candles came from."""

    source: str  # the name that a user configures: "tiingo:btcusd", "exchange:kraken:BTC/USD", "file:btc.csv", "sample"
    fetched_at: float  # unix seconds of the newest fetch
    sha256: str  # of the fetched bytes; of the parts' hashes when several fetches were merged
    synthetic: bool  # generated data: never signed for a real network


@dataclass(frozen=True, eq=False)
class Candles:
    """`n` candles of one symbol, UTC, in quote currency.

    `time` is int64 `[n]`, unix seconds of each candle's opening, strictly increasing, on the grid of `step` seconds.
    The other columns are float64 `[n]`. `repairs` lists the repairs that were made, one sentence each.
    """

    symbol: str
    step: int
    time: NDArray[np.int64]
    open: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]
    volume: NDArray[np.float64]
    provenance: Provenance
    repairs: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.time)

    @property
    def end(self) -> int:
        """Unix seconds at which the last candle closed. Raises IndexError when there are no candles."""
        return int(self.time[-1]) + self.step

    @classmethod
    def from_table(
        cls,
        symbol: str,
        step: int,
        time: NDArray[np.int64],
        table: NDArray[np.float64],
        provenance: Provenance,
        *,
        repairs: tuple[str, ...] = (),
    ) -> Candles:
        """Build from times `[n]` and a table `[n, 5]` whose columns are in the order of `COLUMNS`."""
        open_, high, low, close, volume = (
            np.ascontiguousarray(table[:, column], dtype=np.float64) for column in range(5)
        )
        return cls(symbol, step, time, open_, high, low, close, volume, provenance, repairs)

    @property
    def columns(self) -> tuple[NDArray[np.float64], ...]:
        """The float columns in the order of `COLUMNS`."""
        return (self.open, self.high, self.low, self.close, self.volume)

    def take(self, rows: slice | NDArray[np.bool_] | NDArray[np.intp]) -> Candles:
        """The candles at `rows`, with the same provenance."""
        return replace(self, time=self.time[rows], **{name: getattr(self, name)[rows] for name in COLUMNS})

    def between(self, start: float, end: float) -> Candles:
        """The candles that open at or after `start` and before `end` (unix seconds)."""
        return self.take((self.time >= start) & (self.time < end))


def merge_provenance(parts: Sequence[Provenance]) -> Provenance:
    """Merge the provenance of several fetches from one source, given in the order of the candles' times.

    Raises:
        ValueError: the parts come from different sources, or mix synthetic and real data.
    """
    unique = list(dict.fromkeys(parts))
    if len({(part.source, part.synthetic) for part in unique}) != 1:
        raise ValueError(f"cannot merge candles of different sources: {sorted({part.source for part in unique})}")
    if len(unique) == 1:
        return unique[0]
    digest = hashlib.sha256("\n".join(part.sha256 for part in unique).encode()).hexdigest()
    return replace(unique[0], fetched_at=max(part.fetched_at for part in unique), sha256=digest)


def merge(parts: Sequence[Candles]) -> Candles:
    """Merge and repair the candles of several fetches from one source.

    Raises:
        SkipEpoch: `duplicate`: two parts differ for the same time.
        ValueError: there are no parts, or they differ in source, symbol or step.
    """
    if len({(part.symbol, part.step) for part in parts}) != 1:
        raise ValueError("cannot merge candles of different symbols or steps")
    time = np.concatenate([part.time for part in parts])
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    provenance = merge_provenance([part.provenance for part in parts if len(part)] or [parts[-1].provenance])
    # Fetches overlap by design, so the duplicates that `repair` drops here are not a fault to report.
    repairs = tuple(dict.fromkeys(sentence for part in parts for sentence in part.repairs))
    merged_candles = Candles(parts[0].symbol, parts[0].step, time, **columns, provenance=provenance, repairs=repairs)
    return replace(repair(merged_candles), repairs=repairs)


def repair(candles: Candles) -> Candles:
    """Sort candles by time and drop identical duplicates. Both repairs are exact and are listed in `repairs`.

    Raises:
        SkipEpoch: `duplicate`: two candles of the same time differ.
    """
    repairs = list(candles.repairs)
    if len(candles) and np.any(np.diff(candles.time) < 0):
        newest_first = bool(np.all(np.diff(candles.time) <= 0))
        candles = candles.take(np.argsort(candles.time, kind="stable"))
        repairs.append(f"sorted {len(candles)} candles by time ({'newest first' if newest_first else 'unordered'})")
    is_duplicate = np.diff(candles.time) == 0
    if is_duplicate.any():
        # NaN equals NaN here, as in a comparison of bytes; the `nonfinite` check rejects it later.
        for name in COLUMNS:
            column = getattr(candles, name)
            mismatch = is_duplicate & ~np.isclose(column[1:], column[:-1], rtol=0, atol=0, equal_nan=True)
            if mismatch.any():
                index = int(np.argmax(mismatch))
                raise SkipEpoch(
                    f"Two candles of {candles.provenance.source} at {format_time(candles.time[index])} differ ({name} "
                    f"{column[index]:g} and {column[index + 1]:g}). It is unknown which is right; use another source.",
                    check="duplicate",
                )
        candles = candles.take(np.append(True, ~is_duplicate))
        count = int(is_duplicate.sum())
        repairs.append(f"dropped {format_count(count, 'identical duplicate')}")
    return candles if tuple(repairs) == candles.repairs else replace(candles, repairs=tuple(repairs))


@dataclass(frozen=True)
class CheckCriteria:
    """Limits for the checks. `min_length`: number of most recent candles that the forecast uses. Times in seconds."""

    now: float
    min_length: int
    max_age: float


def check_candles(candles: Candles, *, now: float, min_length: int, max_age: float) -> tuple[Candles, tuple[str, ...]]:
    """Candles that are valid for a forecast made at `now`, and the repairs that were made, one sentence each.

    Repairs: sort, drop identical duplicates, drop a last candle that is not complete yet. `min_length` is the number of
    most recent candles that the forecast uses: only their values are checked. `max_age` is the maximum time, in
    seconds, between the last close and `now`.

    Raises:
        SkipEpoch: `check` is the name of the first check in `CHECKS` that fails.
    """
    candles = drop_incomplete(repair(candles), now)
    criteria = CheckCriteria(now, min_length, max_age)
    for name, find_fault in CHECKS.items():
        reason = find_fault(candles, criteria)
        if reason is not None:
            raise SkipEpoch(f"{candles.provenance.source}: {reason}", check=name)
    return candles, candles.repairs


def run_checks(candles: Candles, *, now: float, min_length: int, max_age: float) -> dict[str, str | None]:
    """Map each check's name to the reason it fails, or to None where it passes. Never raises; used to inspect data."""
    try:
        candles = drop_incomplete(repair(candles), now)
    except SkipEpoch as error:
        return {error.check: str(error)}
    if not len(candles):
        return {"empty": _check_empty(candles, CheckCriteria(now, min_length, max_age))}
    return {
        name: find_fault(candles, CheckCriteria(now, min_length, max_age)) for name, find_fault in CHECKS.items()
    } | {"duplicate": None}


def find_implausible(candles: Candles) -> str | None:
    """The reason why values in `candles` cannot be right for any use; None when all are plausible."""
    if not len(candles):
        return None
    criteria = CheckCriteria(now=candles.end, min_length=len(candles), max_age=0)
    reasons = (CHECKS[name](candles, criteria) for name in ("unit", "nonfinite", "inconsistent", "flat", "spike"))
    return next((reason for reason in reasons if reason), None)


def drop_incomplete(candles: Candles, now: float) -> Candles:
    """Drop the candle that is still open at `now` and note it in `repairs`. A future candle stays; a check refuses it."""
    if not len(candles) or not candles.time[-1] <= now < candles.end:
        return candles
    message = f"dropped the candle of {format_time(candles.time[-1])}, which is not complete yet"
    return replace(candles.take(slice(0, -1)), repairs=(*candles.repairs, message))


def format_time(seconds: float) -> str:
    """Format unix seconds as ISO 8601; a number that cannot be a time is printed as a number."""
    return to_iso(seconds) if MIN_TIME <= seconds < MAX_TIME else f"{seconds:g}"


def _check_empty(candles: Candles, criteria: CheckCriteria) -> str | None:
    return None if len(candles) else "no candles in the requested range; check the symbol and the times."


def _check_unit(candles: Candles, criteria: CheckCriteria) -> str | None:
    """Times that are not in seconds, or prices whose unit changes within the series."""
    invalid = (candles.time < MIN_TIME) | (candles.time >= MAX_TIME)
    if invalid.any():
        time = int(candles.time[np.argmax(invalid)])
        for unit, factor in TIME_UNITS.items():
            if MIN_TIME <= time / factor < MAX_TIME:
                return f"{time} is not a time in seconds since 1970; it looks like {unit}."
        time_text = to_iso(time) if time in DATETIME_SECONDS else f"{time} s since 1970"
        return (
            f"a candle opens at {time_text}, outside {to_iso(MIN_TIME)[:4]} to {to_iso(MAX_TIME)[:4]}. Check the times."
        )
    for jump_time, jump in _find_jumps(_last_candles(candles, criteria)):
        if jump.kind == "unit":
            return (
                f"the price is {_format_ratio(jump.size)} from {format_time(jump_time)} on; "
                "the unit of the price changed."
            )
    return None


def _check_future(candles: Candles, criteria: CheckCriteria) -> str | None:
    if candles.end <= criteria.now:
        return None
    return (
        f"the last candle opens at {format_time(candles.time[-1])}, but the time is {format_time(criteria.now)}; "
        "check this machine's clock and the source's time zone."
    )


def _check_grid(candles: Candles, criteria: CheckCriteria) -> str | None:
    off = candles.time % candles.step != 0
    if not off.any():
        return None
    return (
        f"the candle of {format_time(candles.time[np.argmax(off)])} does not start on a multiple of {candles.step} s."
    )


def _check_stale(candles: Candles, criteria: CheckCriteria) -> str | None:
    age = criteria.now - candles.end
    if age <= criteria.max_age:
        return None
    return (
        f"the last candle closed at {format_time(candles.end)}, {format_duration(age)} before {format_time(criteria.now)}; "
        f"the limit is {format_duration(criteria.max_age)}."
    )


def _check_gap(candles: Candles, criteria: CheckCriteria) -> str | None:
    time = _last_candles(candles, criteria).time
    missing = np.diff(time) // candles.step - 1
    if not (missing > 0).any():
        return None
    index = int(np.argmax(missing > 0))
    count = int(missing.sum())
    return (
        f"{count} of the required candles {'is' if count == 1 else 'are'} missing, "
        f"the first at {format_time(time[index] + candles.step)}."
    )


def _check_short(candles: Candles, criteria: CheckCriteria) -> str | None:
    if len(candles) >= criteria.min_length:
        return None
    return f"{len(candles)} candles up to {format_time(candles.end)}, but {criteria.min_length} are required."


def _check_nonfinite(candles: Candles, criteria: CheckCriteria) -> str | None:
    recent = _last_candles(candles, criteria)
    for name in COLUMNS:
        bad = ~np.isfinite(getattr(recent, name))
        if bad.any():
            return f"the {name} at {format_time(recent.time[np.argmax(bad)])} is not a finite number."
    return None


def _check_inconsistent(candles: Candles, criteria: CheckCriteria) -> str | None:
    recent = _last_candles(candles, criteria)
    tolerance = 1 + PRICE_TOLERANCE
    cases = (
        (recent.low <= 0, "a price is not positive"),
        (np.minimum(recent.open, recent.close) <= 0, "a price is not positive"),
        (recent.volume < 0, "the volume is negative"),
        (recent.high < recent.low, "the high is below the low"),
        (np.maximum(recent.open, recent.close) > recent.high * tolerance, "open or close is above the high"),
        (np.minimum(recent.open, recent.close) * tolerance < recent.low, "open or close is below the low"),
    )
    for bad, message in cases:
        if bad.any():
            return f"at {format_time(recent.time[np.argmax(bad)])} {message}."
    return None


def _check_flat(candles: Candles, criteria: CheckCriteria) -> str | None:
    recent = _last_candles(candles, criteria)
    is_unchanged = np.append(False, np.diff(recent.close) == 0)
    is_frozen = is_unchanged & (recent.high == recent.low)
    for repeats, limit in ((is_frozen, MAX_FROZEN_CANDLES), (is_unchanged, MAX_UNCHANGED_CANDLES)):
        index, length = _longest_run(repeats)
        if length >= limit:
            price = recent.close[index]
            return f"the price stays at {price:g} for {length} candles up to {format_time(recent.time[index])}."
    return None


def _check_spike(candles: Candles, criteria: CheckCriteria) -> str | None:
    recent = _last_candles(candles, criteria)
    with np.errstate(all="ignore"):
        body_high = np.maximum.reduce([recent.open, recent.high, recent.close])
        wick = body_high / np.minimum.reduce([recent.open, recent.low, recent.close]) > MAX_WICK_RATIO
    if wick.any():
        time = format_time(recent.time[np.argmax(wick)])
        return f"within the candle of {time} the price changes by more than a factor of {MAX_WICK_RATIO:g}."
    for jump_time, jump in _find_jumps(recent):
        if jump.kind == "spike":
            return (
                f"the price is {_format_ratio(jump.size)} at {format_time(jump_time)}, "
                "and the candles around it do not confirm that."
            )
    return None


@dataclass(frozen=True)
class _PriceJump:
    size: float  # log-return
    kind: str  # "spike": reverts, or too few candles around it to tell; "unit": lasts, too large; "move": lasts, plausible


def _find_jumps(recent: Candles) -> list[tuple[int, _PriceJump]]:
    """Steps between two closes that are too large to accept unchecked, with the time of the candle after the step."""
    if len(recent) < 2 or not (np.isfinite(recent.close) & (recent.close > 0)).all():
        return []
    log_prices = np.log(recent.close)
    returns = np.diff(log_prices)
    robust = 1.4826 * float(np.median(np.abs(returns - np.median(returns))))
    jumps = []
    settled_index = 0
    for index in np.flatnonzero(np.abs(returns) > max(JUMP_LOG_RETURN, JUMP_SIGMAS * robust)).tolist():
        if index < settled_index:
            continue  # part of the previous jump's reversal
        next_prices = log_prices[index + 1 : index + 1 + SETTLE_CANDLES]
        is_reversal = np.abs(next_prices - log_prices[index]) < 0.5 * abs(returns[index])
        if is_reversal.any() or len(next_prices) < SETTLE_CANDLES or index + 1 < SETTLE_CANDLES:
            kind = "spike"
            settled_index = index + 1 + int(np.argmax(is_reversal)) if is_reversal.any() else 0
        else:
            kind = "unit" if abs(returns[index]) >= UNIT_CHANGE_LOG_RETURN else "move"
        jumps.append((int(recent.time[index + 1]), _PriceJump(float(returns[index]), kind)))
    return jumps


def _format_ratio(size: float) -> str:
    return f"{np.exp(abs(size)):.3g} times {'higher' if size > 0 else 'lower'}"


def _longest_run(repeats: NDArray[np.bool_]) -> tuple[int, int]:
    """Index of the last candle of the longest run, and the length of that run."""
    best_length, best_index, run = 0, 0, 0
    for index, repeat in enumerate(repeats.tolist()):
        run = run + 1 if repeat else 0
        if run > best_length:
            best_length, best_index = run, index
    return best_index, best_length


def _last_candles(candles: Candles, criteria: CheckCriteria) -> Candles:
    return candles.take(slice(max(0, len(candles) - criteria.min_length), None))


# The order matters: a later check may assume what an earlier one ensures.
# Before them, `repair` raises `duplicate` and fixes a wrong order.
CHECKS: dict[str, Callable[[Candles, CheckCriteria], str | None]] = {
    "empty": _check_empty,
    "unit": _check_unit,
    "future": _check_future,
    "grid": _check_grid,
    "stale": _check_stale,
    "gap": _check_gap,
    "short": _check_short,
    "nonfinite": _check_nonfinite,
    "inconsistent": _check_inconsistent,
    "flat": _check_flat,
    "spike": _check_spike,
}
