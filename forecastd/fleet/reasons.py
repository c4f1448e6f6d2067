"""Why a server is at risk, in words, the gravest first: `memory 91 % now, likely above 95 % in 6 min (p90 97 %)`."""

from __future__ import annotations

from math import isnan

import numpy as np

from forecastd.fleet.contract import NAMES
from forecastd.fleet.observed import SILENT, Observed
from forecastd.fleet.outlook import LIKELY, POSSIBLE, Prospects, Reals
from forecastd.fleet.words import amount, label, minutes

MOST = 3  # metrics that are named per server


class Reasons:
    """Finds the words about each server. It goes through thousands at a tick, so the arrays are lists here."""

    def __init__(self, observed: Observed, ahead: Prospects, warning: Reals, critical: Reals, worst: Reals) -> None:
        """`worst` [S, M]: the largest pressure of each metric, by which they are ordered."""
        self.observed = observed
        self._current, self._rounded = observed.current.tolist(), observed.current.round(3).tolist()
        self._warning, self._critical, self._worst = warning.tolist(), critical.tolist(), worst.tolist()
        self._possible, self._to_warning = ahead.possible.tolist(), ahead.to_warning.tolist()
        self._to_critical, self._possibly = ahead.to_critical.tolist(), ahead.possibly_critical.tolist()
        down = np.array([status == "down" for status in observed.statuses], dtype=np.bool_)
        self._critical_now = ((observed.current >= critical).any(axis=1) | down).tolist()
        self._first_likely = np.fmin.reduce(ahead.to_critical, axis=1).tolist()  # fmin passes NaN over
        self._first_possible = np.fmin.reduce(ahead.possibly_critical, axis=1).tolist()

    def known(self, row: int) -> dict[str, float]:
        """The values of this server that are known now, by metric; to three places, as far as any agent measures."""
        return {name: value for name, value in zip(NAMES, self._rounded[row], strict=True) if not isnan(value)}

    def minutes_ahead(self, row: int) -> tuple[float | None, float | None]:
        """Minutes until a metric of this server reaches its critical threshold, and the quantile by which it does.

        By its p50; where no p50 does, by a p90. 0 and None where a value is there now.
        """
        if self._critical_now[row]:
            return 0.0, None
        for ticks, quantile in ((self._first_likely[row], LIKELY), (self._first_possible[row], POSSIBLE)):
            if not isnan(ticks):
                return ticks * self.observed.step / 60, quantile
        return None, None

    def told(self, row: int, least: float) -> tuple[str, ...]:
        """The server's own word first, then its worst metrics: those with a pressure of `least`, one where there is none."""
        status, told = self.observed.statuses[row], []
        if status == "maintenance":
            return ("in maintenance: not judged, no alerts",)
        if status != "ok":
            told.append(f"says that it is {status}")
        if (silent := int(self.observed.silent[row])) >= SILENT:
            told.append(f"no data for {self._span(silent)} ({silent} ticks)")
        worst = self._worst[row]
        order = sorted(range(len(worst)), key=worst.__getitem__, reverse=True)[:MOST]
        grave = [place for place in order if worst[place] >= least]
        return (*told, *(self._metric(row, place) for place in grave or ([] if told else order[:1])))

    def _metric(self, row: int, place: int) -> str:
        name, value = NAMES[place], self._current[row][place]
        now = "no value now" if isnan(value) else f"{amount(name, value)} now"
        return f"{label(name)} {now}, {self._prospect(row, place, value)}"

    def _prospect(self, row: int, place: int, value: float) -> str:
        name, warning, critical = NAMES[place], self._warning[row][place], self._critical[row][place]
        if value >= critical:
            return f"critical from {amount(name, critical)}"
        possible = self._possible[row][place]
        p90 = "" if isnan(possible) else f" (p90 {amount(name, possible)})"
        if not isnan(ticks := self._to_critical[row][place]):
            return f"likely above {amount(name, critical)} in {self._span(ticks)}{p90}"
        if not isnan(ticks := self._possibly[row][place]):
            return f"possibly above {amount(name, critical)} in {self._span(ticks)}{p90}"
        if value >= warning:
            return f"warning from {amount(name, warning)}{p90}"
        if not isnan(ticks := self._to_warning[row][place]):
            return f"likely above {amount(name, warning)} in {self._span(ticks)}{p90}"
        return f"warning from {amount(name, warning)}{p90}"

    def _span(self, ticks: float) -> str:
        return minutes(ticks * self.observed.step / 60)
