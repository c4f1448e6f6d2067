"""Faults of a scenario: the level of each fault on each server at any tick, from 0 (none) to about 1 (worst).

Invariant: a level is a function of the time and of a few numbers drawn per server; it needs no history. Dependent
servers see the level of their database some ticks later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.simulator.noise import FloatArray, KeyArray, TickArray, derive, mix, uniform
from forecastd.fleet.simulator.profiles import HOUR, MINUTE

Scenario = Literal["healthy", "degrading", "critical", "cascade", "varied"]
SCENARIOS: tuple[Scenario, ...] = ("healthy", "degrading", "critical", "cascade", "varied")
FaultKind = Literal["leak", "rush", "fill", "disk", "network"]
FAULT_KINDS: tuple[FaultKind, ...] = ("leak", "rush", "fill", "disk", "network")
IntArray = NDArray[np.int64]
_FOREVER = 10_000 * HOUR


@dataclass(frozen=True)
class FaultCourse:
    """The course of the faults of a scenario, in seconds; pairs are (shortest, longest).

    `delay`: from the start of the scenario to the start of the fault. `ramp`, `hold`, `recovery`: the phases of the
    fault. `period`: from one start to the next. `lead`: how long the fault has been running when the scenario starts.
    """

    delay: tuple[float, float]
    ramp: tuple[float, float]
    hold: tuple[float, float]
    recovery: tuple[float, float]
    period: float
    lead: float = 0.0


_FAULT_COURSES: dict[Scenario, FaultCourse] = {
    "degrading": FaultCourse(
        (0, 4 * MINUTE), (15 * MINUTE, 40 * MINUTE), (25 * MINUTE, 40 * MINUTE), (60, 150), 2 * HOUR, lead=7 * MINUTE
    ),
    "critical": FaultCourse(
        (0, 3 * MINUTE), (6 * MINUTE, 9 * MINUTE), (_FOREVER, _FOREVER), (60, 60), 2 * _FOREVER, lead=12 * MINUTE
    ),
    "cascade": FaultCourse((MINUTE, 2 * MINUTE), (5 * MINUTE, 8 * MINUTE), (25 * MINUTE, 30 * MINUTE), (90, 180), HOUR),
    "varied": FaultCourse(
        (0, 25 * MINUTE), (5 * MINUTE, 40 * MINUTE), (2 * MINUTE, 20 * MINUTE), (40, 240), 90 * MINUTE
    ),
}
# The probability per server and period in the scenario `varied`.
_FAULT_PROBABILITY: dict[FaultKind, float] = {"leak": 0.11, "rush": 0.11, "fill": 0.08, "disk": 0.09, "network": 0.05}


class Faults:
    """The faults of one scenario on the servers with these keys. `start` is the tick at which the scenario begins."""

    def __init__(self, scenario: Scenario, key: KeyArray, names: tuple[str, ...], *, start: int, step: int) -> None:
        self._course = _FAULT_COURSES.get(scenario)
        self._every_server = scenario == "varied"
        self._keys, self._start, self._step = derive(key, 3_000), start, step
        self._affected = _affected_servers(scenario, self._keys, names)
        databases = [i for i, name in enumerate(names) if name == "database"]
        self.pools = len(databases)
        self._database = np.array(databases or [0], dtype=np.int64)
        depends = np.array([name in {"web", "worker"} for name in names]) & (self.pools > 0)
        self.pool = np.where(depends, np.arange(len(names)) % max(self.pools, 1), -1)
        self._lag = np.rint((20 + 130 * uniform(derive(self._keys, 1))) / step).astype(np.int64)
        self._all = np.arange(len(names))

    @property
    def has_faults(self) -> bool:
        """Whether the scenario has any fault."""
        return self._course is not None

    def level(self, kind: FaultKind, ticks: TickArray) -> FloatArray:
        """[S, T] the level of this fault on each server."""
        return self._level(kind, self._all, ticks[None, :])

    def upstream(self, ticks: TickArray, pool_offset: int, lag_factor: float) -> FloatArray:
        """[S, T] the level of the disk fault of the database that each server depends on; 0 for servers without one.

        `pool_offset`: use the database of a neighboring pool. `lag_factor`: multiplies the lag of each server.
        """
        if not self.pools:
            return np.zeros((len(self._all), len(ticks)))
        delay = np.rint(self._lag * lag_factor).astype(np.int64)
        source = self._database[(self.pool + pool_offset) % self.pools]
        level = self._level("disk", source, ticks[None, :] - delay[:, None])
        return np.asarray(level * (self.pool >= 0)[:, None])

    def _level(self, kind: FaultKind, servers: IntArray, ticks: TickArray) -> FloatArray:
        course = self._course
        if course is None or not (self._every_server or np.any(self._affected[kind][servers])):
            return np.zeros((len(servers), ticks.shape[1]))
        elapsed = (ticks - self._start) * float(self._step) + course.lead
        cycle = np.floor(elapsed / course.period)
        key = derive(self._keys[servers], FAULT_KINDS.index(kind))[:, None]
        if self._every_server:
            run = mix(key + cycle.astype(np.int64).astype(np.uint64))
            strength = (uniform(run) < _FAULT_PROBABILITY[kind]) * (0.45 + 0.55 * uniform(mix(run)))
        else:
            run = mix(key)
            strength = self._affected[kind][servers][:, None] * (cycle >= 0) * (0.9 + 0.1 * uniform(mix(run)))
        wait, ramp, hold, recovery = (
            low + (high - low) * uniform(derive(run, part))
            for part, (low, high) in enumerate((course.delay, course.ramp, course.hold, course.recovery))
        )
        phase = elapsed - cycle * course.period - wait
        ramp_up = np.clip(phase / ramp, 0, 1)
        ramp_down = np.clip((phase - ramp - hold) / recovery, 0, 1)
        return np.asarray(strength * ramp_up * (1 - ramp_down))


def _affected_servers(scenario: Scenario, key: KeyArray, names: tuple[str, ...]) -> dict[FaultKind, FloatArray]:
    """By kind of fault: [S] 1 for the affected servers, else 0.

    They are chosen by their keys, so a seed always gives the same ones.
    """
    order = np.argsort(derive(key, 4_000), kind="stable")
    affected = {kind: np.zeros(len(names)) for kind in FAULT_KINDS}
    if scenario in {"degrading", "critical"}:
        kinds: tuple[FaultKind, ...] = ("leak", "rush", "fill") if scenario == "degrading" else FAULT_KINDS
        count = min(len(names), max(len(kinds), round(0.25 * len(names))))
        for index, server in enumerate(order[:count]):
            affected[kinds[index % len(kinds)]][server] = 1.0
    elif scenario == "cascade":
        databases = [i for i in order if names[i] == "database"]
        affected["disk"][(databases or list(order))[0]] = 1.0
    return affected
