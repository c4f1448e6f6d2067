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

from forecastd.clock import iso
from forecastd.errors import SkipEpoch

HOUR = 3600
COLUMNS = ("open", "high", "low", "close", "volume")

# Thresholds of the checks. Chosen so that the worst real hours of major pairs pass (docs/data.md has the figures).
EARLIEST, LATEST = 1_199_145_600, 4_102_444_800  # 2008 and 2100: outside, a time is not in seconds
DATES = range(-62_135_596_800, 253_402_300_800)  # the years 1 to 9999: what a date can be written of
UNITS = {"milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
JUMP = 0.5  # log-return between two closes: +65 % or -39 % in one step
JUMP_SIGMAS = 15.0  # or this many robust standard deviations, whichever is more
LASTING = np.log(8.0)  # a jump that stays and is larger than this is a change of unit
SETTLE = 6  # candles within which a jump either reverts or counts as lasting
WICK = 10.0  # highest over lowest price within one candle
ROUNDING = 0.01  # aggregators let open and close lie outside low and high by as much, relatively
STALE_STEPS = 3  # how old the last close may be for a forecast, in steps: an outage of two hours costs no epoch
FROZEN = 6  # candles in a row that repeat the close before them, without any range
STUCK = 24  # candles in a row that repeat the close before them


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
    def of(
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
        opened, high, low, close, volume = (np.ascontiguousarray(table[:, at], dtype=np.float64) for at in range(5))
        return cls(symbol, step, time, opened, high, low, close, volume, provenance, repairs)

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


def join_provenance(parts: Sequence[Provenance]) -> Provenance:
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


def join(parts: Sequence[Candles]) -> Candles:
    """Candles of several fetches of one source as one, mended.

    Raises:
        SkipEpoch: `duplicate`, two parts disagree about an hour.
        ValueError: nothing to join, or the parts are of different sources, symbols or steps.
    """
    if len({(part.symbol, part.step) for part in parts}) != 1:
        raise ValueError("candles of different symbols or steps do not join")
    time = np.concatenate([part.time for part in parts])
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    origin = join_provenance([part.provenance for part in parts if len(part)] or [parts[-1].provenance])
    # Overlapping fetches of the same hour are the rule here, not a fault of the source: nothing to tell about.
    told = tuple(dict.fromkeys(told for part in parts for told in part.repairs))
    whole = Candles(parts[0].symbol, parts[0].step, time, **columns, provenance=origin, repairs=told)
    return replace(mend(whole), repairs=told)


def mend(candles: Candles) -> Candles:
    """Sorted by time, identical duplicates dropped; both are exact, and both are told in `repairs`.

    Raises:
        SkipEpoch: `duplicate`, two candles of one time differ.
    """
    told = list(candles.repairs)
    if len(candles) and np.any(np.diff(candles.time) < 0):
        newest_first = bool(np.all(np.diff(candles.time) <= 0))
        candles = candles.take(np.argsort(candles.time, kind="stable"))
        told.append(f"sorted {len(candles)} candles by time ({'newest came first' if newest_first else 'unordered'})")
    same = np.diff(candles.time) == 0
    if same.any():
        # Compared as bytes would be: NaN equals NaN here, it is judged elsewhere.
        for name in COLUMNS:
            column = getattr(candles, name)
            differ = same & ~np.isclose(column[1:], column[:-1], rtol=0, atol=0, equal_nan=True)
            if differ.any():
                at = int(np.argmax(differ))
                raise SkipEpoch(
                    f"Two candles of {candles.provenance.source} at {when(candles.time[at])} differ ({name} "
                    f"{column[at]:g} and {column[at + 1]:g}). Which one is right cannot be known; use another source.",
                    check="duplicate",
                )
        candles = candles.take(np.append(True, ~same))
        told.append(f"dropped {int(same.sum())} identical duplicates")
    return candles if tuple(told) == candles.repairs else replace(candles, repairs=tuple(told))


@dataclass(frozen=True)
class Terms:
    """What candles are judged by. `needed`: how many of the last candles the forecast uses."""

    now: float
    needed: int
    max_age: float


def check(candles: Candles, *, now: float, needed: int, max_age: float) -> tuple[Candles, tuple[str, ...]]:
    """Candles fit for a forecast made at `now`, and the exact repairs that were made, as sentences.

    Repairs: sorting, dropping identical duplicates, dropping a last candle that is not complete yet. `needed` is the
    number of last candles that the forecast uses: their values are judged, older ones are not. `max_age` is the
    greatest allowed time, in seconds, between the last close and `now`.

    Raises:
        SkipEpoch: with `check` one of `CHECKS`: the first that refuses.
    """
    candles = complete(mend(candles), now)
    terms = Terms(now, needed, max_age)
    for name, judge in CHECKS.items():
        reason = judge(candles, terms)
        if reason is not None:
            raise SkipEpoch(f"{candles.provenance.source}: {reason}", check=name)
    return candles, candles.repairs


def examine(candles: Candles, *, now: float, needed: int, max_age: float) -> dict[str, str | None]:
    """Every check's name with why it refuses, or None where it does not. Never raises; for people who inspect data."""
    try:
        candles = complete(mend(candles), now)
    except SkipEpoch as error:
        return {error.check: str(error)}
    if not len(candles):
        return {"empty": _empty(candles, Terms(now, needed, max_age))}
    return {name: judge(candles, Terms(now, needed, max_age)) for name, judge in CHECKS.items()} | {"duplicate": None}


def suspect(candles: Candles) -> str | None:
    """Why values among `candles` cannot be right as they are, whatever they are used for; None where they can."""
    if not len(candles):
        return None
    terms = Terms(now=candles.end, needed=len(candles), max_age=0)
    reasons = (CHECKS[name](candles, terms) for name in ("unit", "nonfinite", "inconsistent", "flat", "spike"))
    return next((reason for reason in reasons if reason), None)


def complete(candles: Candles, now: float) -> Candles:
    """Without the candle still open at `now`, which is told in `repairs`. One of the future stays, to be refused."""
    if not len(candles) or not candles.time[-1] <= now < candles.end:
        return candles
    told = f"dropped the candle of {when(candles.time[-1])}, which is not complete yet"
    return replace(candles.take(slice(0, -1)), repairs=(*candles.repairs, told))


def when(seconds: float) -> str:
    """A time for people; a number that cannot be a time stays a number."""
    return iso(seconds) if EARLIEST <= seconds < LATEST else f"{seconds:g}"


def _empty(candles: Candles, terms: Terms) -> str | None:
    return None if len(candles) else "it has no candles for the time asked. Look at the symbol and the time."


def _unit(candles: Candles, terms: Terms) -> str | None:
    """Milliseconds for seconds; or prices that change their unit on the way."""
    strange = (candles.time < EARLIEST) | (candles.time >= LATEST)
    if strange.any():
        time = int(candles.time[np.argmax(strange)])
        for unit, factor in UNITS.items():
            if EARLIEST <= time / factor < LATEST:
                return f"{time} is no time in seconds since 1970; is it in {unit}?"
        shown = iso(time) if time in DATES else f"{time} s since 1970"
        return f"a candle opens at {shown}, outside {iso(EARLIEST)[:4]} to {iso(LATEST)[:4]}. Look at the times."
    for at, jump in _jumps(_recent(candles, terms)):
        if jump.kind == "unit":
            return f"the price is {_times(jump.size)} from {when(at)} on; the unit of the price changed."
    return None


def _future(candles: Candles, terms: Terms) -> str | None:
    if candles.end <= terms.now:
        return None
    return (
        f"its last candle opens at {when(candles.time[-1])} and now it is {when(terms.now)}; "
        "look at this machine's clock and at the source's time zone."
    )


def _grid(candles: Candles, terms: Terms) -> str | None:
    off = candles.time % candles.step != 0
    if not off.any():
        return None
    return f"the candle of {when(candles.time[np.argmax(off)])} does not start on a multiple of {candles.step} s."


def _stale(candles: Candles, terms: Terms) -> str | None:
    age = terms.now - candles.end
    if age <= terms.max_age:
        return None
    return (
        f"its last candle closed at {when(candles.end)}, {age / 3600:.1f} h before {when(terms.now)}; "
        f"at most {terms.max_age / 3600:.1f} h are allowed."
    )


def _gap(candles: Candles, terms: Terms) -> str | None:
    time = _recent(candles, terms).time
    missing = np.diff(time) // candles.step - 1
    if not (missing > 0).any():
        return None
    at = int(np.argmax(missing > 0))
    return f"{missing.sum()} of the candles needed are missing, the first at {when(time[at] + candles.step)}."


def _short(candles: Candles, terms: Terms) -> str | None:
    if len(candles) >= terms.needed:
        return None
    return f"it has {len(candles)} candles up to {when(candles.end)}, and {terms.needed} are needed."


def _nonfinite(candles: Candles, terms: Terms) -> str | None:
    recent = _recent(candles, terms)
    for name in COLUMNS:
        bad = ~np.isfinite(getattr(recent, name))
        if bad.any():
            return f"the {name} at {when(recent.time[np.argmax(bad)])} is not a finite number."
    return None


def _inconsistent(candles: Candles, terms: Terms) -> str | None:
    recent = _recent(candles, terms)
    slack = 1 + ROUNDING
    cases = (
        (recent.low <= 0, "a price is not positive"),
        (np.minimum(recent.open, recent.close) <= 0, "a price is not positive"),
        (recent.volume < 0, "the volume is negative"),
        (recent.high < recent.low, "the high is below the low"),
        (np.maximum(recent.open, recent.close) > recent.high * slack, "open or close is above the high"),
        (np.minimum(recent.open, recent.close) * slack < recent.low, "open or close is below the low"),
    )
    for bad, what in cases:
        if bad.any():
            return f"at {when(recent.time[np.argmax(bad)])} {what}."
    return None


def _flat(candles: Candles, terms: Terms) -> str | None:
    recent = _recent(candles, terms)
    same = np.append(False, np.diff(recent.close) == 0)
    frozen = same & (recent.high == recent.low)
    for repeats, limit in ((frozen, FROZEN), (same, STUCK)):
        at, length = _longest(repeats)
        if length >= limit:
            price = recent.close[at]
            return f"the price stands still at {price:g} for {length} candles up to {when(recent.time[at])}."
    return None


def _spike(candles: Candles, terms: Terms) -> str | None:
    recent = _recent(candles, terms)
    with np.errstate(all="ignore"):
        body_high = np.maximum.reduce([recent.open, recent.high, recent.close])
        wick = body_high / np.minimum.reduce([recent.open, recent.low, recent.close]) > WICK
    if wick.any():
        return f"within the candle of {when(recent.time[np.argmax(wick)])} the price changes more than {WICK:g} times."
    for at, jump in _jumps(recent):
        if jump.kind == "spike":
            return f"the price is {_times(jump.size)} at {when(at)}, and nothing around it confirms that."
    return None


@dataclass(frozen=True)
class _Jump:
    size: float  # log-return
    kind: str  # "spike": it reverts, or too little is known around it; "unit": it lasts; "move": lasts, believable


def _jumps(recent: Candles) -> list[tuple[int, _Jump]]:
    """Steps between two closes that are too large to be believed unseen, by the time of the candle after the step."""
    if len(recent) < 2 or not (np.isfinite(recent.close) & (recent.close > 0)).all():
        return []
    level = np.log(recent.close)
    moves = np.diff(level)
    robust = 1.4826 * float(np.median(np.abs(moves - np.median(moves))))
    found = []
    settled = 0
    for at in np.flatnonzero(np.abs(moves) > max(JUMP, JUMP_SIGMAS * robust)).tolist():
        if at < settled:
            continue  # the way back from the one before
        after = level[at + 1 : at + 1 + SETTLE]
        back = np.abs(after - level[at]) < 0.5 * abs(moves[at])
        if back.any() or len(after) < SETTLE or at + 1 < SETTLE:
            kind = "spike"
            settled = at + 1 + int(np.argmax(back)) if back.any() else 0
        else:
            kind = "unit" if abs(moves[at]) >= LASTING else "move"
        found.append((int(recent.time[at + 1]), _Jump(float(moves[at]), kind)))
    return found


def _times(size: float) -> str:
    return f"{np.exp(abs(size)):.3g} times {'higher' if size > 0 else 'lower'}"


def _longest(repeats: NDArray[np.bool_]) -> tuple[int, int]:
    """Index of the last candle of the longest run, and how many stand in it."""
    best, best_at, run = 0, 0, 0
    for at, repeat in enumerate(repeats.tolist()):
        run = run + 1 if repeat else 0
        if run > best:
            best, best_at = run, at
    return best_at, best


def _recent(candles: Candles, terms: Terms) -> Candles:
    return candles.take(slice(max(0, len(candles) - terms.needed), None))


# In the order in which they are made: a later one may take for granted what an earlier one refuses.
# `duplicate` is raised by `mend`, before them; a wrong order is always repaired there.
CHECKS: dict[str, Callable[[Candles, Terms], str | None]] = {
    "empty": _empty,
    "unit": _unit,
    "future": _future,
    "grid": _grid,
    "stale": _stale,
    "gap": _gap,
    "short": _short,
    "nonfinite": _nonfinite,
    "inconsistent": _inconsistent,
    "flat": _flat,
    "spike": _spike,
}
