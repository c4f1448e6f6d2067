"""What each condition of each server calls for at a tick: how grave it is, and how grave it still is with the margin off.

The one thing to know before changing it: the two ranks differ by `MARGIN`. Between them nothing opens and nothing clears, so
a value that wavers around a threshold makes one alert, not many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.alert import SILENCE, STATUS
from forecastd.fleet.contract import NAMES
from forecastd.fleet.observed import LOST, SILENT
from forecastd.fleet.risk import Assessment

Ranks = NDArray[np.int8]
NOTHING, EARLY, WARNING, CRITICAL = range(4)  # ranks; `alert.SEVERITIES` from 1
MARGIN = 0.05  # of a threshold: as far below it a value must be for the alert to be on its way out
CONDITIONS = (*NAMES, STATUS, SILENCE)
PLACES = {condition: place for place, condition in enumerate(CONDITIONS)}
_STATUS = len(NAMES)
_SILENCE = _STATUS + 1
_SAID = {"down": CRITICAL, "degraded": WARNING}


@dataclass(frozen=True)
class Evidence:
    """[S, C] of all conditions at a tick. `calls`: the rank that the value calls for. `holds`: the rank that it still holds.

    `seen`: the tick of the value itself; a value that was seen before says nothing new. -1 where there is none.
    `ahead` [S, C, 2]: minutes until the p50 is at warning and at critical. It and the others are NaN where not known.
    """

    calls: Ranks
    holds: Ranks
    seen: NDArray[np.int64]
    value: NDArray[np.float64]
    warning: NDArray[np.float64]
    critical: NDArray[np.float64]
    ahead: NDArray[np.float64]


def evidence(assessment: Assessment, started: int) -> Evidence:
    """What an assessment says. `started`: the tick from which on this process listens; silence before it is its own."""
    now = assessment.observed
    servers, wide = len(now.servers), len(CONDITIONS)
    metric = slice(0, len(NAMES))
    calls, holds = np.zeros((servers, wide), np.int8), np.zeros((servers, wide), np.int8)
    seen = np.full((servers, wide), -1, dtype=np.int64)
    value, warning, critical = (np.full((servers, wide), np.nan) for _ in range(3))
    ahead = np.full((servers, wide, 2), np.nan)
    value[:, metric], warning[:, metric], critical[:, metric] = now.current, assessment.warning, assessment.critical
    ahead[:, metric] = np.stack([assessment.to_warning, assessment.to_critical], axis=2) * (now.step / 60)
    calls[:, metric] = _rank(now.current, assessment.likely_peak, assessment.warning, assessment.critical)
    holds[:, metric] = _rank(now.current, assessment.likely_peak, *_lowered(assessment.warning, assessment.critical))
    seen[:, metric] = np.where(np.isnan(now.current), -1, now.tick - now.age)
    said = np.array([_SAID.get(status, NOTHING) for status in now.statuses], dtype=np.int8)
    calls[:, _STATUS] = holds[:, _STATUS] = value[:, _STATUS] = said
    seen[:, _STATUS] = now.tick - now.silent
    listened = np.minimum(now.silent, max(0, now.tick - started))
    calls[:, _SILENCE] = np.select([listened >= LOST, listened >= SILENT], [CRITICAL, WARNING], NOTHING)
    holds[:, _SILENCE] = np.select([now.silent >= LOST // 2, now.silent >= SILENT // 2], [CRITICAL, WARNING], NOTHING)
    value[:, _SILENCE] = now.silent * now.step / 60
    seen[:, _SILENCE] = now.tick
    return Evidence(calls, holds, seen, value, warning, critical, ahead)


def _rank(
    current: NDArray[np.float64],
    likely: NDArray[np.float64],
    warning: NDArray[np.float64],
    critical: NDArray[np.float64],
) -> Ranks:
    """By the value now, else by what the p50 reaches; nothing is said of a metric without a value."""
    reached = [current >= critical, current >= warning, ~np.isnan(current) & (likely >= warning)]
    return np.select(reached, [CRITICAL, WARNING, EARLY], NOTHING).astype(np.int8)


def _lowered(
    warning: NDArray[np.float64], critical: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The thresholds with the margin off; that of critical at most half of the way down to warning."""
    return warning * (1 - MARGIN), critical - np.minimum(critical * MARGIN, (critical - warning) / 2)
