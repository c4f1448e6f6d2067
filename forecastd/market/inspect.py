"""Load and describe candles for the `data` commands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from forecastd.clock import to_iso
from forecastd.market.candles import MAX_STALE_STEPS, Candles, run_checks
from forecastd.market.sources import Source
from forecastd.market.window import RollingWindow, refresh

DEFAULT_HOURS = 408  # about what the default model needs: its encoder and the features' windows


@dataclass(frozen=True)
class TimeRange:
    """The requested range: from `start`, or else the last `hours`, up to `end` (unix seconds); None where not set."""

    start: float | None = None
    end: float | None = None
    hours: int | None = None


@dataclass(frozen=True)
class CandleReport:
    """A summary of candles for display. Times are ISO 8601; `gaps` are pairs (first missing time, count)."""

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
    """Load the candles of a range: without a start through the rolling window; of a file without hours, all candles.

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
    """Describe candles and run every check on all of them, as for a forecast made at `now`."""
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
