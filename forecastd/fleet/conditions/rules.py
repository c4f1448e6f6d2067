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
from forecastd.fleet.forecast.horizon_stats import Reals
from forecastd.fleet.risk.assessment import RiskAssessment
from forecastd.fleet.risk.current_values import SILENT_CRITICAL_TICKS, SILENT_WARNING_TICKS

Ranks = NDArray[np.int8]
NO_ALERT, EARLY, WARNING, CRITICAL = range(4)  # ranks; rank n is `alert.SEVERITIES[n - 1]`
HYSTERESIS = 0.05  # share of a threshold by which a value must be below it before the alert may clear
CONDITIONS = (*METRIC_NAMES, STATUS, SILENCE)
CONDITION_INDEX = {condition: index for index, condition in enumerate(CONDITIONS)}
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
    value: Reals
    warning: Reals
    critical: Reals
    minutes_ahead: Reals


def evaluate_conditions(assessment: RiskAssessment, started: int) -> ConditionTable:
    """The conditions of an assessment. `started`: the first tick of this process; silence before it opens no alert."""
    observed, warning, critical = assessment.observed, assessment.warning, assessment.critical
    prospects, tick, silent_ticks = assessment.prospects, observed.tick, observed.silent_ticks
    status_ranks = np.array([_STATUS_RANKS.get(status, NO_ALERT) for status in observed.statuses], dtype=np.int8)
    silent_here = np.minimum(silent_ticks, max(0, tick - started))
    no_limits = np.full((len(observed.servers), 2), np.nan)  # of status and silence
    open_ranks = _value_ranks(observed.values, prospects.peak_p50, warning, critical)
    hold_ranks = _value_ranks(observed.values, prospects.peak_p50, *_with_hysteresis(warning, critical))
    value_ticks = np.where(np.isnan(observed.values), -1, tick - observed.age_ticks)
    ticks_ahead = np.stack([prospects.ticks_to_warning, prospects.ticks_to_critical], axis=2)
    return ConditionTable(
        open_ranks=np.column_stack([open_ranks, status_ranks, _silence_ranks(silent_here, 1)]),
        hold_ranks=np.column_stack([hold_ranks, status_ranks, _silence_ranks(silent_ticks, 2)]),
        value_ticks=np.column_stack([value_ticks, tick - silent_ticks, np.full(len(silent_ticks), tick)]),
        value=np.column_stack([observed.values, status_ranks, silent_ticks * observed.step / 60]),
        warning=np.hstack([warning, no_limits]),
        critical=np.hstack([critical, no_limits]),
        minutes_ahead=np.pad(ticks_ahead * (observed.step / 60), ((0, 0), (0, 2), (0, 0)), constant_values=np.nan),
    )


def _value_ranks(current: Reals, likely: Reals, warning: Reals, critical: Reals) -> Ranks:
    """The rank of the current value, else `EARLY` where the p50 reaches warning; no rank without a current value."""
    reached = [current >= critical, current >= warning, ~np.isnan(current) & (likely >= warning)]
    return np.select(reached, [CRITICAL, WARNING, EARLY], NO_ALERT).astype(np.int8)


def _silence_ranks(silent_ticks: NDArray[np.int64], divisor: int) -> Ranks:
    """The rank of a silence; `divisor`: of the ticks at which it has a rank."""
    reached = [silent_ticks >= limit // divisor for limit in (SILENT_CRITICAL_TICKS, SILENT_WARNING_TICKS)]
    return np.select(reached, [CRITICAL, WARNING], NO_ALERT).astype(np.int8)


def _with_hysteresis(warning: Reals, critical: Reals) -> tuple[Reals, Reals]:
    """The thresholds less the hysteresis; the critical one is lowered at most half of the way to warning."""
    return warning * (1 - HYSTERESIS), critical - np.minimum(critical * HYSTERESIS, (critical - warning) / 2)
