"""The reasons why a server is at risk, the worst first: `memory 91 % now, likely above 95 % in 6 min (p90 97 %)`."""

from __future__ import annotations

from math import isnan

import numpy as np

from forecastd.fleet.contract import METRIC_NAMES
from forecastd.fleet.forecast.horizon_stats import LIKELY_LEVEL, POSSIBLE_LEVEL, Reals, ThresholdStats
from forecastd.fleet.formatting import format_value, metric_label
from forecastd.fleet.risk.current_values import SILENT_WARNING_TICKS, CurrentValues
from forecastd.runtime.formatting import format_duration

MAX_METRICS = 3  # metrics that are listed per server


class ReasonBuilder:
    """Writes the reasons of each server. Arrays become lists, because it reads thousands of single values at a tick."""

    def __init__(
        self, observed: CurrentValues, prospects: ThresholdStats, warning: Reals, critical: Reals, worst: Reals
    ) -> None:
        """Arrays are [S, M]. `worst`: the largest pressure of each metric; the reasons are sorted by it."""
        self.observed = observed
        self._current, self._rounded = observed.values.tolist(), observed.values.round(3).tolist()
        self._warning, self._critical, self._worst = warning.tolist(), critical.tolist(), worst.tolist()
        self._possible_peak, self._to_warning = prospects.peak_p90.tolist(), prospects.ticks_to_warning.tolist()
        self._to_critical = prospects.ticks_to_critical.tolist()
        self._to_possible_critical = prospects.ticks_to_critical_p90.tolist()
        down = np.array([status == "down" for status in observed.statuses], dtype=np.bool_)
        self._critical_now = ((observed.values >= critical).any(axis=1) | down).tolist()
        self._first_likely = np.fmin.reduce(prospects.ticks_to_critical, axis=1).tolist()  # fmin ignores NaN
        self._first_possible = np.fmin.reduce(prospects.ticks_to_critical_p90, axis=1).tolist()

    def current_values(self, row: int) -> dict[str, float]:
        """The current values of this server by metric, to three decimals: no agent measures more.

        Unknown ones are absent.
        """
        return {name: value for name, value in zip(METRIC_NAMES, self._rounded[row], strict=True) if not isnan(value)}

    def minutes_ahead(self, row: int) -> tuple[float | None, float | None]:
        """Minutes until a metric of this server reaches its critical threshold, and the quantile that reaches it.

        The quantile is the p50; where no p50 reaches it, the p90. 0 and None where a value is critical now.
        """
        if self._critical_now[row]:
            return 0.0, None
        for ticks, quantile in ((self._first_likely[row], LIKELY_LEVEL), (self._first_possible[row], POSSIBLE_LEVEL)):
            if not isnan(ticks):
                return ticks * self.observed.step / 60, quantile
        return None, None

    def reasons_for(self, row: int, min_pressure: float) -> tuple[str, ...]:
        """The status and silence first, then the worst metrics: those with `min_pressure` or more, else the worst
        one.
        """
        status, reasons = self.observed.statuses[row], []
        if status == "maintenance":
            return ("in maintenance: not assessed, no alerts",)
        if status != "ok":
            reasons.append(f"reports status {status}")
        if (silent_ticks := int(self.observed.silent_ticks[row])) >= SILENT_WARNING_TICKS:
            reasons.append(f"no data for {self._duration_text(silent_ticks)} ({silent_ticks} ticks)")
        pressures = self._worst[row]
        order = sorted(range(len(pressures)), key=pressures.__getitem__, reverse=True)[:MAX_METRICS]
        serious = [index for index in order if pressures[index] >= min_pressure]
        return (*reasons, *(self._metric_text(row, index) for index in serious or ([] if reasons else order[:1])))

    def _metric_text(self, row: int, index: int) -> str:
        name, value = METRIC_NAMES[index], self._current[row][index]
        value_text = "no value now" if isnan(value) else f"{format_value(name, value)} now"
        return f"{metric_label(name)} {value_text}, {self._forecast_text(row, index, value)}"

    def _forecast_text(self, row: int, index: int, value: float) -> str:
        name, warning, critical = METRIC_NAMES[index], self._warning[row][index], self._critical[row][index]
        if value >= critical:
            return f"critical from {format_value(name, critical)}"
        possible = self._possible_peak[row][index]
        p90 = "" if isnan(possible) else f" (p90 {format_value(name, possible)})"
        crossings = [("likely", critical, self._to_critical), ("possibly", critical, self._to_possible_critical)]
        if not value >= warning:  # also without a value
            crossings.append(("likely", warning, self._to_warning))
        for word, threshold, ticks in crossings:
            if not isnan(ticks[row][index]):
                return f"{word} above {format_value(name, threshold)} in {self._duration_text(ticks[row][index])}{p90}"
        return f"warning from {format_value(name, warning)}{p90}"

    def _duration_text(self, ticks: float) -> str:
        return format_duration(ticks * self.observed.step)
