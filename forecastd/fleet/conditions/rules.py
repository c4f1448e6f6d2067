"""The alert rank of each condition of each server at a tick: the rank that its value opens, and the rank that it holds.

Invariant: the two ranks differ by `HYSTERESIS`. Between them no alert opens and none clears, so a value that fluctuates
around a threshold makes one alert, not many.
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
NO_ALERT, EARLY, WARNING, CRITICAL = range(4)  # ranks; rank n is `alert.SEVERITIES[n - 1]`
HYSTERESIS = 0.05  # share of a threshold by which a value must be below it before the alert may clear
CONDITIONS = (*METRIC_NAMES, STATUS, SILENCE)
CONDITION_INDEX = {condition: index for index, condition in enumerate(CONDITIONS)}
_STATUS_INDEX = len(METRIC_NAMES)
_SILENCE_INDEX = _STATUS_INDEX + 1
_STATUS_RANKS = {"down": CRITICAL, "degraded": WARNING}


@dataclass(frozen=True)
class ConditionTable:
    """All conditions of all servers at a tick; arrays are [S, C]. `open_ranks`: the rank that the value requires.

    `hold_ranks`: the rank that the value still holds. `value_ticks`: the tick of the value itself (a value that was
    processed before is not counted again), -1 where there is none. `minutes_ahead` [S, C, 2]: minutes until the p50
    reaches the warning and the critical threshold. `value`, `warning`, `critical` and `minutes_ahead` are NaN where
    unknown.
    """

    open_ranks: Ranks
    hold_ranks: Ranks
    value_ticks: NDArray[np.int64]
    value: NDArray[np.float64]
    warning: NDArray[np.float64]
    critical: NDArray[np.float64]
    minutes_ahead: NDArray[np.float64]


def evaluate_conditions(assessment: RiskAssessment, started: int) -> ConditionTable:
    """The conditions of an assessment. `started`: the first tick of this process; silence before it opens no alert."""
    observed = assessment.observed
    servers, columns = len(observed.servers), len(CONDITIONS)
    metrics = slice(0, len(METRIC_NAMES))
    open_ranks, hold_ranks = np.zeros((servers, columns), np.int8), np.zeros((servers, columns), np.int8)
    value_ticks = np.full((servers, columns), -1, dtype=np.int64)
    value, warning, critical = (np.full((servers, columns), np.nan) for _ in range(3))
    minutes_ahead = np.full((servers, columns, 2), np.nan)
    value[:, metrics] = observed.values
    warning[:, metrics], critical[:, metrics] = assessment.warning, assessment.critical
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
    """The rank of the current value, else `EARLY` where the p50 reaches warning; no rank without a current value."""
    reached = [current >= critical, current >= warning, ~np.isnan(current) & (likely >= warning)]
    return np.select(reached, [CRITICAL, WARNING, EARLY], NO_ALERT).astype(np.int8)


def _with_hysteresis(
    warning: NDArray[np.float64], critical: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The thresholds less the hysteresis; the critical one is lowered at most half of the way to warning."""
    return warning * (1 - HYSTERESIS), critical - np.minimum(critical * HYSTERESIS, (critical - warning) / 2)
