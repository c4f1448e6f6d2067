"""What can be said about candles before anything is done with them; behind the `data` commands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from forecastd.candles import STALE_STEPS, Candles, examine
from forecastd.clock import iso
from forecastd.sources import Source
from forecastd.window import RollingWindow, refresh

HOURS = 408  # what a forecast of the default model needs, roughly: its encoder and what warms the features up


@dataclass(frozen=True)
class Span:
    """What is asked for: from `start`, else the last `hours`, up to `end`, all unix seconds; None where not given."""

    start: float | None = None
    end: float | None = None
    hours: int | None = None


@dataclass(frozen=True)
class Survey:
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


def gather(source: Source, window: RollingWindow, span: Span, *, now: float) -> Candles:
    """The candles asked for. Without a start they come through the rolling window; of a file, without hours, all.

    Raises:
        RetryLater, NeedsHuman, SkipEpoch: as `source.fetch`.
    """
    end = now if span.end is None else min(span.end, now)
    if span.start is not None:
        candles = source.fetch(int(span.start), int(end), now)
        return candles if span.hours is None else candles.take(slice(0, span.hours))
    if source.name.startswith("file:") and span.hours is None:
        return source.fetch(0, int(end), now)
    return refresh(window, source, now=end, length=span.hours or HOURS)


def survey(candles: Candles, *, now: float) -> Survey:
    """Describe candles and judge all of them as a forecast made at `now` would."""
    some = len(candles) > 0
    missing = np.diff(candles.time) // candles.step - 1
    origin = candles.provenance
    return Survey(
        source=origin.source,
        symbol=candles.symbol,
        step=candles.step,
        synthetic=origin.synthetic,
        rows=len(candles),
        start=iso(candles.time[0]) if some else None,
        end=iso(candles.end) if some else None,
        age_seconds=now - candles.end if some else None,
        gaps=[(iso(candles.time[at] + candles.step), int(missing[at])) for at in np.flatnonzero(missing > 0)],
        repairs=list(candles.repairs),
        sha256=origin.sha256,
        checks=examine(candles, now=now, needed=len(candles), max_age=STALE_STEPS * candles.step),
    )
