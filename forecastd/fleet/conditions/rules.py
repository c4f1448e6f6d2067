"""What each condition of each server calls for at a tick: how grave it is, and how grave it still is with the margin off.

The one thing to know before changing it: the two ranks differ by `MARGIN`. Between them nothing opens and nothing clears, so
a value that wavers around a threshold makes one alert, not many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.conditions.alert import SILENCE, STATUS
from forecastd.fleet.contract import METRIC_NAMES
from forecastd.fleet.risk.assessment import RiskAssessment
from forecastd.fleet.risk.current_values import SILENT_CRITICAL_TICKS, SILENT_WARNING_TICKS

Ranks = NDArray[np.int8]
NO_ALERT, EARLY, WARNING, CRITICAL = range(4)  # ranks; `alert.SEVERITIES` from 1
HYSTERESIS = 0.05  # of a threshold: as far below it a value must be for the alert to be on its way out
CONDITIONS = (*METRIC_NAMES, STATUS, SILENCE)
CONDITION_INDEX = {condition: place for place, condition in enumerate(CONDITIONS)}
_STATUS_INDEX = len(METRIC_NAMES)
_SILENCE_INDEX = _STATUS_INDEX + 1
_STATUS_RANKS = {"down": CRITICAL, "degraded": WARNING}


@dataclass(frozen=True)
class ConditionTable:
    """[S, C] of all conditions at a tick. `calls`: the rank that the value calls for. `holds`: the rank that it still holds.

    `seen`: the tick of the value itself; a value that was seen before says nothing new. -1 where there is none.
    `ahead` [S, C, 2]: minutes until the p50 is at warning and at critical. It and the others are NaN where not known.
    """

    open_ranks: Ranks
    hold_ranks: Ranks
    value_ticks: NDArray[np.int64]
    value: NDArray[np.float64]
    warning: NDArray[np.float64]
    critical: NDArray[np.float64]
    minutes_ahead: NDArray[np.float64]


def evaluate_conditions(assessment: RiskAssessment, started: int) -> ConditionTable:
    """What an assessment says. `started`: the tick from which on this process listens; silence before it is its own."""
    observed = assessment.observed
    servers, columns = len(observed.servers), len(CONDITIONS)
    metrics = slice(0, len(METRIC_NAMES))
    open_ranks, hold_ranks = np.zeros((servers, columns), np.int8), np.zeros((servers, columns), np.int8)
    value_ticks = np.full((servers, columns), -1, dtype=np.int64)
    value, warning, critical = (np.full((servers, columns), np.nan) for _ in range(3))
    minutes_ahead = np.full((servers, columns, 2), np.nan)
    value[:, metrics], warning[:, metrics], critical[:, metrics] = (
        observed.values,
        assessment.warning,
        assessment.critical,
    )
    minutes_ahead[:, metrics] = np.stack([assessment.to_warning, assessment.to_critical], axis=2) * (observed.step / 60)
    open_ranks[:, metrics] = _value_ranks(
        observed.values, assessment.likely_peak, assessment.warning, assessment.critical
    )
    hold_ranks[:, metrics] = _value_ranks(
        observed.values, assessment.likely_peak, *_with_hysteresis(assessment.warning, assessment.critical)
    )
    value_ticks[:, metrics] = np.where(np.isnan(observed.values), -1, observed.tick - observed.age_ticks)
    status_ranks = np.array([_STATUS_RANKS.get(status, NO_ALERT) for status in observed.statuses], dtype=np.int8)
    open_ranks[:, _STATUS_INDEX] = hold_ranks[:, _STATUS_INDEX] = value[:, _STATUS_INDEX] = status_ranks
    value_ticks[:, _STATUS_INDEX] = observed.tick - observed.silent_ticks
    silent_ticks = np.minimum(observed.silent_ticks, max(0, observed.tick - started))
    open_ranks[:, _SILENCE_INDEX] = np.select(
        [silent_ticks >= SILENT_CRITICAL_TICKS, silent_ticks >= SILENT_WARNING_TICKS], [CRITICAL, WARNING], NO_ALERT
    )
    hold_ranks[:, _SILENCE_INDEX] = np.select(
        [observed.silent_ticks >= SILENT_CRITICAL_TICKS // 2, observed.silent_ticks >= SILENT_WARNING_TICKS // 2],
        [CRITICAL, WARNING],
        NO_ALERT,
    )
    value[:, _SILENCE_INDEX] = observed.silent_ticks * observed.step / 60
    value_ticks[:, _SILENCE_INDEX] = observed.tick
    return ConditionTable(open_ranks, hold_ranks, value_ticks, value, warning, critical, minutes_ahead)


def _value_ranks(
    current: NDArray[np.float64],
    likely: NDArray[np.float64],
    warning: NDArray[np.float64],
    critical: NDArray[np.float64],
) -> Ranks:
    """By the value now, else by what the p50 reaches; nothing is said of a metric without a value."""
    reached = [current >= critical, current >= warning, ~np.isnan(current) & (likely >= warning)]
    return np.select(reached, [CRITICAL, WARNING, EARLY], NO_ALERT).astype(np.int8)


def _with_hysteresis(
    warning: NDArray[np.float64], critical: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The thresholds with the margin off; that of critical at most half of the way down to warning."""
    return warning * (1 - HYSTERESIS), critical - np.minimum(critical * HYSTERESIS, (critical - warning) / 2)
