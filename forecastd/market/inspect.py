"""What can be said about candles before anything is done with them; behind the `data` commands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from forecastd.clock import to_iso
from forecastd.market.candles import MAX_STALE_STEPS, Candles, run_checks
from forecastd.market.sources import Source
from forecastd.market.window import RollingWindow, refresh

DEFAULT_HOURS = 408  # what a forecast of the default model needs, roughly: its encoder and what warms the features up


@dataclass(frozen=True)
class TimeRange:
    """What is asked for: from `start`, else the last `hours`, up to `end`, all unix seconds; None where not given."""

    start: float | None = None
    end: float | None = None
    hours: int | None = None


@dataclass(frozen=True)
class CandleReport:
    """Facts about candles, ready to be shown. Times are ISO 8601; `gaps` are (first missing, how many)."""

    source: str
    symbol: str
    step: int
    synthetic: bool
    rows: int
    start: str | None
    end: str | None
    age_seconds: float | None
    gaps: list[tuple[str, int]]
    repairs: list[str]
    sha256: str
    checks: dict[str, str | None]


def load_candles(source: Source, window: RollingWindow, time_range: TimeRange, *, now: float) -> Candles:
    """The candles asked for. Without a start they come through the rolling window; of a file, without hours, all.

    Raises:
        RetryLater, NeedsHuman, SkipEpoch: as `source.fetch`.
    """
    end = now if time_range.end is None else min(time_range.end, now)
    if time_range.start is not None:
        candles = source.fetch(int(time_range.start), int(end), now)
        return candles if time_range.hours is None else candles.take(slice(0, time_range.hours))
    if source.name.startswith("file:") and time_range.hours is None:
        return source.fetch(0, int(end), now)
    return refresh(window, source, now=end, length=time_range.hours or DEFAULT_HOURS)


def inspect_candles(candles: Candles, *, now: float) -> CandleReport:
    """Describe candles and judge all of them as a forecast made at `now` would."""
    has_candles = len(candles) > 0
    gap_lengths = np.diff(candles.time) // candles.step - 1
    provenance = candles.provenance
    return CandleReport(
        source=provenance.source,
        symbol=candles.symbol,
        step=candles.step,
        synthetic=provenance.synthetic,
        rows=len(candles),
        start=to_iso(candles.time[0]) if has_candles else None,
        end=to_iso(candles.end) if has_candles else None,
        age_seconds=now - candles.end if has_candles else None,
        gaps=[
            (to_iso(candles.time[index] + candles.step), int(gap_lengths[index]))
            for index in np.flatnonzero(gap_lengths > 0)
        ],
        repairs=list(candles.repairs),
        sha256=provenance.sha256,
        checks=run_checks(candles, now=now, min_length=len(candles), max_age=MAX_STALE_STEPS * candles.step),
    )
