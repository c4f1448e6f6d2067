"""The candle type, its provenance and its checks.

A candle is named by the time it opens and is complete when it closes, one step later. Only complete candles may enter a
forecast, and where they came from travels with them up to the place where bytes are signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from forecastd.clock import to_iso
from forecastd.errors import SkipEpoch

HOUR = 3600
COLUMNS = ("open", "high", "low", "close", "volume")

# Thresholds of the checks. Chosen so that the worst real hours of major pairs pass (docs/data.md has the figures).
MIN_TIME, MAX_TIME = 1_199_145_600, 4_102_444_800  # 2008 and 2100: outside, a time is not in seconds
DATETIME_SECONDS = range(-62_135_596_800, 253_402_300_800)  # the years 1 to 9999: what a date can be written of
TIME_UNITS = {"milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
JUMP_LOG_RETURN = 0.5  # log-return between two closes: +65 % or -39 % in one step
JUMP_SIGMAS = 15.0  # or this many robust standard deviations, whichever is more
UNIT_CHANGE_LOG_RETURN = np.log(8.0)  # a jump that stays and is larger than this is a change of unit
SETTLE_CANDLES = 6  # candles within which a jump either reverts or counts as lasting
MAX_WICK_RATIO = 10.0  # highest over lowest price within one candle
PRICE_TOLERANCE = 0.01  # aggregators let open and close lie outside low and high by as much, relatively
MAX_STALE_STEPS = 3  # how old the last close may be for a forecast, in steps: an outage of two hours costs no epoch
MAX_FROZEN_CANDLES = 6  # candles in a row that repeat the close before them, without any range
MAX_UNCHANGED_CANDLES = 24  # candles in a row that repeat the close before them


@dataclass(frozen=True)
class Provenance:
    """Where candles came from."""

    source: str  # as a user names it: "tiingo:btcusd", "exchange:kraken:BTC/USD", "file:btc.csv", "sample"
    fetched_at: float  # unix seconds of the newest fetch
    sha256: str  # of the bytes as fetched; of the parts' hashes where several fetches were joined
    synthetic: bool  # made up: never signed for a real network


@dataclass(frozen=True, eq=False)
class Candles:
    """`n` candles of one symbol, UTC, in quote currency.

    `time` is int64 `[n]`, unix seconds of each candle's opening, strictly increasing, on the grid of `step` seconds.
    The others are float64 `[n]`. `repairs` tells, in sentences, what had to be mended on the way here.
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
        """Unix seconds at which the last candle closed. Raises IndexError when there is none."""
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
        """From the times `[n]` and a table `[n, 5]` in the order of `COLUMNS`."""
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
        """Those that open at or after `start` and before `end`, unix seconds."""
        return self.take((self.time >= start) & (self.time < end))


def merge_provenance(parts: Sequence[Provenance]) -> Provenance:
    """One provenance of several fetches of one source, in the order of the candles' time.

    Raises:
        ValueError: the parts are of different sources, or made up and real ones are mixed.
    """
    unique = list(dict.fromkeys(parts))
    if len({(part.source, part.synthetic) for part in unique}) != 1:
        raise ValueError(f"candles of different sources do not join: {sorted({part.source for part in unique})}")
    if len(unique) == 1:
        return unique[0]
    digest = hashlib.sha256("\n".join(part.sha256 for part in unique).encode()).hexdigest()
    return replace(unique[0], fetched_at=max(part.fetched_at for part in unique), sha256=digest)


def merge(parts: Sequence[Candles]) -> Candles:
    """Candles of several fetches of one source as one, mended.

    Raises:
        SkipEpoch: `duplicate`, two parts disagree about an hour.
        ValueError: nothing to join, or the parts are of different sources, symbols or steps.
    """
    if len({(part.symbol, part.step) for part in parts}) != 1:
        raise ValueError("candles of different symbols or steps do not join")
    time = np.concatenate([part.time for part in parts])
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    origin = merge_provenance([part.provenance for part in parts if len(part)] or [parts[-1].provenance])
    # Overlapping fetches of the same hour are the rule here, not a fault of the source: nothing to tell about.
    repairs = tuple(dict.fromkeys(repairs for part in parts for repairs in part.repairs))
    merged_candles = Candles(parts[0].symbol, parts[0].step, time, **columns, provenance=origin, repairs=repairs)
    return replace(repair(merged_candles), repairs=repairs)


def repair(candles: Candles) -> Candles:
    """Sorted by time, identical duplicates dropped; both are exact, and both are told in `repairs`.

    Raises:
        SkipEpoch: `duplicate`, two candles of one time differ.
    """
    repairs = list(candles.repairs)
    if len(candles) and np.any(np.diff(candles.time) < 0):
        newest_first = bool(np.all(np.diff(candles.time) <= 0))
        candles = candles.take(np.argsort(candles.time, kind="stable"))
        repairs.append(
            f"sorted {len(candles)} candles by time ({'newest came first' if newest_first else 'unordered'})"
        )
    is_duplicate = np.diff(candles.time) == 0
    if is_duplicate.any():
        # Compared as bytes would be: NaN equals NaN here, it is judged elsewhere.
        for name in COLUMNS:
            column = getattr(candles, name)
            mismatch = is_duplicate & ~np.isclose(column[1:], column[:-1], rtol=0, atol=0, equal_nan=True)
            if mismatch.any():
                index = int(np.argmax(mismatch))
                raise SkipEpoch(
                    f"Two candles of {candles.provenance.source} at {format_time(candles.time[index])} differ ({name} "
                    f"{column[index]:g} and {column[index + 1]:g}). Which one is right cannot be known; use another source.",
                    check="duplicate",
                )
        candles = candles.take(np.append(True, ~is_duplicate))
        repairs.append(f"dropped {int(is_duplicate.sum())} identical duplicates")
    return candles if tuple(repairs) == candles.repairs else replace(candles, repairs=tuple(repairs))


@dataclass(frozen=True)
class CheckCriteria:
    """What candles are judged by. `needed`: how many of the last candles the forecast uses."""

    now: float
    min_length: int
    max_age: float


def check_candles(candles: Candles, *, now: float, min_length: int, max_age: float) -> tuple[Candles, tuple[str, ...]]:
    """Candles fit for a forecast made at `now`, and the exact repairs that were made, as sentences.

    Repairs: sorting, dropping identical duplicates, dropping a last candle that is not complete yet. `needed` is the
    number of last candles that the forecast uses: their values are judged, older ones are not. `max_age` is the
    greatest allowed time, in seconds, between the last close and `now`.

    Raises:
        SkipEpoch: with `check` one of `CHECKS`: the first that refuses.
    """
    candles = drop_incomplete(repair(candles), now)
    criteria = CheckCriteria(now, min_length, max_age)
    for name, find_fault in CHECKS.items():
        reason = find_fault(candles, criteria)
        if reason is not None:
            raise SkipEpoch(f"{candles.provenance.source}: {reason}", check=name)
    return candles, candles.repairs


def run_checks(candles: Candles, *, now: float, min_length: int, max_age: float) -> dict[str, str | None]:
    """Every check's name with why it refuses, or None where it does not. Never raises; for people who inspect data."""
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
    """Why values among `candles` cannot be right as they are, whatever they are used for; None where they can."""
    if not len(candles):
        return None
    criteria = CheckCriteria(now=candles.end, min_length=len(candles), max_age=0)
    reasons = (CHECKS[name](candles, criteria) for name in ("unit", "nonfinite", "inconsistent", "flat", "spike"))
    return next((reason for reason in reasons if reason), None)


def drop_incomplete(candles: Candles, now: float) -> Candles:
    """Without the candle still open at `now`, which is told in `repairs`. One of the future stays, to be refused."""
    if not len(candles) or not candles.time[-1] <= now < candles.end:
        return candles
    message = f"dropped the candle of {format_time(candles.time[-1])}, which is not complete yet"
    return replace(candles.take(slice(0, -1)), repairs=(*candles.repairs, message))


def format_time(seconds: float) -> str:
    """A time for people; a number that cannot be a time stays a number."""
    return to_iso(seconds) if MIN_TIME <= seconds < MAX_TIME else f"{seconds:g}"


def _check_empty(candles: Candles, criteria: CheckCriteria) -> str | None:
    return None if len(candles) else "it has no candles for the time asked. Look at the symbol and the time."


def _check_unit(candles: Candles, criteria: CheckCriteria) -> str | None:
    """Milliseconds for seconds; or prices that change their unit on the way."""
    invalid = (candles.time < MIN_TIME) | (candles.time >= MAX_TIME)
    if invalid.any():
        time = int(candles.time[np.argmax(invalid)])
        for unit, factor in TIME_UNITS.items():
            if MIN_TIME <= time / factor < MAX_TIME:
                return f"{time} is no time in seconds since 1970; is it in {unit}?"
        time_text = to_iso(time) if time in DATETIME_SECONDS else f"{time} s since 1970"
        return f"a candle opens at {time_text}, outside {to_iso(MIN_TIME)[:4]} to {to_iso(MAX_TIME)[:4]}. Look at the times."
    for jump_time, jump in _find_jumps(_last_candles(candles, criteria)):
        if jump.kind == "unit":
            return f"the price is {_format_ratio(jump.size)} from {format_time(jump_time)} on; the unit of the price changed."
    return None


def _check_future(candles: Candles, criteria: CheckCriteria) -> str | None:
    if candles.end <= criteria.now:
        return None
    return (
        f"its last candle opens at {format_time(candles.time[-1])} and now it is {format_time(criteria.now)}; "
        "look at this machine's clock and at the source's time zone."
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
        f"its last candle closed at {format_time(candles.end)}, {age / 3600:.1f} h before {format_time(criteria.now)}; "
        f"at most {criteria.max_age / 3600:.1f} h are allowed."
    )


def _check_gap(candles: Candles, criteria: CheckCriteria) -> str | None:
    time = _last_candles(candles, criteria).time
    missing = np.diff(time) // candles.step - 1
    if not (missing > 0).any():
        return None
    index = int(np.argmax(missing > 0))
    return f"{missing.sum()} of the candles needed are missing, the first at {format_time(time[index] + candles.step)}."


def _check_short(candles: Candles, criteria: CheckCriteria) -> str | None:
    if len(candles) >= criteria.min_length:
        return None
    return f"it has {len(candles)} candles up to {format_time(candles.end)}, and {criteria.min_length} are needed."


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
            return f"the price stands still at {price:g} for {length} candles up to {format_time(recent.time[index])}."
    return None


def _check_spike(candles: Candles, criteria: CheckCriteria) -> str | None:
    recent = _last_candles(candles, criteria)
    with np.errstate(all="ignore"):
        body_high = np.maximum.reduce([recent.open, recent.high, recent.close])
        wick = body_high / np.minimum.reduce([recent.open, recent.low, recent.close]) > MAX_WICK_RATIO
    if wick.any():
        return f"within the candle of {format_time(recent.time[np.argmax(wick)])} the price changes more than {MAX_WICK_RATIO:g} times."
    for jump_time, jump in _find_jumps(recent):
        if jump.kind == "spike":
            return f"the price is {_format_ratio(jump.size)} at {format_time(jump_time)}, and nothing around it confirms that."
    return None


@dataclass(frozen=True)
class _PriceJump:
    size: float  # log-return
    kind: str  # "spike": it reverts, or too little is known around it; "unit": it lasts; "move": lasts, believable


def _find_jumps(recent: Candles) -> list[tuple[int, _PriceJump]]:
    """Steps between two closes that are too large to be believed unseen, by the time of the candle after the step."""
    if len(recent) < 2 or not (np.isfinite(recent.close) & (recent.close > 0)).all():
        return []
    log_prices = np.log(recent.close)
    returns = np.diff(log_prices)
    robust = 1.4826 * float(np.median(np.abs(returns - np.median(returns))))
    jumps = []
    settled_index = 0
    for index in np.flatnonzero(np.abs(returns) > max(JUMP_LOG_RETURN, JUMP_SIGMAS * robust)).tolist():
        if index < settled_index:
            continue  # the way back from the one before
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
    """Index of the last candle of the longest run, and how many stand in it."""
    best_length, best_index, run = 0, 0, 0
    for index, repeat in enumerate(repeats.tolist()):
        run = run + 1 if repeat else 0
        if run > best_length:
            best_length, best_index = run, index
    return best_index, best_length


def _last_candles(candles: Candles, criteria: CheckCriteria) -> Candles:
    return candles.take(slice(max(0, len(candles) - criteria.min_length), None))


# In the order in which they are made: a later one may take for granted what an earlier one refuses.
# `duplicate` is raised by `mend`, before them; a wrong order is always repaired there.
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
